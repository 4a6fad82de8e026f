"""Tables of rotations that small ones make again, and those that none do."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from kdexport.export.draft import Draft, save_drafts
from kdexport.export.passes.small_rotations import small_rotations
from tests.export.drafts import Array, run

TOLERANCE = 1e-3  # float32 angles of some thousand turns are themselves no more exact


def rotations(
    n: int, *, factor: float = 1.0, theta: float = 10000.0, half: int = 16
) -> tuple[Array, Array]:
    """cos and sin tables [n, half], of exact angles."""
    angles = np.arange(n)[:, None] * theta ** -(np.arange(half) / half)
    return tuple((factor * f(angles)).astype(np.float32) for f in (np.cos, np.sin))  # type: ignore[return-value]


def attention_draft(cos: Array, sin: Array, n_layers: int = 2) -> Draft:
    """Layers of attention, which is not run, and both tables as outputs."""
    inputs = ["x", "", "", "k", "v", "l", "t", "cos", "sin"]
    nodes = [
        helper.make_node("GroupQueryAttention", inputs, [f"y{n}"], domain="com.microsoft")
        for n in range(n_layers)
    ]
    nodes += [helper.make_node("Identity", [n], [f"{n}.seen"]) for n in ("cos", "sin")]
    outputs = [
        helper.make_tensor_value_info(f"{name}.seen", TensorProto.FLOAT, list(table.shape))
        for name, table in (("cos", cos), ("sin", sin))
    ]
    graph = helper.make_graph(nodes, "g", [], outputs)
    return Draft(graph, [helper.make_opsetid("", 21)], {"cos": cos, "sin": sin})


@pytest.mark.parametrize("n_layers", [1, 3])
@pytest.mark.parametrize(
    "table",
    [{"n": 1024}, {"n": 8192}, {"n": 4096, "factor": 1.19}, {"n": 4096, "theta": 1e6, "half": 32}],
)
def test_tables_are_made_again(table: dict[str, float], n_layers: int, tmp_path: Path) -> None:
    cos, sin = rotations(**table)  # type: ignore[arg-type]
    draft = attention_draft(cos, sin, n_layers)
    small_rotations(draft)
    draft.remove_unused()
    assert not {"cos", "sin"} & draft.weights.keys()
    assert sum(w.nbytes for w in draft.weights.values()) < (cos.nbytes + sin.nbytes) / 7
    for found, expected in zip(run(draft), (cos, sin), strict=True):
        np.testing.assert_allclose(found, expected, atol=TOLERANCE)
        assert found.shape == expected.shape
    save_drafts({"m.onnx": draft}, tmp_path, "w.bin")
    assert (tmp_path / "w.bin").stat().st_size < (cos.nbytes + sin.nbytes) / 6


def test_attention_reads_the_same_names() -> None:
    draft = attention_draft(*rotations(2048), 3)
    small_rotations(draft)
    readers = draft.readers("cos")
    assert [node.op_type for node in readers] == ["GroupQueryAttention"] * 3 + ["Identity"]
    writer = draft.writer("cos")
    places = [node.output[0] for node in draft.graph.node]
    assert writer is not None and places.index("cos") < places.index(readers[0].output[0])


def odd_tables() -> dict[str, tuple[Array, Array]]:
    cos, sin = rotations(2048)
    bent, other = cos.copy(), sin.copy()
    bent[777, 3] += 0.01
    other[777, 3] += 0.01
    angles = np.arange(2048)[:, None] ** 1.1 * 10000.0 ** -(np.arange(16) / 16)
    return {
        "short": rotations(512),
        "no multiple of 64": rotations(2000),
        "one cos is other": (bent, sin),
        "one sin is other": (cos, other),
        "sin is of another theta": (cos, rotations(2048, theta=5000.0)[1]),
        "angles do not add up": (np.cos(angles).astype("f4"), np.sin(angles).astype("f4")),
        "a channel is never turned": (cos * np.arange(16, dtype=np.float32), sin),
    }


@pytest.mark.parametrize("name", odd_tables())
def test_odd_tables_stay(name: str) -> None:
    cos, sin = odd_tables()[name]
    draft = attention_draft(cos, sin)
    nodes = list(draft.graph.node)
    small_rotations(draft)
    assert list(draft.graph.node) == nodes
    assert draft.weights["cos"] is cos and draft.weights["sin"] is sin


def test_tables_that_are_no_constants_stay() -> None:
    draft = attention_draft(*rotations(2048))
    made = helper.make_node("Cos", ["angles"], ["cos"])
    draft.set_nodes([made, *draft.graph.node])
    draft.weights["angles"] = draft.weights.pop("cos")
    before = list(draft.graph.node)
    small_rotations(draft)
    assert list(draft.graph.node) == before


def test_two_pairs_of_tables_are_made_apart() -> None:
    """As of a model whose layers of two kinds turn otherwise."""
    draft = attention_draft(*rotations(2048))
    other = rotations(1024, theta=1e6)
    inputs = ["x", "", "", "k", "v", "l", "t", "cos2", "sin2"]
    attention = helper.make_node("GroupQueryAttention", inputs, ["z"], domain="com.microsoft")
    draft.set_nodes([*draft.graph.node, attention])
    draft.weights |= dict(zip(("cos2", "sin2"), other, strict=True))
    draft.graph.output.extend(
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [1024, 16]) for n in ("cos2", "sin2")
    )
    small_rotations(draft)
    draft.remove_unused()
    for found, expected in zip(run(draft), (*rotations(2048), *other), strict=True):
        np.testing.assert_allclose(found, expected, atol=TOLERANCE)
