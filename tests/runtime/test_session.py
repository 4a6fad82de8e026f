"""The cache, its growth and its limits; the models themselves are compared in tests/export."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from kdexport.bundle import WEIGHTS, Bundle, open_bundle
from kdexport.errors import InputError
from kdexport.runtime.session import Session, open_session

IDS = np.arange(5, 45, dtype=np.int64)


@pytest.fixture(params=["llama_bundle", "gpt2_bundle", "int8_bundle"])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    found: Bundle = request.getfixturevalue(request.param)
    return found


def test_chunks_and_growth_change_nothing(bundle: Bundle) -> None:
    session = open_session(bundle, n_threads=1)
    whole = session.score(IDS.tolist()).copy()
    cache = session.new_cache(1, 2)  # has to grow five times
    pieces = [session.run(IDS[None, i : i + 1], cache)[0].copy() for i in range(len(IDS))]
    # int8 rounds a row's activations alone or beside others: 2 % of logits that reach 10
    tolerance = 0.3 if bundle.manifest.scheme != "fp32" else 1e-4
    np.testing.assert_allclose(np.stack(pieces), whole, atol=tolerance)
    assert cache.capacity >= len(IDS)
    assert cache.lengths.tolist() == [len(IDS)]


def test_two_caches_do_not_disturb_each_other(llama_bundle: Bundle) -> None:
    session = open_session(llama_bundle, n_threads=1)
    expected = session.score(IDS.tolist())[-1].copy()
    one, other = session.new_cache(1, 64), session.new_cache(1, 64)
    session.run(IDS[None, :-1], one)
    session.run(IDS[None, ::-1][:, :7], other)
    session.run(IDS[None, :1], other)
    np.testing.assert_allclose(session.run(IDS[None, -1:], one)[0], expected, atol=1e-4)


def test_a_new_cache_where_an_old_one_lay_is_another(int8_bundle: Bundle) -> None:
    def last_logits(session: Session, first: int) -> np.ndarray:
        cache = session.new_cache(1, 64)  # gets the identity of the one just dropped, as a rule
        session.run(IDS[None, first : 2 * first + 4], cache)
        return session.run(IDS[None, :1], cache)[0].copy()

    expected = [last_logits(open_session(int8_bundle, n_threads=1), n) for n in range(6)]
    session = open_session(int8_bundle, n_threads=1)
    found = [last_logits(session, n) for n in range(6)]
    np.testing.assert_array_equal(found, expected)


def test_kept_rows_go_on_as_they_were(llama_bundle: Bundle) -> None:
    session = open_session(llama_bundle, n_threads=1)
    cache = session.new_cache(3, 16)
    batch = np.stack([IDS[:6], IDS[10:16], IDS[20:26]])
    session.run(batch, cache, lengths=np.asarray([6, 4, 5]))
    cache.keep_rows([2, 1])
    found = session.run(np.asarray([[7], [8]]), cache)
    np.testing.assert_allclose(found[0], session.score([*IDS[20:25], 7])[-1], atol=1e-4)
    found = session.run(np.asarray([[9], [9]]), cache)[1].copy()
    np.testing.assert_allclose(found, session.score([*IDS[10:14], 8, 9])[-1], atol=1e-4)


def test_only_the_asked_logits_come(llama_bundle: Bundle) -> None:
    session = open_session(llama_bundle, n_threads=1)
    whole = session.score(IDS.tolist()).copy()
    rows = np.asarray([3, 17], dtype=np.int64)
    found = session.run(IDS[None], session.new_cache(1, 64), logit_rows=rows)
    assert found.shape == (2, session.vocab_size)
    np.testing.assert_allclose(found, whole[rows], atol=1e-5)


def test_a_text_beyond_the_model_is_refused_not_cut(llama_bundle: Bundle) -> None:
    session = open_session(llama_bundle, n_threads=1)
    with pytest.raises(InputError, match="beyond the model's 256"):
        session.score(list(range(257)))
    assert session.score([1] * 256).shape[0] == 256


@pytest.mark.parametrize("ids", [[320], [5, 2**40], [-1, 3]])
def test_tokens_that_the_model_does_not_know_are_one_line(
    llama_bundle: Bundle, ids: list[int]
) -> None:
    session = open_session(llama_bundle, n_threads=1)
    with pytest.raises(InputError, match="is not of the model's vocabulary of 320"):
        session.run(np.asarray([ids], dtype=np.int64), session.new_cache(1, 8))


@pytest.mark.parametrize(
    ("field", "value", "wrong"),
    [
        ("n_layers", 1, "n_layers"),
        ("n_layers", 3, "past_key_values.2.key"),
        ("n_layers", 10**12, "past_key_values.2.key"),
        ("n_kv_heads", 4, "past_key_values.0.key"),
        ("head_dim", 8, "past_key_values.0.key"),
        ("vocab_size", 319, "logits"),
    ],
)
def test_a_manifest_that_is_not_the_graph_s_is_one_line(
    llama_bundle: Bundle, field: str, value: int, wrong: str
) -> None:
    model = llama_bundle.manifest.model.model_copy(update={field: value})
    manifest = llama_bundle.manifest.model_copy(update={"model": model})
    with pytest.raises(
        InputError, match=f"not the graph of its manifest: {wrong} differs"
    ) as caught:
        open_session(Bundle(llama_bundle.path, manifest, ""))
    assert caught.value.where.endswith("onnx/decode.onnx")


def test_a_graph_that_fails_is_one_line(llama_bundle: Bundle) -> None:
    model = llama_bundle.manifest.model.model_copy(update={"max_length": 10**6})
    manifest = llama_bundle.manifest.model_copy(update={"model": model})
    session = open_session(Bundle(llama_bundle.path, manifest, ""), n_threads=1)
    with pytest.raises(InputError, match=r"ONNX Runtime cannot run the graph \(") as caught:
        session.score([5] * 300)
    assert "\n" not in str(caught.value)


def test_changed_weights_are_refused_before_they_are_read(
    llama_bundle: Bundle, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(llama_bundle.path, copy)
    content = bytearray((copy / WEIGHTS).read_bytes())
    content[100] ^= 1
    (copy / WEIGHTS).write_bytes(content)
    with pytest.raises(InputError, match=r"onnx/model\.onnx_data has changed"):
        open_session(copy)


def test_a_cpu_without_what_the_weights_need_is_refused(llama_bundle: Bundle) -> None:
    manifest = llama_bundle.manifest.model_copy(update={"requires_cpu": ["warp-drive"]})
    with pytest.raises(InputError, match="warp-drive"):
        open_session(Bundle(llama_bundle.path, manifest, ""))


def test_a_graph_that_reads_elsewhere_is_refused(llama_bundle: Bundle, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(llama_bundle.path, copy)
    graph = copy / llama_bundle.manifest.graphs.decode
    graph.write_bytes(graph.read_bytes().replace(b"model.onnx_data", b"../../../secret"))
    with pytest.raises(InputError, match=r"outside of the bundle: '../../../secret'"):
        open_session(open_bundle(copy), verify=False)


def test_a_broken_graph_is_one_line(llama_bundle: Bundle, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(llama_bundle.path, copy)
    graph = copy / llama_bundle.manifest.graphs.decode
    content = bytearray(graph.read_bytes())
    content[: len(content) // 2] = bytes(len(content) // 2)
    graph.write_bytes(content)
    with pytest.raises(InputError) as caught:
        open_session(open_bundle(copy), verify=False)
    assert "\n" not in str(caught.value)
