"""What a family calls its sizes, and configurations with other ones.

Families are not named here: optimum's NormalizedConfig knows what each of them says.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kdexport.errors import InputError
from kdexport.system.console import quiet_transformers

HEAD_STEP = 8  # what ONNX Runtime's attention asks of a head's size
ROTATED_STEP = 16  # and of the channels of it that are rotated
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class StudentSpec:
    """The student's sizes; None keeps the teacher's."""

    n_layers: int | None = None
    hidden_size: int | None = None
    n_heads: int | None = None
    n_kv_heads: int | None = None
    intermediate_size: int | None = None


def size_names(config: Any) -> dict[str, str | None]:
    """What this family calls its sizes, by optimum's NormalizedConfig; None for what it lacks."""
    from optimum.utils import NormalizedConfigManager, NormalizedTextConfig

    try:
        normal = NormalizedConfigManager.get_normalized_config_class(config.model_type)(config)
    except KeyError:  # younger than optimum: fine where it keeps to the usual names
        normal = NormalizedTextConfig(config)
        if not all(hasattr(config, name) for name in (normal.NUM_LAYERS, normal.HIDDEN_SIZE)):
            raise InputError(
                f"{config.model_type} models are not known to optimum's NormalizedConfig",
                where="teacher.source",
            ) from None
    intermediate = "n_inner" if hasattr(config, "n_inner") else "intermediate_size"
    kv_heads = "num_key_value_heads" if hasattr(config, "num_key_value_heads") else None
    return {
        "n_layers": normal.NUM_LAYERS,
        "hidden_size": normal.HIDDEN_SIZE,
        "n_heads": normal.NUM_ATTENTION_HEADS,
        "n_kv_heads": kv_heads,
        "intermediate_size": intermediate if hasattr(config, intermediate) else None,
        "vocab_size": normal.VOCAB_SIZE,
    }


def settle_heads(config: Any, names: Mapping[str, str | None]) -> None:
    """Head size follows width and heads, which must divide."""
    width = getattr(config, names["hidden_size"] or "")
    n_heads = getattr(config, names["n_heads"] or "")
    if width % n_heads:
        raise InputError(
            f"hidden_size {width} is not a multiple of n_heads {n_heads}", where="student"
        )
    n_kv_heads = getattr(config, names["n_kv_heads"] or "", n_heads)
    if n_heads % n_kv_heads:
        raise InputError(
            f"n_heads {n_heads} is not a multiple of n_kv_heads {n_kv_heads}", where="student"
        )
    step = _head_step(config)
    if width // n_heads % step:
        raise InputError(
            f"heads of {width // n_heads} channels cannot be exported",
            where="student",
            remedy=f"choose n_heads so that hidden_size / n_heads is a multiple of {step}",
        )
    if getattr(config, "head_dim", None) is not None:
        config.head_dim = width // n_heads


def _head_step(config: Any) -> int:
    """What the size of this family's heads must be a multiple of."""
    rotation = getattr(config, "rope_parameters", None)
    share = rotation.get("partial_rotary_factor", 1.0) if rotation else 0.0
    steps = range(HEAD_STEP, ROTATED_STEP * HEAD_STEP * HEAD_STEP, HEAD_STEP)
    return next((step for step in steps if int(step * share) % ROTATED_STEP == 0), HEAD_STEP)


def head_size(config: Any) -> int:
    """Channels of a head."""
    names = size_names(config)
    stated = getattr(config, "head_dim", None)
    width, n_heads = (getattr(config, names[n] or "") for n in ("hidden_size", "n_heads"))
    return int(stated or width // n_heads)


def configured_width(config: Any) -> int:
    """Channels of the feed-forward blocks; GPT-2's configuration leaves it unsaid at 4 x hidden."""
    name = size_names(config)["intermediate_size"]
    return int((name and getattr(config, name)) or 4 * config.hidden_size)


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
        renumber_special_tokens(new, kept_ids)
        setattr(new, names["vocab_size"] or "vocab_size", len(kept_ids))
    return new


def narrowed_config(
    config: Any,
    n_channels: int | None = None,
    n_groups: int | None = None,
    n_hidden: int | None = None,
) -> Any:
    """A copy of a configuration with fewer feed-forward channels, heads or channels of the stream.

    Heads are as large as before. ``n_groups``: key-value heads, each with as many query heads as
    before. ``n_hidden``: channels of the residual stream.
    """
    new = copy.deepcopy(config)
    names = size_names(config)
    if n_hidden is not None:
        new.head_dim = head_size(config)
        setattr(new, names["hidden_size"] or "", n_hidden)
    if n_channels is not None:
        setattr(new, names["intermediate_size"] or "", n_channels)
    if n_groups is not None:
        n_heads = getattr(config, names["n_heads"] or "")
        n_before = getattr(config, names["n_kv_heads"] or "", None) or n_heads
        new.head_dim = head_size(config)
        setattr(new, names["n_heads"] or "", n_heads // n_before * n_groups)
        if names["n_kv_heads"]:
            setattr(new, names["n_kv_heads"], n_groups)
    return new


def has_own_head_size(config: Any) -> bool:
    """Whether heads of a family may be of another size than hidden_size / n_heads."""
    from transformers import AutoModelForCausalLM

    one, other = (resized_config(config, StudentSpec(n_layers=1), None) for _ in range(2))
    other.head_dim = 2 * head_size(config)
    with quiet_transformers(), torch.device("meta"):
        shapes = [
            [tensor.shape for tensor in AutoModelForCausalLM.from_config(of).parameters()]
            for of in (one, other)
        ]
    return shapes[0] != shapes[1]


def renumber_special_tokens(config: Any, kept_ids: Sequence[int]) -> None:
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


def new_model(config: Any, teacher: Any, kept_ids: Sequence[int] | None) -> Any:
    """A model with random weights that ends its texts where the teacher does."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name in SPECIAL_IDS:
        setattr(model.generation_config, name, getattr(teacher.generation_config, name, None))
    if kept_ids is not None:
        renumber_special_tokens(model.generation_config, kept_ids)
    return model
