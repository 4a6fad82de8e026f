"""Plans are carried out as they say, and what cannot be rounded is refused before any change."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from kdexport.errors import InputError
from kdexport.export.assign import assign
from kdexport.export.calibrate import Observed
from kdexport.export.draft import Draft, save_drafts
from kdexport.export.kernels import KERNELS
from kdexport.export.passes.one_table import one_table
from kdexport.export.rounding import round_matrix
from tests.export.drafts import Array, correlated, matrix, product_draft, run

N_TOKENS, N_CHANNELS = 1024, 128
IDS = np.asarray([[0, 7, 1023], [7, 7, 500]])


def kinds(draft: Draft) -> list[str]:
    return [node.op_type for node in draft.graph.node]


def model_draft(*, tied: bool) -> Draft:
    """An embedding, a product of the user's x, and a head over another x."""
    table = matrix(N_CHANNELS, N_TOKENS).T.copy()
    head = table.T.copy() if tied else matrix(N_CHANNELS, N_TOKENS, seed=1)
    nodes = [
        helper.make_node("Gather", ["E", "input_ids"], ["embedded"]),
        helper.make_node("MatMul", ["x", "W"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "H"], ["logits"]),
    ]

    def value(name: str, shape: list[str | int], kind: int = TensorProto.FLOAT) -> object:
        return helper.make_tensor_value_info(name, kind, shape)

    inputs = [value("input_ids", ["b", "s"], TensorProto.INT64), value("x", ["n", N_CHANNELS])]
    outputs = [value("embedded", ["b", "s", N_CHANNELS]), value("logits", ["n", N_TOKENS])]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    weights = {"E": table, "W": matrix(N_CHANNELS, N_CHANNELS), "H": head}
    draft = Draft(graph, [helper.make_opsetid("", 21)], weights)
    one_table(draft)
    draft.remove_unused()
    return draft


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def draft(request: pytest.FixtureRequest) -> Draft:
    return model_draft(tied=request.param)


def tables(draft: Draft) -> tuple[Array, Array]:
    """The float32 [channels, tokens] matrices of the embedding and of the head."""
    head = draft.weights[draft.writer("logits").input[1]]  # type: ignore[union-attr]
    return (draft.weights["E"].T if "E" in draft.weights else head), head


@pytest.mark.parametrize("kernel", ["wide8", "block8"])
def test_embedded_are_the_rounded_rows(draft: Draft, kernel: str) -> None:
    changed = draft.copy()
    embedding, head = tables(draft)
    assign(changed, {"logits": kernel})
    x = np.zeros((1, N_CHANNELS), dtype=np.float32)
    embedded, _ = run(changed, input_ids=IDS, x=x)
    rounded = round_matrix(np.ascontiguousarray(embedding), KERNELS[kernel].grid).matrix()
    np.testing.assert_allclose(embedded, rounded.T[IDS], rtol=1e-6)
    grid = KERNELS[kernel].grid
    only_head = product_draft(head)
    assign(only_head, {"y": kernel})
    hidden = correlated(4, N_CHANNELS)
    x = np.linalg.solve(draft.weights["W"].T.astype(np.float64), hidden.T).T.astype(np.float32)
    _, logits = run(changed, input_ids=IDS, x=x)
    hidden = x @ draft.weights["W"]
    exact = hidden @ round_matrix(np.ascontiguousarray(head), grid).matrix()
    assert np.abs(logits - exact).max() < 0.02 * np.abs(exact).max()  # of activations in 8 bits


def test_a_shared_table_lies_on_disk_once(tmp_path: Path) -> None:
    sizes = {}
    for tied in (True, False):
        draft = model_draft(tied=tied)
        assign(draft, {"logits": "wide8"})
        save_drafts({"m.onnx": draft}, tmp_path, "w.bin")
        sizes[tied] = (tmp_path / "w.bin").stat().st_size - draft.weights["W"].nbytes
    table = N_TOKENS * N_CHANNELS + 2 * N_TOKENS  # a byte a weight, half a float a block of 128
    assert table <= sizes[True] < table + 3 * 4096  # arrays begin at whole pages
    assert 2 * table <= sizes[False] < 2 * table + 5 * 4096


def test_products_that_stay_float32_are_not_touched(draft: Draft) -> None:
    for plan in ({}, {"hidden": "float32"}, {"logits": "float32", "hidden": "float32"}):
        changed = draft.copy()
        assign(changed, plan)
        assert list(changed.graph.node) == list(draft.graph.node)
        assert all(changed.weights[name] is array for name, array in draft.weights.items())
    changed = draft.copy()
    assign(changed, {"logits": "wide8"})
    assert kinds(changed).count("MatMul") == 1 and changed.weights["W"] is draft.weights["W"]


def test_each_product_gets_its_kernel(draft: Draft) -> None:
    changed = draft.copy()
    assign(changed, {"hidden": "rows8u", "logits": "block8"})
    found = kinds(changed)
    assert found.count("MatMulIntegerToFloat") == found.count("MatMulNBits") == 1
    assert found.count("GatherBlockQuantized") == 1 and "MatMul" not in found
    assert not {"Gather", "Transpose"} & set(found)
    assert not {"W", "E", "H", "E.columns"} & changed.weights.keys()
    assert {opset.domain for opset in changed.opsets} == {"", "com.microsoft"}


@pytest.mark.parametrize("kernel", ["rows8u", "block4"])
def test_errors_are_made_up_for_on_what_was_observed(kernel: str) -> None:
    weights, x = matrix(64, 24), correlated(400, 64)
    observed = {"x": Observed(np.abs(x).max(0), x.T @ x, x[:64])}
    found = {}
    for name, known in (("plain", None), ("careful", observed)):
        draft = product_draft(weights)
        assign(draft, {"y": kernel}, known)
        found[name] = float(np.square(run(draft, x=x)[0] - x @ weights).sum())
    assert found["careful"] < 0.9 * found["plain"]


NO_NUMBER = [float("nan"), float("inf"), -float("inf")]


def refused(draft: Draft, plan: dict[str, str]) -> InputError:
    nodes, weights = list(draft.graph.node), dict(draft.weights)
    with pytest.raises(InputError) as caught:
        assign(draft, plan)
    assert "\n" not in str(caught.value) and caught.value.remedy
    assert list(draft.graph.node) == nodes
    assert draft.weights.keys() == weights.keys()
    return caught.value


@pytest.mark.parametrize("value", NO_NUMBER)
@pytest.mark.parametrize("name", ["W", "E", "H"])
def test_weights_that_are_not_finite_are_named(name: str, value: float) -> None:
    draft = model_draft(tied=False)
    draft.weights[name] = draft.weights[name].copy()
    draft.weights[name][3, 5] = value
    error = refused(draft, {"hidden": "rows8u", "logits": "wide8"})
    assert error.message == f"the weights of {name} are not all finite"


@pytest.mark.parametrize("kernel", ["block4", "block8", "wide8"])
def test_rows_that_end_within_a_block_are_refused(kernel: str) -> None:
    error = refused(product_draft(matrix(48, 8)), {"y": kernel})
    assert error.message == "w has 48 rows, which blocks of 32 do not divide"
    draft = product_draft(matrix(48, 8))
    assign(draft, {"y": "rows8u"})  # columns have no blocks
    assert "MatMulIntegerToFloat" in kinds(draft)
