"""Shapes that a student could have: a grid of depths and widths below a teacher's.

Knows sizes alone; what they cost is measured elsewhere.
"""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch

from kdexport.system.console import quiet_transformers
from kdexport.train.sizes import (
    StudentSpec,
    configured_width,
    narrowed_config,
    resized_config,
    size_names,
)
from kdexport.train.student import groups_kept
from kdexport.train.width import n_key_value_heads

DEPTHS = [Fraction(n, 8) for n in (1, 2, 3, 4, 6, 8)]  # of the teacher's layers
CHANNELS = [Fraction(n, 6) for n in (2, 3, 4, 6)]  # of its feed-forward width, when it is cut
WIDTHS = [Fraction(n, 4) for n in (1, 2, 3, 4)]  # of its width, when the student is new
CHANNEL_STEP = 64  # divided by the blocks that every scheme quantizes in

Shapes = Sequence[Sequence[StudentSpec]]


def shapes_of(config: Any, wish: StudentSpec, *, cut: bool) -> Shapes:
    """Candidates, a row a width and a column a depth, both ascending.

    ``wish``: sizes that are settled; a row or a column is all there is of those. ``cut``: the
    student is cut from the teacher, so its width is that of its feed-forward blocks; a new one has
    fewer channels and heads in proportion.
    """
    n_layers = config.num_hidden_layers
    depths = sorted({max(2, round(n_layers * share)) for share in DEPTHS if n_layers * share >= 1})
    if wish.n_layers is not None:
        depths = [wish.n_layers]
    widths = _channels(config, wish) if cut else _widths(config, wish)
    return [[replace(width, n_layers=depth) for depth in depths] for width in widths]


def _channels(config: Any, wish: StudentSpec) -> list[StudentSpec]:
    if wish.intermediate_size is not None:
        return [wish]
    before = configured_width(config)
    found = {_rounded(before * share, before) for share in CHANNELS}
    return [replace(wish, intermediate_size=width) for width in sorted(found)]


def _widths(config: Any, wish: StudentSpec) -> list[StudentSpec]:
    """Widths that leave heads as large as they are, and as many to a key-value head."""
    if wish.hidden_size is not None:
        return [wish]
    names = size_names(config)
    hidden, n_heads = (int(getattr(config, names[n] or "")) for n in ("hidden_size", "n_heads"))
    n_groups = n_key_value_heads(config)
    unit = n_groups if n_groups > 1 else n_heads
    before = configured_width(config)
    found: list[StudentSpec] = []
    for n in sorted({max(1, round(unit * share)) for share in WIDTHS}):
        kv_heads = (n if n_groups > 1 else 1) if names["n_kv_heads"] else None
        channels = wish.intermediate_size or _rounded(Fraction(before * n, unit), before)
        sizes = {"hidden_size": hidden * n // unit, "n_heads": n_heads * n // unit}
        found.append(replace(wish, n_kv_heads=kv_heads, intermediate_size=channels, **sizes))
    return found


def _rounded(wanted: Fraction, largest: int) -> int:
    """The nearest number of channels that blocks divide, but never more than there are."""
    return min(max(CHANNEL_STEP, CHANNEL_STEP * round(wanted / CHANNEL_STEP)), largest)


def config_of(config: Any, shape: StudentSpec, kept_ids: Sequence[int] | None, *, cut: bool) -> Any:
    """The configuration of a candidate."""
    if not cut:
        return resized_config(config, shape, kept_ids)
    fewer = resized_config(config, StudentSpec(n_layers=shape.n_layers), kept_ids)
    groups = groups_kept(config, shape)
    return narrowed_config(fewer, shape.intermediate_size, groups, shape.hidden_size)


def n_computing(config: Any) -> int:
    """Parameters of a model but for its embeddings and its head: what computes, not what names."""
    from transformers import AutoModelForCausalLM

    with quiet_transformers(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    tables = [m for m in model.modules() if isinstance(m, torch.nn.Embedding)]
    head = model.get_output_embeddings()
    names = {id(of.weight) for of in [*tables, *([head] if head is not None else [])]}
    return sum(p.numel() for p in model.parameters() if id(p) not in names)
