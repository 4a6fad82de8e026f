"""Tables of rotations by position give way to two small ones that they are made of."""

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import helper

from kdexport.export.draft import Array, Draft

COS, SIN = 7, 8  # inputs of GroupQueryAttention
N_LOW = 64  # positions of the fine table; the coarse one has every 64th
FEWEST_POSITIONS = 1024  # below, there is nothing to save
CLOSE = 1e-3  # a float32 angle of some thousand turns is itself no more exact


def small_rotations(draft: Draft) -> None:
    """cos[P, D], sin[P, D] -> made of rows 0…63 and rows 0, 64, 128, … by the sum of angles.

    cos(a + b) = cos a cos b - sin a sin b, sin(a + b) = sin a cos b + cos a sin b, both divided by
    the factor that some models scale rotations by. ONNX Runtime folds all of it when it opens the
    graph, so that only the file is smaller. Tables that are not made this way stay.
    """
    made: dict[tuple[str, str], bool] = {}
    for node in list(draft.graph.node):
        if node.op_type != "GroupQueryAttention" or len(node.input) <= SIN:
            continue
        names = (node.input[COS], node.input[SIN])
        if names not in made:
            made[names] = all(name in draft.weights for name in names) and _split(draft, *names)


def _split(draft: Draft, cos_name: str, sin_name: str) -> bool:
    """Put the nodes that make both tables first in the graph; False where they cannot."""
    cos, sin = draft.weights[cos_name], draft.weights[sin_name]
    factor = cos[:1]
    if len(cos) < FEWEST_POSITIONS or len(cos) % N_LOW or not factor.all():
        return False
    parts = {
        "low_cos": (cos[:N_LOW] / factor)[None],
        "low_sin": (sin[:N_LOW] / factor)[None],
        "high_cos": cos[::N_LOW, None],
        "high_sin": sin[::N_LOW, None],
    }
    made_cos = parts["high_cos"] * parts["low_cos"] - parts["high_sin"] * parts["low_sin"]
    made_sin = parts["high_sin"] * parts["low_cos"] + parts["high_cos"] * parts["low_sin"]
    if not (_close(made_cos, cos) and _close(made_sin, sin)):
        return False
    del draft.weights[cos_name], draft.weights[sin_name]
    for part, array in parts.items():
        draft.weights[f"{cos_name}.{part}"] = np.ascontiguousarray(array)
    draft.weights[f"{cos_name}.shape"] = np.asarray(cos.shape, dtype=np.int64)
    draft.set_nodes([*_nodes(cos_name, sin_name), *draft.graph.node])
    return True


def _close(made: Array, table: Array) -> bool:
    return bool(np.abs(made.reshape(table.shape) - table).max() <= CLOSE)


def _nodes(cos_name: str, sin_name: str) -> Iterator[onnx.NodeProto]:
    """The sums of angles, as nodes."""
    rows = ((cos_name, "Sub", "cos", "sin"), (sin_name, "Add", "sin", "cos"))
    for table, sum_, high, other in rows:
        first, second = f"{table}.first", f"{table}.second"
        low = [f"{cos_name}.low_cos", f"{cos_name}.low_sin"]
        yield helper.make_node("Mul", [f"{cos_name}.high_{high}", low[0]], [first])
        yield helper.make_node("Mul", [f"{cos_name}.high_{other}", low[1]], [second])
        yield helper.make_node(sum_, [first, second], [f"{table}.grid"])
        yield helper.make_node("Reshape", [f"{table}.grid", f"{cos_name}.shape"], [table])
