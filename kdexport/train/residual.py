"""Cut a model's residual stream: the channels that embeddings write and all layers read.

One set of channels for all of them. What the cut model computes is held against the uncut one with
the other channels silenced, as in `width`; norms that take a mean away cannot be cut so.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from kdexport.train.anatomy import layers_prefix, parts_of, read_watched
from kdexport.train.depth import fill, tied_names
from kdexport.train.sizes import narrowed_config, new_model, size_names
from kdexport.train.width import check_same

Seen = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def stream_norms(model: Any) -> dict[str, Any]:
    """The norms over the residual stream, by name: one weight a channel."""
    width = getattr(model.config, size_names(model.config)["hidden_size"] or "")
    return {
        name: module
        for name, module in model.named_modules()
        if getattr(module, "weight", None) is not None and module.weight.shape == (width,)
    }


@torch.no_grad()
def channel_importance(model: Any, texts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The mean size of what norms make of each channel, summed over the norms, float64 [H].

    Muralidharan et al. 2024 (Minitron), section 2.2. ``texts``: token ids, int64 [1, L] each.
    """
    return sum(_watched(model, texts, lambda _read, made: made.abs()).values(), torch.zeros(()))


def most_important_channels(model: Any, n: int, texts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The numbers of the ``n`` channels to keep, int64 and ascending."""
    return channel_importance(model, texts).topk(n).indices.sort().values


def _watched(model: Any, texts: Sequence[torch.Tensor], of: Seen) -> dict[str, torch.Tensor]:
    """The mean over tokens of ``of(read, made)`` of each norm over the stream, float64 [H]."""
    norms = stream_norms(model)
    sums: dict[str, torch.Tensor] = {}
    n_tokens = max(sum(ids.numel() for ids in texts), 1)

    def watch(name: str) -> Callable[..., None]:
        def hook(_module: Any, args: Any, output: Any) -> None:
            seen = of(args[0].double(), output.double()).flatten(0, -2).sum(0).cpu() / n_tokens
            sums[name] = sums.get(name, 0.0) + seen

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in norms.items()]
    read_watched(model, texts, handles)
    return sums


@torch.no_grad()
def cut_stream(model: Any, kept: torch.Tensor, texts: Sequence[torch.Tensor]) -> Any:
    """A new model with only these channels of the residual stream; heads keep their size.

    A norm divides by a mean over channels: its weights make up for those that are gone, by what
    they hold on the texts. Raises InputError for a family of another layout.
    """
    tied = tied_names(model)
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    norms = stream_norms(model)
    n_before = len(next(iter(norms.values())).weight)
    for name, axis in _axes(model):
        if name in state:
            state[name] = state[name].index_select(axis, kept)
    for name in norms:
        state[f"{name}.weight"] = state[f"{name}.weight"] * (n_before / len(kept)) ** 0.5
    student = new_model(narrowed_config(model.config, n_hidden=len(kept)), model, None)
    fill(student, state)
    check_same(model, silenced_stream(model, kept), student)
    power = _watched(model, texts, lambda read, _made: read.square())
    for name, module in stream_norms(student).items():
        module.weight.mul_(float((power[name][kept].sum() / power[name].sum()).sqrt()))
    return student


def _axes(model: Any) -> Iterator[tuple[str, int]]:
    """Names of all tensors that have the stream's channels, and the axis they lie on."""
    prefix = layers_prefix(model)
    for number, parts in enumerate(parts_of(model)):
        for block in (parts.attention, parts.feed_forward):
            for maker in block.makers:
                yield f"{prefix}{number}.{maker.name}.weight", maker.inputs
            yield f"{prefix}{number}.{block.last.name}.weight", 1 - block.last.inputs
            yield f"{prefix}{number}.{block.last.name}.bias", 0
    for name in stream_norms(model):
        yield f"{name}.weight", 0
        yield f"{name}.bias", 0
    tables = [m for m in model.modules() if isinstance(m, torch.nn.Embedding)]
    tables.append(model.get_output_embeddings())
    for name, module in model.named_modules():
        if any(module is table for table in tables):
            yield f"{name}.weight", 1


@contextmanager
def silenced_stream(model: Any, kept: torch.Tensor) -> Iterator[None]:
    """A model in which, within the block, nothing writes into the other channels."""
    writers = [m for m in model.modules() if isinstance(m, torch.nn.Embedding)]
    for parts in parts_of(model):
        writers += [parts.attention.last.module, parts.feed_forward.last.module]

    def mask(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
        heard = torch.zeros(output.shape[-1]).index_fill_(0, kept, 1.0).to(output.device)
        return output * heard

    handles = [writer.register_forward_hook(mask) for writer in writers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
