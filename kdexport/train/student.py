"""Make a student: a teacher with fewer layers and a smaller vocabulary, or a fresh smaller model.

Families are not named here. Sizes are read and set through optimum's NormalizedConfig, layers are
the one list of modules that is as long as the configuration says.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812

from kdexport.errors import InputError
from kdexport.train.sizes import settle_heads, size_names

SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class StudentSpec:
    """The student's sizes; None keeps the teacher's."""

    n_layers: int | None = None
    hidden_size: int | None = None
    n_heads: int | None = None
    n_kv_heads: int | None = None
    intermediate_size: int | None = None


@dataclass(frozen=True)
class Student:
    """A new student and how it came about. ``kept_layers``: the teacher's layers in it, or None."""

    model: Any
    kept_layers: list[int] | None
    influence: list[float] | None


def prune(
    teacher: Any, spec: StudentSpec, kept_ids: Sequence[int] | None, texts: Sequence[torch.Tensor]
) -> Student:
    """Keep the layers that change their input most, and the embedding rows of ``kept_ids``.

    With ``spec.intermediate_size``, feed-forward blocks keep their most important channels too.

    ``texts``: the teacher's token ids, int64 [1, L] each; block influence is measured on them.
    First and last layer always stay.
    """
    layers = decoder_layers(teacher)
    n_layers = len(layers) if spec.n_layers is None else spec.n_layers
    check_pruning(teacher.config, spec)
    influence = block_influence(teacher, texts)
    inner = sorted(range(1, len(layers) - 1), key=lambda i: -influence[i])[: n_layers - 2]
    kept_layers = [0, *sorted(inner), len(layers) - 1]
    narrower = StudentSpec(n_layers=n_layers, intermediate_size=spec.intermediate_size)
    config = resized_config(teacher.config, narrower, kept_ids, kept_layers)
    student = _new_model(config, teacher, kept_ids)
    state = _state_of_kept(teacher, kept_layers, kept_ids)
    if spec.intermediate_size is not None:
        state = _narrow_state(teacher, state, kept_layers, spec.intermediate_size, texts)
    missing, unexpected = student.load_state_dict(state, strict=False)
    tied = {name for name in missing if "rotary" not in name} - _tied_names(student)
    if tied or unexpected:
        raise InputError(
            f"this family cannot be pruned by layer (left over: {[*tied, *unexpected][:3]})",
            where="student.init",
        )
    student.tie_weights()
    return Student(student, kept_layers, influence)


def from_scratch(
    teacher: Any, spec: StudentSpec, kept_ids: Sequence[int] | None, texts: Sequence[torch.Tensor]
) -> Student:
    """A randomly initialised model of the teacher's family with other sizes."""
    config = resized_config(teacher.config, spec, kept_ids)
    return Student(_new_model(config, teacher, kept_ids), None, None)


def check_pruning(config: Any, spec: StudentSpec) -> None:
    """Refuse sizes that cannot be cut from a teacher of this configuration."""
    n_layers, width = config.num_hidden_layers, configured_width(config)
    if spec.n_layers is not None and not 2 <= spec.n_layers <= n_layers:
        raise InputError(
            f"{spec.n_layers} layers asked of a teacher that has {n_layers}",
            where="student.n_layers",
            remedy=f"use 2 to {n_layers}",
        )
    if spec.intermediate_size is not None and not 0 < spec.intermediate_size <= width:
        raise InputError(
            f"{spec.intermediate_size} asked of a teacher that has {width}",
            where="student.intermediate_size",
        )


def check_scratch(config: Any, spec: StudentSpec) -> None:
    """Refuse sizes that no model of this family can have."""
    resized_config(config, spec, None)


@torch.no_grad()
def block_influence(model: Any, texts: Sequence[torch.Tensor]) -> list[float]:
    """1 - the mean cosine between each layer's input and output (Men et al. 2024, section 3.1)."""
    layers = decoder_layers(model)
    total = torch.zeros(len(layers), dtype=torch.float64)
    n_tokens = 0

    def watch(number: int) -> Callable[..., None]:
        def hook(_module: Any, args: Any, kwargs: Any, output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            total[number] += (1 - F.cosine_similarity(before, after, dim=-1)).sum().double()

        return hook

    handles = [
        layer.register_forward_hook(watch(i), with_kwargs=True) for i, layer in enumerate(layers)
    ]
    try:
        for ids in texts:
            model.base_model(input_ids=ids.to(model.device), use_cache=False)
            n_tokens += ids.numel()
    finally:
        for handle in handles:
            handle.remove()
    return [float(value) for value in total / max(n_tokens, 1)]


def resized_config(
    config: Any,
    spec: StudentSpec,
    kept_ids: Sequence[int] | None,
    kept_layers: Sequence[int] | None = None,
) -> Any:
    """A copy of a model's configuration with other sizes, whatever its family calls them.

    ``kept_layers``: which layers' entries the lists with one a layer keep; None: the first.
    """
    new = copy.deepcopy(config)
    names = size_names(config)
    wanted = {
        names["n_layers"]: spec.n_layers,
        names["hidden_size"]: spec.hidden_size,
        names["n_heads"]: spec.n_heads,
        names["n_kv_heads"]: spec.n_kv_heads,
        names["intermediate_size"]: spec.intermediate_size,
    }
    for name, value in wanted.items():
        if value is None:
            continue
        if name is None or not hasattr(new, name):
            raise InputError(f"a {config.model_type} model has no such size", where="student")
        setattr(new, name, value)
    if spec.n_layers is not None:
        kept = range(spec.n_layers) if kept_layers is None else kept_layers
        _select_per_layer(new, kept, config.num_hidden_layers)
    if spec.hidden_size or spec.n_heads or spec.n_kv_heads:
        settle_heads(new, names)
    if kept_ids is not None:
        _renumber_special_tokens(new, kept_ids)
        setattr(new, names["vocab_size"] or "vocab_size", len(kept_ids))
    return new


def _renumber_special_tokens(config: Any, kept_ids: Sequence[int]) -> None:
    """Give bos, eos, pad and their like the trimmed vocabulary's ids."""
    new_id = {old: new for new, old in enumerate(kept_ids)}
    for name in SPECIAL_IDS:
        value = getattr(config, name, None)
        if isinstance(value, list):
            setattr(config, name, [new_id[i] for i in value if i in new_id])
        elif value is not None:
            setattr(config, name, new_id.get(value))


def _select_per_layer(config: Any, kept_layers: Sequence[int], n_before: int) -> None:
    """Lists in the configuration with one entry a layer (layer_types, …) follow the layers."""
    for name, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == n_before and name != "eos_token_id":
            setattr(config, name, [value[i] for i in kept_layers if i < n_before])


def _new_model(config: Any, teacher: Any, kept_ids: Sequence[int] | None) -> Any:
    """A model with random weights that ends its texts where the teacher does."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name in SPECIAL_IDS:
        setattr(model.generation_config, name, getattr(teacher.generation_config, name, None))
    if kept_ids is not None:
        _renumber_special_tokens(model.generation_config, kept_ids)
    return model


def decoder_layers(model: Any) -> torch.nn.ModuleList:
    """The list of decoder layers."""
    n_layers = model.config.num_hidden_layers
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == n_layers:
            return module
    raise InputError("no list of decoder layers in this model", where="teacher.source")


def _state_of_kept(
    teacher: Any, kept_layers: Sequence[int], kept_ids: Sequence[int] | None
) -> dict[str, torch.Tensor]:
    """The teacher's tensors that the student takes over, under the student's names."""
    layers = decoder_layers(teacher)
    prefix = next(name for name, module in teacher.named_modules() if module is layers) + "."
    new_number = {old: new for new, old in enumerate(kept_layers)}
    rows = None if kept_ids is None else torch.as_tensor(kept_ids)
    vocabulary_wide = {
        id(module.weight)
        for module in (teacher.get_input_embeddings(), teacher.get_output_embeddings())
        if module is not None
    }
    tied = _tied_names(teacher)
    state: dict[str, torch.Tensor] = {}
    for name, tensor in [
        *teacher.named_parameters(remove_duplicate=False),
        *_saved_buffers(teacher),
    ]:
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


@torch.no_grad()
def ffn_importance(model: Any, texts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """How much each channel of each feed-forward block adds to the residual stream.

    float [width] per layer: the mean square of the channel's activation times the squared norm of
    the weights that read it (after Muralidharan et al. 2024, Minitron, section 2.2).
    """
    width = configured_width(model.config)
    readers = [feed_forward_reader(layer, width) for layer in decoder_layers(model)]
    power = [torch.zeros(width, dtype=torch.float64) for _ in readers]

    def watch(number: int) -> Callable[..., None]:
        def hook(_module: Any, args: Any) -> None:
            power[number] += args[0].double().square().flatten(0, -2).sum(0).cpu()

        return hook

    handles = [m.register_forward_pre_hook(watch(i)) for i, (m, _) in enumerate(readers)]
    try:
        for ids in texts:
            model.base_model(input_ids=ids.to(model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return [
        p * module.weight.double().square().sum(1 - axis).cpu()
        for p, (module, axis) in zip(power, readers, strict=True)
    ]


def configured_width(config: Any) -> int:
    """Channels of the feed-forward blocks; GPT-2's configuration leaves it unsaid at 4 x hidden."""
    name = size_names(config)["intermediate_size"]
    return int((name and getattr(config, name)) or 4 * config.hidden_size)


def feed_forward_reader(layer: Any, width: int) -> tuple[Any, int]:
    """The product that reads the feed-forward channels, and the axis of its weight they lie on."""
    found: list[tuple[Any, int]] = []
    for module in layer.modules():
        weight = getattr(module, "weight", None)
        if weight is None or weight.ndim != 2:
            continue
        reads = 0 if hasattr(module, "nf") else 1  # Conv1D keeps [in, out], Linear [out, in]
        if weight.shape[reads] == width and weight.shape[1 - reads] != width:
            found.append((module, reads))
    if len(found) != 1:
        raise InputError(
            "the feed-forward blocks of this family cannot be narrowed",
            where="student.intermediate_size",
        )
    return found[0]


def _narrow_state(
    teacher: Any,
    state: dict[str, torch.Tensor],
    kept_layers: Sequence[int],
    width: int,
    texts: Sequence[torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Keep the ``width`` most important feed-forward channels of each layer."""
    before = configured_width(teacher.config)
    layers = decoder_layers(teacher)
    prefix = next(name for name, module in teacher.named_modules() if module is layers) + "."
    importance = ffn_importance(teacher, texts)
    narrow = dict(state)
    for new, old in enumerate(kept_layers):
        channels = importance[old].topk(width).indices.sort().values
        both = torch.cat([channels, channels + before])  # gate and up in one tensor
        block = f"{prefix}{new}.{_block_of_reader(layers[old], before)}."
        for name in (name for name in state if name.startswith(block)):
            for axis, size in enumerate(state[name].shape):
                if size in (before, 2 * before):
                    kept = channels if size == before else both
                    narrow[name] = narrow[name].index_select(axis, kept)
    return narrow


def _block_of_reader(layer: Any, width: int) -> str:
    """The name of the feed-forward block within its layer."""
    reader, _ = feed_forward_reader(layer, width)
    name: str = next(name for name, module in layer.named_modules() if module is reader)
    return name.rpartition(".")[0]


def _saved_buffers(model: Any) -> list[tuple[str, torch.Tensor]]:
    saved = model.state_dict().keys()
    return [(name, buffer) for name, buffer in model.named_buffers() if name in saved]


def _tied_names(model: Any) -> set[str]:
    """Names of output weights that are the input embedding itself."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is not embedding.weight:
        return set()
    return {
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if parameter is head.weight
    } - {name for name, parameter in model.named_parameters() if parameter is head.weight}


@dataclass(frozen=True)
class Init:
    """A way to make a student. ``check`` refuses impossible sizes before any work is done."""

    make: Callable[[Any, StudentSpec, Sequence[int] | None, Sequence[torch.Tensor]], Student]
    check: Callable[[Any, StudentSpec], None]


INITS: Mapping[str, Init] = {
    "prune": Init(prune, check_pruning),
    "scratch": Init(from_scratch, check_scratch),
}
