"""The cache, its growth and its limits; the models themselves are compared in tests/export."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from kdexport.bundle import WEIGHTS, Bundle, open_bundle
from kdexport.errors import InputError
from kdexport.runtime.session import Session, open_session
from tests.models import make_llama

IDS = np.arange(5, 45, dtype=np.int64)


@pytest.fixture(params=["llama_bundle", "gpt2_bundle", "int8_bundle", "kv8_bundle"])
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


SCHEMES = ["fp32", "int8", "int8-portable", "int8-block", "int4"]
EIGHTH = "keys and values in int8"


@pytest.fixture(scope="module")
def wide_bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """A model of every scheme, wide enough for blocks of 128, which have kernels of their own."""
    from kdexport.export.bundles import export_bundle
    from kdexport.export.quantize import Wishes, quantize_bundle

    folder = tmp_path_factory.mktemp("wide")
    model = make_llama(folder / "model", hidden=128)
    bundles = {"fp32": export_bundle(model, folder / "fp32", name="wide")}
    for scheme in SCHEMES[1:]:
        bundles[scheme] = quantize_bundle(bundles["fp32"], scheme, folder / scheme)
    wishes = Wishes(kv_cache="int8")
    bundles[EIGHTH] = quantize_bundle(bundles["fp32"], "int8", folder / "eighth", wishes)
    return bundles


def read(session: Session, sizes: list[int], every: bool) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a text read in parts (of each token, or of each part's last), keys and values."""
    ids = np.random.default_rng(3).integers(3, 300, sum(sizes))[None]
    cache, logits, begin = session.new_cache(1, 1), [], 0
    for size in sizes:
        rows = np.arange(size) if every else None
        logits.append(session.run(ids[:, begin : begin + size], cache, logit_rows=rows).copy())
        begin += size
        assert cache.lengths.tolist() == [begin]
    return np.concatenate(logits), cache.read(0, begin)


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("scheme", [*SCHEMES, EIGHTH])
def test_grouping_changes_no_bit_of_an_exact_session(
    wide_bundles: dict[str, Bundle], scheme: str, n_threads: int
) -> None:
    session = open_session(wide_bundles[scheme], n_threads=n_threads, exact=True)
    whole, kept = read(session, [140], every=True)
    for sizes in ([1] * 140, [129, 1, 10], [5] * 28, [3, 4, 6, 7, 1, 1, 2, 8, 9, 99], [139, 1]):
        logits, values = read(session, sizes, every=True)
        np.testing.assert_array_equal(logits, whole)
        np.testing.assert_array_equal(values, kept)
        lasts, values = read(session, sizes, every=False)
        np.testing.assert_array_equal(lasts, whole[np.cumsum(sizes) - 1])
        np.testing.assert_array_equal(values, kept)


def test_without_exact_grouping_does_change_bits(wide_bundles: dict[str, Bundle]) -> None:
    """What the option is for; float32, so that a change is one of rounding only."""
    session = open_session(wide_bundles["fp32"], n_threads=1)
    whole, _ = read(session, [40], every=True)
    alone, _ = read(session, [1] * 40, every=True)
    np.testing.assert_allclose(alone, whole, atol=1e-4)
    assert (alone != whole).any()


@pytest.mark.parametrize("bundle_name", ["llama_bundle", "gpt2_bundle"])
def test_exact_batches_and_full_texts(bundle_name: str, request: pytest.FixtureRequest) -> None:
    bundle: Bundle = request.getfixturevalue(bundle_name)
    plain = open_session(bundle, n_threads=1)
    session = open_session(bundle, n_threads=1, exact=True)
    batch, lengths = np.stack([IDS[:5], IDS[10:15], IDS[20:25]]), np.asarray([5, 3, 4])
    rows = np.asarray([2, 7, 13])
    caches = [one.new_cache(3, 5) for one in (plain, session)]
    found = [
        [
            one.run(batch, cache, lengths=lengths, logit_rows=rows).copy(),
            one.run(batch[:, :1], cache).copy(),
        ]
        for one, cache in zip((plain, session), caches, strict=True)
    ]
    for expected, exact in zip(*found, strict=True):
        assert exact.shape == expected.shape
        np.testing.assert_allclose(exact, expected, atol=1e-4)
    assert caches[1].lengths.tolist() == [6, 4, 5]
    full = [1] * bundle.manifest.model.max_length  # no place is left for a token to be forgotten
    np.testing.assert_allclose(session.score(full), plain.score(full), atol=1e-4)
    cache = session.new_cache(1, 1)
    session.run(np.asarray([full[:-1]]), cache)
    logits = session.run(np.asarray([[1]]), cache)
    np.testing.assert_allclose(logits[0], plain.score(full)[-1], atol=1e-4)


def test_calls_of_several_sizes_in_turns_stay_bound(llama_bundle: Bundle) -> None:
    session = open_session(llama_bundle, n_threads=1)
    expected = session.score(IDS.tolist()).copy()
    cache, sizes = session.new_cache(1, 1), [1, 5, 1, 2, 5, 3, 1, 4, 5, 6, 1, 1]
    binds: list[tuple[int, ...]] = []
    graph = session._graph
    bind = graph._bind
    graph._bind = lambda shape: binds.append(shape) or bind(shape)  # type: ignore[method-assign,func-returns-value]
    begin = 0
    for size in sizes:  # the buffers grow at 2, 6, 8, 16 and 32 tokens
        part = IDS[None, begin : begin + size]
        logits = session.run(part, cache, logit_rows=np.arange(size))
        np.testing.assert_allclose(logits, expected[begin : begin + size], atol=1e-4)
        begin += size
    cache.reserve(200)
    for n in (1, 5) * 4:  # one size, and another: bound once each
        cache.truncate(20)
        logits = session.run(IDS[None, 20 : 20 + n], cache, logit_rows=np.arange(n))
        np.testing.assert_allclose(logits, expected[20 : 20 + n], atol=1e-4)
    assert binds[-2:] == [(1, 1, 1), (1, 5, 5)]
    for n in range(1, 9):
        cache.truncate(20)
        session.run(IDS[None, 20 : 20 + n], cache)
        assert len(graph._bound) <= 4
    cache.truncate(0)
    session.run(IDS[None], cache, logit_rows=np.arange(40))
    cache.truncate(20)
    session.run(IDS[None, 20:22], cache)
    assert all(len(bound.logits) <= 16 for bound in graph._bound.values())  # memory is not kept


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


@pytest.mark.parametrize("name", ["llama_bundle", "kv8_bundle"])
def test_a_cache_of_another_type_than_the_manifest_s_is_one_line(
    name: str, request: pytest.FixtureRequest
) -> None:
    bundle: Bundle = request.getfixturevalue(name)
    other = "int8" if bundle.manifest.kv_cache == "float32" else "float32"
    manifest = bundle.manifest.model_copy(update={"kv_cache": other})
    with pytest.raises(InputError, match=r"its manifest: past_key_values\.0\.key differs"):
        open_session(Bundle(bundle.path, manifest, ""))


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
