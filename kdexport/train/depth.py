"""Cut a model in depth and vocabulary: whole layers go, and rows of the embedding.

Knows no family and no widths: those are `width`'s.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812

from kdexport.errors import InputError
from kdexport.train.anatomy import decoder_layers, layers_prefix, read_watched
from kdexport.train.sizes import StudentSpec, new_model, resized_config


@torch.no_grad()
def block_influence(model: Any, texts: Sequence[torch.Tensor]) -> list[float]:
    """1 - the mean cosine between each layer's input and output (Men et al. 2024, section 3.1).

    ``texts``: token ids, int64 [1, L] each.
    """
    layers = decoder_layers(model)
    total = torch.zeros(len(layers), dtype=torch.float64)
    n_tokens = max(sum(ids.numel() for ids in texts), 1)

    def watch(number: int) -> Callable[..., None]:
        def hook(_module: Any, args: Any, kwargs: Any, output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            total[number] += (1 - F.cosine_similarity(before, after, dim=-1)).sum().double()

        return hook

    handles = [
        layer.register_forward_hook(watch(i), with_kwargs=True) for i, layer in enumerate(layers)
    ]
    read_watched(model, texts, handles)
    return [float(value) for value in total / n_tokens]


def most_influential(influence: Sequence[float], n_layers: int) -> list[int]:
    """The numbers of the ``n_layers`` layers to keep; first and last always are."""
    last = len(influence) - 1
    inner = sorted(range(1, last), key=lambda i: -influence[i])[: n_layers - 2]
    return [0, *sorted(inner), last]


def cut_depth(model: Any, kept_layers: Sequence[int], kept_ids: Sequence[int] | None) -> Any:
    """A new model with only these layers, and these rows of embedding and head.

    Raises InputError for a family whose tensors do not follow its layers.
    """
    spec = StudentSpec(n_layers=len(kept_layers))
    student = new_model(resized_config(model.config, spec, kept_ids, kept_layers), model, kept_ids)
    fill(student, _state_of_kept(model, kept_layers, kept_ids))
    return student


def fill(student: Any, state: dict[str, torch.Tensor]) -> None:
    """Give a model its tensors by name; InputError where a name or a shape has no counterpart."""
    own = student.state_dict()
    strange = [
        name for name, value in state.items() if name in own and value.shape != own[name].shape
    ]
    if not strange:
        missing, strange = student.load_state_dict(state, strict=False)
        strange += sorted({n for n in missing if "rotary" not in n} - tied_names(student))
    if strange:
        raise InputError(
            f"this family cannot be cut so (left over: {strange[:3]})", where="student.init"
        )
    student.tie_weights()


def _state_of_kept(
    model: Any, kept_layers: Sequence[int], kept_ids: Sequence[int] | None
) -> dict[str, torch.Tensor]:
    """The model's tensors that a cut one takes over, under the names they have there."""
    prefix = layers_prefix(model)
    new_number = {old: new for new, old in enumerate(kept_layers)}
    rows = None if kept_ids is None else torch.as_tensor(kept_ids)
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    vocabulary_wide = {
        id(tensor)
        for module in embeddings
        for tensor in (getattr(module, "weight", None), getattr(module, "bias", None))
        if tensor is not None
    }
    tied = tied_names(model)
    state: dict[str, torch.Tensor] = {}
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *_saved_buffers(model)]:
        if name in tied:
            continue
        if name.startswith(prefix):
            number, rest = name.removeprefix(prefix).split(".", 1)
            if int(number) not in new_number:
                continue
            name = f"{prefix}{new_number[int(number)]}.{rest}"
        if rows is not None and id(tensor) in vocabulary_wide:
            tensor = tensor[rows]
        state[name] = tensor.detach().clone()
    return state


def _saved_buffers(model: Any) -> list[tuple[str, torch.Tensor]]:
    saved = model.state_dict().keys()
    return [(name, buffer) for name, buffer in model.named_buffers() if name in saved]


def tied_names(model: Any) -> set[str]:
    """Names of output weights that are the input embedding itself."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is not embedding.weight:
        return set()
    return {
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if parameter is head.weight
    } - {name for name, parameter in model.named_parameters() if parameter is head.weight}
