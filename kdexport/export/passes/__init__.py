"""Rewrites of a graph, one a file, applied in the order of PASSES."""

from collections.abc import Callable, Sequence

from kdexport.export.draft import Draft
from kdexport.export.passes.folded_weights import folded_weights
from kdexport.export.passes.lengths_as_inputs import lengths_as_inputs
from kdexport.export.passes.one_head_norm import one_head_norm
from kdexport.export.passes.one_product import one_product
from kdexport.export.passes.one_table import one_table
from kdexport.export.passes.selected_logits import selected_logits
from kdexport.export.passes.small_rotations import small_rotations
from kdexport.export.passes.stated_widths import stated_widths

PASSES: Sequence[Callable[[Draft], None]] = (
    folded_weights,
    lengths_as_inputs,
    selected_logits,
    stated_widths,
    one_product,
    one_head_norm,
    one_table,
    small_rotations,
)
