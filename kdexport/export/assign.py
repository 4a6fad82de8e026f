"""A plan, product by product, is carried out on a graph: weights rounded, nodes rewritten.

Knows kernels and the graph contract; not how the plan was made.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper

from kdexport.errors import InputError
from kdexport.export.calibrate import Observed
from kdexport.export.draft import Draft
from kdexport.export.kernels import FLOAT32, KERNELS, MICROSOFT, table_in_blocks
from kdexport.export.rounding import Grid, Rounded, found_again, round_matrix

Array = np.ndarray[Any, Any]
HEAD = "logits"
Plan = Mapping[str, str]
"""What a product makes -> the name of its kernel."""


def assign(draft: Draft, plan: Plan, observed: Mapping[str, Observed] | None = None) -> None:
    """Give every product of the plan its kernel, and the embedding the head's table or its own.

    ``observed``: rounding errors are made up for on these activations. Raises InputError for
    weights that are not finite or that blocks do not divide.
    """
    if all(opset.domain != MICROSOFT for opset in draft.opsets):
        draft.opsets.append(helper.make_opsetid(MICROSOFT, 1))
    products = [node for node in draft.products() if plan.get(node.output[0], FLOAT32) != FLOAT32]
    rounded = {node.output[0]: _round(draft, node, plan, observed) for node in products}
    _look_up(draft, plan, rounded)  # first: it reads before the head what both share
    for node in products:
        KERNELS[plan[node.output[0]]].write(draft, node, rounded[node.output[0]])
    draft.remove_unused()


def check_plan(draft: Draft, plan: Plan) -> None:
    """Refuse weights that the plan's kernels cannot hold, before anything that takes long."""
    for node in draft.products():
        kernel, name = plan.get(node.output[0], FLOAT32), node.input[1]
        if kernel != FLOAT32:
            check_weights(draft.weights[name], name, KERNELS[kernel].grid)


def is_rounded(draft: Draft, plan: Plan) -> bool:
    """Whether the plan's kernels hold every weight as it is, as rounded training leaves it."""
    grids = {node.input[1]: KERNELS[plan[node.output[0]]].grid for node in draft.products()}
    return all(found_again(draft.weights[name], grid) is not None for name, grid in grids.items())


def _round(
    draft: Draft, node: onnx.NodeProto, plan: Plan, observed: Mapping[str, Observed] | None
) -> Rounded:
    value, name = node.input
    grid = KERNELS[plan[node.output[0]]].grid
    weights = draft.weights[name]
    check_weights(weights, name, grid)
    kept = found_again(weights, grid)
    return kept or round_matrix(weights, grid, observed[value].gram if observed else None)


def check_weights(weights: Array, name: str, grid: Grid) -> None:
    """Refuse what cannot be rounded: numbers that are none, and rows that end within a block."""
    if not np.isfinite(weights).all():
        raise InputError(f"the weights of {name} are not all finite", remedy="train it again")
    if grid.block(len(weights)) is None:
        raise InputError(
            f"{name} has {len(weights)} rows, which blocks of {grid.blocks[-1]} do not divide",
            remedy="export it as float32, or make a student of a width that they divide",
        )


def _look_up(draft: Draft, plan: Plan, rounded: Mapping[str, Rounded]) -> None:
    """The embedding in the head's kernel's blocks: its own table where they share one."""
    if plan.get(HEAD, FLOAT32) == FLOAT32:
        return
    kernel = KERNELS[plan[HEAD]]
    gather = next(
        (n for n in draft.graph.node if n.op_type == "Gather" and n.input[1] == "input_ids"), None
    )
    head = draft.writer(HEAD)
    if gather is None or head is None or gather.input[0] not in draft.weights:
        return
    name, nodes = gather.input[0], [gather]
    by_column = any(a.name == "axis" and a.i == 1 for a in gather.attribute)
    if by_column:
        nodes += draft.readers(gather.output[0])
    if name == head.input[1]:
        table = rounded[HEAD]
    else:
        columns = draft.weights[name] if by_column else draft.weights[name].T
        check_weights(columns, name, kernel.grid)
        columns = np.ascontiguousarray(columns)
        table = found_again(columns, kernel.grid) or round_matrix(columns, kernel.grid)
    table_in_blocks(draft, nodes, name, table)
