"""Mend a pruned student before it is trained: least squares, layer by layer, no gradient.

What pruning removed is put back as well as a matrix can. From the first kept layer to the last, the
matrix that closes the feed-forward block is moved so that the student's hidden state behind the
layer comes as near as possible to the teacher's in front of the next kept one. That stands in for
dropped layers and dropped channels alike, and for the errors of the layers below.

After ReplaceMe (Shopkhoev et al. 2025, section 3), which fits one linear map for a row of dropped
layers, and SparseGPT (Frantar & Alistarh 2023, section 3), which solves layer by layer on the
inputs that the pruned model itself produces.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kdexport.train.student import decoder_layers, feed_forward_reader, feed_forward_width

ROWS_AT_ONCE = 8
RIDGE = 1e-3  # of the mean square of the activations

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class _Layers:
    """A model's decoder layers, and what each is called with beside the hidden states."""

    layers: Sequence[Any]
    calls: list[Call]

    def run(self, number: int, hidden: torch.Tensor) -> torch.Tensor:
        args, kwargs = self.calls[number]
        output = self.layers[number](hidden, *args, **kwargs)
        return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def refit(
    student: Any,
    teacher: Any,
    kept_layers: Sequence[int],
    kept_ids: Sequence[int] | None,
    ids: torch.Tensor,
) -> list[float]:
    """Solve the student's feed-forward output matrices in place, on ``ids`` int64 [R, L].

    Returns the share of the hidden state's energy that each layer's output still misses.
    """
    ids = ids[: len(ids) // ROWS_AT_ONCE * ROWS_AT_ONCE]
    teacher_ids = ids if kept_ids is None else torch.as_tensor(kept_ids)[ids]
    of_student, own = _open(student, ids)
    of_teacher, wanted = _open(teacher, teacher_ids)
    width = feed_forward_width(student)
    misses = []
    following = [*kept_layers[1:], len(of_teacher.layers)]
    at = 0
    for number, (layer, next_layer) in enumerate(
        zip(of_student.layers, following, strict=True)
    ):
        for step in range(at, next_layer):
            wanted = [of_teacher.run(step, hidden) for hidden in wanted]
        at = next_layer
        module, axis = feed_forward_reader(layer, width)
        own, missed = _solve(of_student, number, module, axis, own, wanted)
        misses.append(missed)
    return misses


def _solve(
    layers: _Layers,
    number: int,
    module: Any,
    axis: int,
    own: list[torch.Tensor],
    wanted: list[torch.Tensor],
) -> tuple[list[torch.Tensor], float]:
    """Move one matrix; return the layer's new outputs and the share of energy still missed.

    Minimises sum_n |gap_n - x_n D|² / |wanted_n|² + ridge |D|², where x are the activations that
    the matrix reads and gap is what the layer's output lacks: a token counts by its relative
    error, as the norms that follow see it.
    """
    seen: list[torch.Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        outputs = [layers.run(number, hidden) for hidden in own]
    finally:
        handle.remove()
    width = seen[0].shape[-1]
    gram = torch.zeros(width, width, dtype=torch.float64)
    cross = torch.zeros(width, wanted[0].shape[-1], dtype=torch.float64)
    for x, output, goal in zip(seen, outputs, wanted, strict=True):
        scale = goal.norm(dim=-1, keepdim=True).clamp(min=1e-6)
        rows = (x / scale).flatten(0, -2)
        gram += (rows.T @ rows).double()
        cross += (rows.T @ ((goal - output) / scale).flatten(0, -2)).double()
    ridge = RIDGE * gram.diagonal().mean()
    move = torch.linalg.solve(gram + ridge * torch.eye(width, dtype=torch.float64), cross).float()
    module.weight += move if axis == 0 else move.T
    new = [output + x @ move for x, output in zip(seen, outputs, strict=True)]
    missed = sum(float(((g - n) / g.norm(dim=-1, keepdim=True)).square().sum()) for g, n in zip(wanted, new, strict=True))
    return new, missed / sum(g[..., 0].numel() for g in wanted)


def _open(model: Any, ids: torch.Tensor) -> tuple[_Layers, list[torch.Tensor]]:
    """The hidden states before the first layer, and how a model calls its layers."""
    layers = decoder_layers(model)
    states: list[torch.Tensor] = []
    calls: list[Call] = []

    def watch(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = dict(kwargs)
        hidden, rest = (args[0], args[1:]) if args else (given.pop("hidden_states"), ())
        calls.append((rest, given))
        if len(calls) % len(layers) == 1:
            states.append(hidden)

    handles = [layer.register_forward_pre_hook(watch, with_kwargs=True) for layer in layers]
    try:
        model.base_model(input_ids=ids[:ROWS_AT_ONCE], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    embed = _first_states(model, layers[0], ids)
    return _Layers(layers, calls[: len(layers)]), embed


class _Enough(Exception):
    """The hidden states before the first layer are known; the rest of the model may rest."""


def _first_states(model: Any, first: Any, ids: torch.Tensor) -> list[torch.Tensor]:
    states: list[torch.Tensor] = []

    def stop(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states.append(args[0] if args else kwargs["hidden_states"])
        raise _Enough

    handle = first.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        for rows in ids.split(ROWS_AT_ONCE):
            try:
                model.base_model(input_ids=rows, use_cache=False)
            except _Enough:
                continue
    finally:
        handle.remove()
    return states
