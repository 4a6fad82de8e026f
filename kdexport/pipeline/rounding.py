"""What training with rounded weights has to know of export: the kernels of the recipe's scheme."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

from kdexport.pipeline.splits import Splits
from kdexport.recipe import Recipe
from kdexport.train.data import Encoded
from kdexport.train.rounding import Array, Kernel, Rounding

N_TEXTS = 256  # that weights are rounded on


def rounding_of(recipe: Recipe, student: Any, data: Splits, precision: str) -> Rounding | None:
    """How the student is rounded at the end of training, where the recipe wants it."""
    if not recipe.train.quantize_aware:
        return None
    from kdexport.export.quantize import SCHEMES

    scheme = SCHEMES[recipe.export.scheme]
    body, head = (kernel_of(name) for name in (scheme.body(), scheme.head))
    return Rounding(student, body, head, _texts(data), precision=precision)


def kernel_of(name: str) -> Kernel:
    """A kernel of export's as training sees it."""
    from kdexport.export.kernels import KERNELS
    from kdexport.export.rounding import round_matrix

    grid = KERNELS[name].grid

    def rounded(weights: Array, gram: Array | None) -> Array:
        return round_matrix(weights, grid, gram).matrix()

    return Kernel(rounded, grid.block, by_column=grid.by_column or not grid.blocks)


def _texts(data: Splits) -> Sequence[Encoded]:
    """Training texts, evenly apart; of those that are streamed the first."""
    if data.lines:
        with data.lines.path.open("rb") as lines:
            first = islice(lines, data.lines.n)
            return list(islice(filter(None, map(data.lines.read, first)), N_TEXTS))
    return data.train[:: max(1, len(data.train) // N_TEXTS)][:N_TEXTS]
