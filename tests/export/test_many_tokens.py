"""The graph for many tokens: the same weights by another kernel, and when it is opened."""

from pathlib import Path

import numpy as np
import pytest

from kdexport.bundle import Bundle
from kdexport.export import quantize as module
from kdexport.export.draft import Draft
from kdexport.export.kernels import KERNELS
from kdexport.export.many_tokens import MANY_TOKENS, many_tokens_graph
from kdexport.export.parity import mean_kl
from kdexport.export.quantize import quantize_bundle
from kdexport.export.rounding import Rounded, round_matrix
from kdexport.runtime.probes import Probe, probe_kernel
from kdexport.runtime.session import open_session
from tests.export.drafts import Array, integer_product, matrix, product_draft, run, some_rows

AMX = ["avx2", "avx512", "vnni", "amx"]


@pytest.fixture(scope="module")
def exact_sums() -> None:
    """For tests that run the graph: it is opened nowhere else."""
    if probe_kernel("dynamic-signed").verdict != "ok":
        pytest.skip("this CPU's products of signed weights saturate")


def quantized(weights: Array, kernel: str = "column8") -> tuple[Draft, Rounded]:
    draft = product_draft(weights)
    rounded = round_matrix(weights, KERNELS[kernel].grid)
    KERNELS[kernel].write(draft, next(draft.products()), rounded)
    draft.remove_unused()
    return draft, rounded


def memory(draft: Draft) -> set[int]:
    return {w.__array_interface__["data"][0] for w in draft.weights.values() if w.nbytes >= 256}


@pytest.mark.parametrize("n", [1, 7, 40])
@pytest.mark.parametrize("n_channels", [64, 160, 384])
def test_it_is_numpys_integers(exact_sums: None, n_channels: int, n: int) -> None:
    draft, rounded = quantized(matrix(n_channels, 33))
    many = many_tokens_graph(draft)
    assert many is not None
    x = some_rows(n, n_channels)
    assert (rounded.scale == rounded.scale[:1]).all()
    by_column = Rounded(rounded.values, rounded.scale[:1], rounded.zero_point[:1])
    expected = integer_product(x, by_column)
    (found,) = run(many, x=x)
    np.testing.assert_allclose(
        found, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max(1).min()
    )


def test_no_weight_is_kept_twice_and_the_draft_stays() -> None:
    draft, _ = quantized(matrix(256, 40))
    nodes, names = draft.graph.SerializeToString(), set(draft.weights)
    many = many_tokens_graph(draft)
    assert many is not None and memory(many) == memory(draft)
    assert draft.graph.SerializeToString() == nodes and set(draft.weights) == names
    assert "MatMulNBits" not in {node.op_type for node in many.graph.node}


@pytest.mark.parametrize("kernel", ["wide8", "block8", "block4", "rows8u"])
def test_scales_that_differ_in_a_column_have_none(kernel: str) -> None:
    weights = matrix(256, 40)
    weights[:32] *= 8
    assert many_tokens_graph(quantized(weights, kernel)[0]) is None


@pytest.fixture(scope="module")
def made(parents: dict[str, Bundle], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """int8 as a CPU with AMX has it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "cpu_features", lambda: AMX)
        return quantize_bundle(parents["llama"], "int8", tmp_path_factory.mktemp("made") / "b")


def opened_with(features: list[str], bundle: Bundle, patch: pytest.MonkeyPatch) -> set[str]:
    """The files of a session for many tokens."""
    names: set[str] = set()

    def opened(path: Path, *rest: object) -> object:
        names.add(path.relative_to(bundle.path).as_posix())
        return open_graph(path, *rest)  # type: ignore[arg-type]

    from kdexport.runtime.session import open_graph

    with patch.context() as here:
        here.setattr("kdexport.runtime.cpu.cpu_features", lambda: features)
        here.setattr("kdexport.runtime.session.open_graph", opened)
        open_session(bundle, n_threads=1, many_tokens=True)
    return names


def test_it_is_opened_with_amx_and_when_asked_for(
    made: Bundle, parents: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs = made.manifest.graphs
    assert graphs.prefill == MANY_TOKENS != graphs.decode
    assert made.manifest.cpu is not None and made.manifest.cpu.kernels == ["block8"]
    manifest = made.manifest
    assert (manifest.kv_cache, manifest.prefill_kv_cache) == ("float32", "int8")
    assert manifest.of_graph(MANY_TOKENS).kv_cache == "int8"
    assert manifest.of_graph(graphs.decode) == manifest
    assert opened_with(AMX, made, monkeypatch) == {MANY_TOKENS}
    assert opened_with(["avx2", "vnni"], made, monkeypatch) == {graphs.decode}
    assert opened_with(AMX, parents["llama"], monkeypatch) == {graphs.decode}


def test_a_text_is_near_and_the_same_alone_and_in_a_batch(
    exact_sums: None,
    made: Bundle,
    parents: dict[str, Bundle],
    texts: list[Array],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kdexport.runtime.session.suits_many_tokens", lambda manifest: True)
    many = open_session(made, n_threads=1, many_tokens=True)
    ids = texts[0][:40]
    found = many.score(ids.tolist()).copy()
    assert many.new_cache().dtype == np.int8 and open_session(made).new_cache().dtype == np.float32
    assert mean_kl(open_session(parents["llama"]).score(ids.tolist()), found) < 0.008
    alone, batch = many.new_cache(1, 40), many.new_cache(3, 40)
    many.run(np.stack([ids[:20], texts[1][:20], texts[2][:20]]), batch)
    many.run(ids[None, :20], alone)
    for token in ids[20:]:
        expected = many.run(np.asarray([[token]]), alone)[0].copy()
        rows = many.run(np.asarray([[token], [5], [7]]), batch)
        np.testing.assert_allclose(rows[0], expected, atol=1e-4)


def test_without_attention_over_8_bits_its_cache_is_float32(
    parents: dict[str, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    none = Probe(name="attention8", value=None, unit="share", verdict="wrong", why="none")
    monkeypatch.setattr(module, "cpu_features", lambda: AMX)
    monkeypatch.setattr(module, "probe_attention", lambda: none)
    manifest = quantize_bundle(parents["llama"], "int8", tmp_path / "b").manifest
    assert manifest.graphs.prefill == MANY_TOKENS and manifest.prefill_kv_cache is None


def test_a_bundle_of_format_1_reads_by_the_graph_that_is_right_for_many_tokens(
    made: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = made.manifest.model_copy(update={"format_version": 1})
    old = Bundle(made.path, manifest, made.manifest_sha256)
    assert opened_with(["avx2", "vnni"], old, monkeypatch) == {MANY_TOKENS}
