"""A student that computes as its quantized bundle will: whole numbers that stay, scales that learn.

It begins with export's own rounding, which makes up for its errors. From there on the whole numbers
are fixed, and their scales are trained, with the vectors beside them (Chen et al. 2024,
EfficientQAT, E2E-QP): a change of a scale is small, where a weight that changes would leap by
a whole step, with nothing to make up for it. Activations are rounded, too; the gradient passes as
if they were not (straight-through: Bengio et al. 2013; Jacob et al. 2018, section 3).

Knows linear layers and embeddings; no kernels and no graphs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kdexport.errors import InputError
from kdexport.system.console import tracked
from kdexport.system.interrupts import Interrupted
from kdexport.train.anatomy import named_products
from kdexport.train.data import Encoded, collate
from kdexport.train.model import low_precision

Array = np.ndarray[Any, Any]
STEPS = 127  # of an activation on either side of zero
TEXTS_AT_ONCE = 8
MOST_AT_ONCE = 2**26  # numbers of Gram matrices that are kept at a time: 256 MB


@dataclass(frozen=True)
class Kernel:
    """How export keeps a product's weights.

    ``rounded``: float32 [K, N], and the Gram matrix [K, K] of what is multiplied with it or None,
    to the weights that are kept. ``block``: inputs K -> how many share a scale of activations, and
    of weights; None where no block divides them. ``by_column``: a whole column of weights shares
    one.
    """

    rounded: Callable[[Array, Array | None], Array]
    block: Callable[[int], int | None]
    by_column: bool = False


@dataclass
class Product:
    """A module's weight, and what its scales are multiplied with, in the weight's blocks.

    ``inputs``: its axis of inputs, 1 for a linear layer and 0 for transformers' Conv1D. ``block``:
    of activations. ``factors``: 1 + factor for every scale, [out, blocks, 1] or [blocks, 1, out].
    """

    name: str
    module: Any
    inputs: int
    block: int
    factors: torch.nn.Parameter
    made: torch.Tensor | None = None

    @property
    def weight(self) -> torch.nn.Parameter:
        """Whole numbers times the scales that rounding chose."""
        weight: torch.nn.Parameter = self.module.weight
        return weight

    def in_blocks(self, matrix: torch.Tensor) -> torch.Tensor:
        """The weight's numbers, or its gradient's, so that factors fit them."""
        if self.inputs:
            return matrix.view(len(matrix), self.factors.shape[1], -1)
        return matrix.view(len(self.factors), -1, matrix.shape[1])

    def scaled(self) -> torch.Tensor:
        """The weight as its scales are now."""
        if self.made is None:
            self.made = torch.empty_like(self.weight.data)
        torch.mul(
            self.in_blocks(self.weight.data), 1 + self.factors.data, out=self.in_blocks(self.made)
        )
        return self.made

    def take_gradient(self) -> None:
        """The weight's gradient becomes its factors'."""
        gradient, self.weight.grad = self.weight.grad, None
        if gradient is not None:
            own = self.in_blocks((gradient * self.weight.data).contiguous())
            summed = own.sum(2 if self.inputs else 1, keepdim=True)
            before = self.factors.grad
            self.factors.grad = summed if before is None else before + summed


class Rounding:
    """Blocks in which a student computes with rounded weights and activations, once it has begun.

    Within one, the parameters themselves hold the weights that export will keep. At its end the
    gradients of rounded weights are those of ``factors``, which are to be trained; the others' are
    as they were. Raises InputError for a product whose inputs no block divides.
    """

    def __init__(
        self,
        student: Any,
        body: Kernel,
        head: Kernel,
        texts: Sequence[Encoded],
        *,
        precision: str = "float32",
    ) -> None:
        self._body, self._head = body, head
        self._texts, self._precision = texts, precision
        tables = [student.get_input_embeddings(), student.get_output_embeddings()]
        self._tables = {id(one.weight): one for one in tables if one is not None}
        for one in self._tables.values():
            _block(head, one.weight.shape[1])
        self._products = [
            _product(name, module, axis, body)
            for name, module, axis in named_products(student)
            if all(module is not one for one in tables)
        ]

    @property
    def factors(self) -> torch.nn.ParameterList:
        """What is trained of the scales: 0 where they are as rounding chose them."""
        return torch.nn.ParameterList([one.factors for one in self._products])

    @torch.no_grad()
    def begin(self, student: Any, interrupted: Callable[[], bool] = lambda: False) -> None:
        """Round the student's weights in place, as export does, on the texts that it learns from.

        Some products after others: what the later read has been made by rounded ones. Raises
        Interrupted where ``interrupted`` says so; the student is to be thrown away then.
        """
        for table in self._tables.values():
            table.weight.copy_(_rounded(table.weight.data, 1, self._head, None))
        n_done, n_products = 0, len(self._products)
        while n_done < n_products:
            part = _first(self._products[n_done:])
            grams = self._grams(student, part, interrupted)
            with tracked("    rounding", "products") as progress:
                for product in part:
                    _go_on(interrupted)
                    gram = grams[product.name].cpu().numpy()
                    weight = product.weight
                    weight.copy_(_rounded(weight.data, product.inputs, self._body, gram))
                    n_done += 1
                    progress(n_done, n_products)

    @contextmanager
    def __call__(self, student: Any) -> Iterator[None]:
        """One such block for the student that this was made for."""
        kept = [product.weight.data for product in self._products]
        seen = _Seen()
        with ExitStack() as stack:
            for product in self._products:
                hook = seen.hook(product.block)
                stack.callback(product.module.register_forward_pre_hook(hook).remove)
            stack.callback(student.base_model.register_forward_hook(self._last_states).remove)
            try:
                for product in self._products:
                    product.weight.data = product.scaled()
                yield
            finally:
                for product, weight in zip(self._products, kept, strict=True):
                    product.weight.data = weight
                    product.take_gradient()
                for table in self._tables.values():
                    table.weight.grad = None

    def _last_states(self, _module: Any, _args: Any, output: Any) -> Any:
        """What the head reads: it is multiplied elsewhere, some tokens at a time."""
        hidden = getattr(output, "last_hidden_state", None)
        if hidden is not None:
            output.last_hidden_state = straight(hidden, _block(self._head, hidden.shape[-1]))
        return output

    def _grams(
        self, student: Any, products: Sequence[Product], interrupted: Callable[[], bool]
    ) -> Mapping[str, torch.Tensor]:
        """Xᵀ X of what each product reads over the texts, float32 [K, K], by its name."""
        grams = _Grams()
        was_training = student.training
        student.eval()
        with ExitStack() as stack:
            for product in products:
                hook = grams.hook(product.name)
                stack.callback(product.module.register_forward_pre_hook(hook).remove)
            progress = stack.enter_context(tracked("    observing", "texts"))
            for begin in range(0, len(self._texts), TEXTS_AT_ONCE):
                _go_on(interrupted)
                batch = collate(self._texts[begin : begin + TEXTS_AT_ONCE])
                lengths = torch.tensor([len(example.ids) for example in batch.examples])
                places = torch.arange(batch.ids.shape[1])
                grams.is_text = (places < lengths[:, None]).to(student.device)
                with low_precision(student, self._precision):
                    student.base_model(**batch.inputs(student.device))
                progress(begin + len(batch.examples), len(self._texts))
        student.train(was_training)
        return grams.by_name


class _Grams:
    """Gram matrices, one where several products read the same; ``is_text``: bool [B, L]."""

    def __init__(self) -> None:
        self.by_name: dict[str, torch.Tensor] = {}
        self.is_text = torch.empty(0)
        self._last: tuple[Any, str] = (None, "")

    def hook(self, name: str) -> Callable[[Any, Any], None]:
        def add(_module: Any, args: Any) -> None:
            x, *_ = args
            before, same = self._last
            if x is before:
                self.by_name[name] = self.by_name[same]
                return
            self._last = (x, name)
            rows = x[self.is_text].float()
            if name not in self.by_name:
                self.by_name[name] = torch.zeros(2 * rows.shape[-1:], device=rows.device)
            self.by_name[name].addmm_(rows.t(), rows)

        return add


class _Seen:
    """Rounds what products read, once where several read the same."""

    def __init__(self) -> None:
        self._last: tuple[Any, int, Any] = (None, 0, None)

    def hook(self, block: int) -> Callable[[Any, Any], Any]:
        def rounded(_module: Any, args: Any) -> Any:
            x, *others = args
            before, of_block, made = self._last
            if x is not before or block != of_block:
                made = straight(x, block)
                self._last = (x, block, made)
            return (made, *others)

        return rounded


def _go_on(interrupted: Callable[[], bool]) -> None:
    if interrupted():
        raise Interrupted("while the weights were rounded")


def _product(name: str, module: Any, axis: int, kernel: Kernel) -> Product:
    n_inputs, n_outputs = module.weight.shape[axis], module.weight.shape[1 - axis]
    block = _block(kernel, n_inputs)
    n_blocks = 1 if kernel.by_column else n_inputs // block
    shape = (n_outputs, n_blocks, 1) if axis else (n_blocks, 1, n_outputs)
    factors = torch.nn.Parameter(torch.zeros(shape, device=module.weight.device))
    return Product(name, module, axis, block, factors)


def _block(kernel: Kernel, n_inputs: int) -> int:
    block = kernel.block(n_inputs)
    if block is None:
        raise InputError(
            f"a product of {n_inputs} inputs is not divided by the scheme's blocks",
            where="train.quantize_aware",
            remedy="set it to 0, or make a student of a width that they divide",
        )
    return block


def _first(products: Sequence[Product]) -> list[Product]:
    """The first ones, whose Gram matrices are not too large together; one at least."""
    sizes = np.cumsum([int(one.weight.shape[one.inputs]) ** 2 for one in products])
    return list(products[: max(1, int((sizes <= MOST_AT_ONCE).sum()))])


def _rounded(weight: torch.Tensor, inputs: int, kernel: Kernel, gram: Array | None) -> torch.Tensor:
    """A weight as export keeps it."""
    matrix = weight.t() if inputs else weight
    kept = torch.from_numpy(kernel.rounded(matrix.cpu().contiguous().numpy(), gram))
    return kept.t() if inputs else kept


def straight(x: torch.Tensor, block: int) -> torch.Tensor:
    """Activations [..., K] in 8 bits, a scale a block of each row; the gradient passes as it is."""
    made: torch.Tensor = _Straight.apply(x, block)  # type: ignore[no-untyped-call]
    return made


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, block: int) -> torch.Tensor:
        blocks = x.detach().float().reshape(-1, block)
        low, high = torch.aminmax(blocks, dim=1, keepdim=True)
        step = torch.maximum(-low, high).clamp_(min=1e-12).div_(STEPS)
        rounded = torch.div(blocks, step).round_().mul_(step)
        return rounded.view(x.shape).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0], None
