"""Where the parts of a decoder lie: its layers, and the products of attention and feed-forward.

Families are not named here. Layers are the one list of modules that is as long as the
configuration says; which products a layer has, and in which order, a short text shows.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from kdexport.errors import InputError


@dataclass(frozen=True)
class Product:
    """A linear layer, or transformers' Conv1D. ``name``: within its layer.

    ``inputs``: the axis of its weight that its inputs lie on.
    """

    name: str
    module: Any
    inputs: int

    @property
    def n_inputs(self) -> int:
        """How many numbers it reads a token."""
        return int(self.module.weight.shape[self.inputs])

    @property
    def n_outputs(self) -> int:
        """How many numbers it writes a token."""
        return int(self.module.weight.shape[1 - self.inputs])


@dataclass(frozen=True)
class Block:
    """A layer's attention or feed-forward part.

    ``makers`` read the residual stream; ``last`` reads what they made and writes into it.
    """

    makers: tuple[Product, ...]
    last: Product


@dataclass(frozen=True)
class Parts:
    """The two blocks of one layer."""

    attention: Block
    feed_forward: Block


def decoder_layers(model: Any) -> torch.nn.ModuleList:
    """The list of decoder layers."""
    n_layers = model.config.num_hidden_layers
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == n_layers:
            return module
    raise InputError("no list of decoder layers in this model", where="teacher.source")


def layers_prefix(model: Any) -> str:
    """What the names of all parameters of layers begin with, its point included."""
    layers = decoder_layers(model)
    name: str = next(name for name, module in model.named_modules() if module is layers)
    return f"{name}."


def named_products(model: Any) -> Iterator[tuple[str, Any, int]]:
    """Names of linear layers, the layers, and the axis of their weight's inputs."""
    from transformers.pytorch_utils import Conv1D

    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Linear, Conv1D)):
            yield name, module, int(isinstance(module, torch.nn.Linear))


@torch.no_grad()
def read_watched(model: Any, texts: Iterable[torch.Tensor], hooks: Iterable[Any]) -> None:
    """Have a model read texts, int64 [1, L] each, under ``hooks``, which are then taken off."""
    try:
        for ids in texts:
            model.base_model(input_ids=ids.to(model.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def parts_of(model: Any) -> list[Parts]:
    """The parts of each layer, told by the order in which products are computed.

    Attention comes first, in a module of its own; the other products are the feed-forward block's.
    Raises InputError where that does not make two blocks.
    """
    layers = decoder_layers(model)
    seen: list[list[Product]] = [[] for _ in layers]

    def note(product: Product, number: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            seen[number].append(product)

        return hook

    handles = [
        module.register_forward_hook(note(Product(name, module, inputs), number))
        for number, layer in enumerate(layers)
        for name, module, inputs in named_products(layer)
    ]
    read_watched(model, [torch.arange(2)[None]], handles)
    return [_parted(products) for products in seen]


def _parted(products: list[Product]) -> Parts:
    block = products[0].name.partition(".")[0] if products else ""
    attention = [p for p in products if p.name.startswith(f"{block}.")]
    others = [p for p in products if p not in attention]
    if len(attention) < 2 or len(others) < 2:
        raise InputError(
            "the layers of this family cannot be narrowed: they are no attention and feed-forward",
            where="student",
        )
    return Parts(*(Block(tuple(of[:-1]), of[-1]) for of in (attention, others)))
