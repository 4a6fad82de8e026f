"""What a family calls its sizes, and which sizes of heads can be exported.

Families are not named here: optimum's NormalizedConfig knows what each of them says.
"""

from collections.abc import Mapping
from typing import Any

from kdexport.errors import InputError

HEAD_STEP = 8  # what ONNX Runtime's attention asks of a head's size
ROTATED_STEP = 16  # and of the channels of it that are rotated


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
