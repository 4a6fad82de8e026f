"""Cut a model in width: feed-forward channels and heads of attention, the least important first.

What a cut model computes is held against the uncut one with the same channels silenced, so a
family whose tensors are laid out in another way is refused and never cut wrongly.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from kdexport.errors import InputError
from kdexport.train.anatomy import Block, Product, layers_prefix, parts_of, read_watched
from kdexport.train.depth import fill, tied_names
from kdexport.train.sizes import (
    configured_width,
    head_size,
    narrowed_config,
    new_model,
    size_names,
)

N_PROBE = 16  # tokens
MAX_DIFFERENCE = 1e-3  # of logits, as a share of their largest


@dataclass(frozen=True)
class Kept:
    """What stays of one layer, int64 and ascending; None: all.

    ``channels``: of the feed-forward block. ``groups``: key-value heads, each with the query heads
    that read it.
    """

    channels: torch.Tensor | None = None
    groups: torch.Tensor | None = None


@torch.no_grad()
def contributions(
    model: Any, products: Sequence[Product], texts: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """How much each input of each product adds to the residual stream, float64 [n_inputs] each.

    An input's mean square over the texts times the squared norm of the weights that read it (after
    Muralidharan et al. 2024, Minitron, section 2.2, who take the activations alone).
    """
    power = [torch.zeros(product.n_inputs, dtype=torch.float64) for product in products]
    n_tokens = max(sum(ids.numel() for ids in texts), 1)

    def watch(number: int) -> Callable[..., None]:
        def hook(_module: Any, args: Any) -> None:
            power[number] += args[0].double().square().flatten(0, -2).sum(0).cpu()

        return hook

    handles = [p.module.register_forward_pre_hook(watch(i)) for i, p in enumerate(products)]
    read_watched(model, texts, handles)
    return [
        p / n_tokens * product.module.weight.double().square().sum(1 - product.inputs).cpu()
        for p, product in zip(power, products, strict=True)
    ]


def most_important(
    model: Any, n_channels: int | None, n_groups: int | None, texts: Sequence[torch.Tensor]
) -> list[Kept]:
    """What to keep of each layer of a model, so that most is kept of what it adds."""
    parts = parts_of(model)
    channels: list[torch.Tensor | None] = [None] * len(parts)
    groups: list[torch.Tensor | None] = [None] * len(parts)
    if n_channels is not None:
        found = contributions(model, [p.feed_forward.last for p in parts], texts)
        channels = [_largest(of, n_channels) for of in found]
    if n_groups is not None:
        n_before = n_key_value_heads(model.config)
        found = contributions(model, [p.attention.last for p in parts], texts)
        groups = [_largest(of.view(n_before, -1).sum(1), n_groups) for of in found]
    return [Kept(*of) for of in zip(channels, groups, strict=True)]


def _largest(values: torch.Tensor, n: int) -> torch.Tensor:
    return values.topk(n).indices.sort().values


def n_key_value_heads(config: Any) -> int:
    """Key-value heads of a layer; without groups, as many as heads."""
    names = size_names(config)
    n_heads = getattr(config, names["n_heads"] or "")
    return int(getattr(config, names["n_kv_heads"] or "", None) or n_heads)


@torch.no_grad()
def cut_width(model: Any, kept: Sequence[Kept]) -> Any:
    """A new model with only what is kept of each layer, as many of each in all layers.

    Raises InputError for a family that is laid out in a way of its own.
    """
    tied = tied_names(model)
    state = {n: t for n, t in model.state_dict().items() if n not in tied}
    prefix = layers_prefix(model)
    parts = parts_of(model)
    for number, (of_layer, keep) in enumerate(zip(parts, kept, strict=True)):
        layer = f"{prefix}{number}."
        if keep.channels is not None:
            before = configured_width(model.config)
            ranges = {before: keep.channels, 2 * before: _stacked(keep.channels, before, before)}
            _select(state, layer, of_layer.feed_forward, ranges)
        if keep.groups is not None:
            _select(state, layer, of_layer.attention, _head_ranges(model.config, keep.groups))
    n_channels, n_groups = (
        None if of is None else len(of) for of in (kept[0].channels, kept[0].groups)
    )
    student = new_model(narrowed_config(model.config, n_channels, n_groups), model, None)
    fill(student, state)
    check_same(model, silenced(model, kept), student)
    return student


def _stacked(kept: torch.Tensor, *n_before: int) -> torch.Tensor:
    """Indices into several tables one below the other, of which the same rows are kept."""
    starts = [sum(n_before[:number]) for number in range(len(n_before))]
    return torch.cat([kept + start for start in starts])


def _head_ranges(config: Any, groups: torch.Tensor) -> dict[int, torch.Tensor]:
    """Which channels stay, by how many there are: of queries, of keys, of all three in one."""
    size, n_groups = head_size(config), n_key_value_heads(config)
    n_heads = getattr(config, size_names(config)["n_heads"] or "")
    width = size * n_heads // n_groups  # of the queries of a group
    queries = (groups[:, None] * width + torch.arange(width)).flatten()
    keys = (groups[:, None] * size + torch.arange(size)).flatten()
    n_queries, n_keys = n_heads * size, n_groups * size
    together = torch.cat([queries, keys + n_queries, keys + n_queries + n_keys])
    return {n_queries: queries, n_keys: keys, n_queries + 2 * n_keys: together}


def _select(
    state: dict[str, torch.Tensor], layer: str, block: Block, ranges: dict[int, torch.Tensor]
) -> None:
    """Keep of a block's products the outputs, and of its last product the inputs, in ranges."""
    for product in block.makers:
        kept = ranges.get(product.n_outputs)
        if kept is None:
            continue  # a product of other things, whose outcome the check tells
        name = f"{layer}{product.name}."
        state[f"{name}weight"] = state[f"{name}weight"].index_select(1 - product.inputs, kept)
        if f"{name}bias" in state:
            state[f"{name}bias"] = state[f"{name}bias"].index_select(0, kept)
    last = f"{layer}{block.last.name}.weight"
    if (kept := ranges.get(block.last.n_inputs)) is not None:
        state[last] = state[last].index_select(block.last.inputs, kept)


def check_same(model: Any, silence: AbstractContextManager[None], student: Any) -> None:
    """Refuse a cut model that does not compute what the uncut one does within ``silence``."""
    probe = torch.arange(min(N_PROBE, model.config.vocab_size))[None]
    with silence:
        expected = model(input_ids=probe, use_cache=False).logits
    found = student(input_ids=probe, use_cache=False).logits
    if not (found - expected).abs().max() <= MAX_DIFFERENCE * expected.abs().max():
        raise InputError(
            f"{model.config.model_type} models cannot be narrowed: the cut one computes "
            "something else",
            where="student",
            remedy="cut layers and vocabulary alone",
        )


@contextmanager
def silenced(model: Any, kept: Sequence[Kept]) -> Iterator[None]:
    """A model in which, within the block, what is not kept adds nothing."""
    handles = []

    def mask(product: Product, indices: torch.Tensor) -> None:
        heard = torch.zeros(product.n_inputs).index_fill_(0, indices, 1.0).to(model.device)
        hook = lambda _module, args: (args[0] * heard, *args[1:])  # noqa: E731
        handles.append(product.module.register_forward_pre_hook(hook))

    for of_layer, keep in zip(parts_of(model), kept, strict=True):
        if keep.channels is not None:
            mask(of_layer.feed_forward.last, keep.channels)
        if keep.groups is not None:
            last = of_layer.attention.last
            mask(last, _head_ranges(model.config, keep.groups)[last.n_inputs])
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
