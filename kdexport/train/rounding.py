"""A student that computes as its quantized bundle will: with rounded weights and activations.

Forward and backward pass see the rounded values, and the gradient is applied to the float32 weights
as if nothing had been rounded (straight-through: Bengio et al. 2013; Jacob et al. 2018, section 3).
A range is never clipped: then what is rounded already is left by export as it is, whatever export
calibrates on. Knows linear layers and embeddings; no kernels and no graphs.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from kdexport.errors import InputError
from kdexport.system.machine import cpu_features
from kdexport.train.anatomy import named_products

LARGEST_SCALE = torch.finfo(torch.float16).max
CHUNK = 1 << 18  # numbers that are rounded at once on a CPU: they fit into its cache
STEPS = 127  # of an activation on either side of zero


@dataclass(frozen=True)
class Grid:
    """The whole numbers that a weight may take, ``low`` to ``high``, and what shares a scale.

    ``blocks``: how many inputs of a product may share one, of which the first that divides them is
    taken, its scale in half precision and its zero point 0. Without: all inputs do, and the zero
    point is chosen with the scale. Activations are rounded in the same blocks. ``by_column``: the
    blocks of an output have the same scale.
    """

    low: int
    high: int
    blocks: tuple[int, ...] = ()
    by_column: bool = False

    def block(self, n_inputs: int) -> int | None:
        """Inputs that share a scale; None where no block divides them."""
        return next((b for b in self.blocks or (n_inputs,) if n_inputs % b == 0), None)


ROWS = Grid(0, 255)
WIDE = Grid(-128, 127, (128, 64, 32))
COLUMN = Grid(-128, 127, (128, 64, 32), by_column=True)
NARROW = Grid(-128, 127, (32,))
FOUR_BITS = Grid(-8, 7, (32,))


@dataclass(frozen=True)
class Grids:
    """Of every product but the head, and of the head and the embedding."""

    body: Grid
    head: Grid = WIDE


def _eight_bits_of_choice() -> Grids:
    features = cpu_features()
    if "amx" in features:
        return Grids(COLUMN)
    return Grids(WIDE if "vnni" in features else ROWS)


GRIDS: Mapping[str, Callable[[], Grids]] = {
    "int8": _eight_bits_of_choice,
    "int8-portable": lambda: Grids(ROWS),
    "int8-block": lambda: Grids(NARROW, NARROW),
    "int4": lambda: Grids(FOUR_BITS),
}
"""What each scheme of `kdexport.export.quantize` rounds to on this CPU."""


@dataclass
class Matrix:
    """A weight, the blocks that it is rounded in, and room for the outcome.

    ``inputs``: its axis of inputs, 1 for a linear layer and 0 for transformers' Conv1D.
    """

    weight: torch.nn.Parameter
    grid: Grid
    inputs: int
    rounded: torch.Tensor | None = None

    def settle(self) -> torch.Tensor:
        """The rounded weight; of a frozen one it is made once."""
        if self.rounded is None or self.weight.requires_grad:
            if self.rounded is None:
                self.rounded = torch.empty_like(self.weight.data)
            round_weight(self.weight.data, self.grid, inputs=self.inputs, out=self.rounded)
        return self.rounded


class Rounding:
    """Blocks in which a student computes with rounded weights and activations.

    Within one, the parameters themselves hold the rounded values; the float32 weights come back at
    its end. Raises InputError for a product whose inputs no block divides.
    """

    def __init__(self, student: Any, grids: Grids) -> None:
        self.grids = grids
        head = student.get_output_embeddings()
        tables = [student.get_input_embeddings(), head]
        self._body = [(m, axis) for _, m, axis in named_products(student) if m not in tables]
        found = [(module.weight, grids.head, 1) for module in tables if module is not None]
        found += [(module.weight, grids.body, axis) for module, axis in self._body]
        self._matrices = {id(weight): Matrix(weight, grid, axis) for weight, grid, axis in found}
        for matrix in self._matrices.values():
            n_inputs = matrix.weight.shape[matrix.inputs]
            if matrix.grid.block(n_inputs) is None:
                raise InputError(
                    f"a product of {n_inputs} inputs is not divided by blocks of "
                    f"{matrix.grid.blocks[-1]}",
                    where="train.quantize_aware",
                    remedy="set it to 0, or make a student of a width that they divide",
                )

    @contextmanager
    def __call__(self, student: Any) -> Iterator[None]:
        """One such block for the student that this was made for."""
        exact = {name: matrix.weight.data for name, matrix in self._matrices.items()}
        seen = _Seen()
        with ExitStack() as stack:
            for module, axis in self._body:
                block = self.grids.body.block(module.weight.shape[axis])
                stack.callback(module.register_forward_pre_hook(seen.hook(block)).remove)
            stack.callback(student.base_model.register_forward_hook(self._last_states).remove)
            try:
                for matrix in self._matrices.values():
                    matrix.weight.data = matrix.settle()
                yield
            finally:
                for name, matrix in self._matrices.items():
                    matrix.weight.data = exact[name]

    def _last_states(self, _module: Any, _args: Any, output: Any) -> Any:
        """What the head reads: it is multiplied elsewhere, some tokens at a time."""
        hidden = getattr(output, "last_hidden_state", None)
        if hidden is not None:
            output.last_hidden_state = straight(hidden, self.grids.head.block(hidden.shape[-1]))
        return output


class _Seen:
    """Rounds what products read, once where several read the same."""

    def __init__(self) -> None:
        self._last: tuple[Any, int | None, Any] = (None, None, None)

    def hook(self, block: int | None) -> Callable[[Any, Any], Any]:
        def rounded(_module: Any, args: Any) -> Any:
            x, *others = args
            before, of_block, made = self._last
            if x is not before or block != of_block:
                made = straight(x, block)
                self._last = (x, block, made)
            return (made, *others)

        return rounded


def round_weight(
    weight: torch.Tensor, grid: Grid, *, inputs: int = 1, out: torch.Tensor | None = None
) -> torch.Tensor:
    """A float32 matrix to the nearest values of a grid; ``inputs``: the axis that is divided.

    The largest of a block, whichever sign it has, meets the end of the grid that has one number
    more.
    """
    made = torch.empty_like(weight) if out is None else out
    n_rows = grid.block(weight.shape[inputs])
    if n_rows is None:
        raise ValueError(f"no block divides {weight.shape[inputs]} inputs")
    n_rows = weight.shape[inputs] if grid.by_column else n_rows
    shape = (-1, n_rows) if inputs == 1 else (-1, n_rows, weight.shape[1])
    blocks, results = weight.view(shape), made.view(shape)
    at_once = len(blocks)
    if weight.device.type == "cpu":
        at_once = max(1, CHUNK // blocks[0].numel())
    rule = _in_blocks if grid.blocks else _in_rows
    for begin in range(0, len(blocks), at_once):
        rows = slice(begin, begin + at_once)
        rule(blocks[rows], grid, results[rows])
    return made


def _in_blocks(w: torch.Tensor, grid: Grid, out: torch.Tensor) -> None:
    low, high = w.amin(1, keepdim=True), w.amax(1, keepdim=True)
    largest = torch.where(high > -low, high, low)
    scale = (largest / grid.low).clamp_(-LARGEST_SCALE, LARGEST_SCALE).half().float()
    scale.masked_fill_(scale == 0, 1)
    torch.div(w, scale, out=out)
    out.round_().clamp_(grid.low, grid.high).mul_(scale)


def _in_rows(w: torch.Tensor, grid: Grid, out: torch.Tensor) -> None:
    low = w.amin(1, keepdim=True).clamp_(max=0)
    high = w.amax(1, keepdim=True).clamp_(min=0)
    scale = (high - low) / (grid.high - grid.low)
    scale.masked_fill_(scale == 0, 1)
    zero_point = (grid.low - low / scale).round_().clamp_(grid.low, grid.high)
    torch.div(w, scale, out=out)
    out.round_().add_(zero_point).clamp_(grid.low, grid.high).sub_(zero_point).mul_(scale)


def straight(x: torch.Tensor, block: int | None) -> torch.Tensor:
    """Activations [..., K] in 8 bits, a scale a block of each row; the gradient passes as it is."""
    made: torch.Tensor = _Straight.apply(x, block)  # type: ignore[no-untyped-call]
    return made


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, block: int | None) -> torch.Tensor:
        blocks = x.detach().float().reshape(-1, block or x.shape[-1])
        low, high = torch.aminmax(blocks, dim=1, keepdim=True)
        step = torch.maximum(-low, high).clamp_(min=1e-12).div_(STEPS)
        rounded = torch.div(blocks, step).round_().mul_(step)
        return rounded.view(x.shape).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0], None
