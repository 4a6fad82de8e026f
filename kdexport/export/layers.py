"""What transformers' own model says of how each layer attends: window, scale, rotary tables.

A graph builder reads the same from the configuration and gets some of it wrong. Knows no family by
name: a layer's kind, a module's attributes and the rotary module's own output are asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdexport.errors import InputError, first_words
from kdexport.system.console import quiet_transformers

Array = np.ndarray[Any, Any]
FULL, SLIDING = "full_attention", "sliding_attention"
NOT_A_DECODER = {
    "is_encoder_decoder": "they have an encoder",
    "vision_config": "they read images too",
    "audio_config": "they read sound too",
    "final_logit_softcapping": "their logits are capped (final_logit_softcapping)",
}


@dataclass(frozen=True)
class LayerAttention:
    """How one layer attends.

    ``window``: how many tokens a token sees, itself included; None: all before it. ``scale``: of
    queries times keys; None where the model does not say. ``softcap``: 0 without one. ``rotary``:
    cosines and sines, float32 [longest text, rotated channels / 2]; None without rotation.
    """

    window: int | None
    scale: float | None
    softcap: float
    rotary: tuple[Array, Array] | None


@dataclass(frozen=True)
class OwnWords:
    """What a model says of itself. ``embedding_scale``: of embedded tokens; None where unsaid."""

    layers: list[LayerAttention]
    embedding_scale: float | None


def check_decoder(config: Any) -> None:
    """Raise InputError, saying why, for a configuration that is of no decoder of text alone."""
    for name, reason in NOT_A_DECODER.items():
        if getattr(config, name, None):
            raise InputError(reason)
    for name in ("num_hidden_layers", "max_position_embeddings", "vocab_size", "hidden_size"):
        if not isinstance(getattr(config, name, None), int):
            raise InputError(f"their configuration says no {name}")
    _kinds(config)


def read_model(config: Any) -> OwnWords:
    """Each layer's attention and the scale of embeddings, of a transformers configuration.

    Raises InputError for what is no decoder, or does more in a layer than attend to all tokens or
    to the latest ones.
    """
    import torch

    check_decoder(config)
    model = _without_weights(config)
    kinds = _kinds(config)
    rotary = next((m for m in model.modules() if hasattr(m, "rope_type")), None)
    own = None if rotary is None else type(rotary)(config)
    longest = longest_text(config)
    with torch.no_grad():
        tables = {kind: None if own is None else _tables(own, kind, longest) for kind in set(kinds)}
    softcap = getattr(config, "attn_logit_softcapping", None) or 0.0
    scales = _scales(model, len(kinds))
    window = getattr(config, "sliding_window", None)
    layers = [
        LayerAttention(window if kind == SLIDING else None, scale, float(softcap), tables[kind])
        for kind, scale in zip(kinds, scales, strict=True)
    ]
    return OwnWords(layers, getattr(model.get_input_embeddings(), "scalar_embed_scale", None))


def count_parameters(config: Any) -> int:
    """Learnt numbers of a model, those of a tied head once."""
    return int(_without_weights(config).num_parameters())


def longest_text(config: Any) -> int:
    """How many tokens a text may have for one and the same rotation to hold of all of it.

    Rotary factors of the kind longrope (Ding et al. 2024) are others beyond the original length,
    for the whole of the text; a cache of keys cannot follow.
    """
    longest: int = config.max_position_embeddings
    for stated in _rope_parameters(config):
        if stated.get("rope_type") == "longrope":
            longest = min(longest, int(_made_for(config, stated) or longest))
    return longest


def lengths_that_matter(config: Any) -> list[int]:
    """Lengths beyond which texts are read otherwise: windows, and where scaled rotation begins."""
    stated = [
        _made_for(config, parameters)
        for parameters in _rope_parameters(config)
        if parameters.get("rope_type", "default") != "default"
    ]
    if SLIDING in _kinds(config):
        stated.append(config.sliding_window)
    return sorted({length for length in stated if length and length < longest_text(config)})


def _rope_parameters(config: Any) -> list[dict[str, Any]]:
    """The rotary parameters, of which some models have one set for each kind of layer."""
    stated = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    nested = [part for part in stated.values() if isinstance(part, dict)]
    return nested or [stated]


def _made_for(config: Any, rope_parameters: dict[str, Any]) -> int | None:
    """The length of the texts that the model was first trained on, where a longer one is meant."""
    name = "original_max_position_embeddings"
    return rope_parameters.get(name) or getattr(config, name, None)


def _without_weights(config: Any) -> Any:
    """The causal language model that transformers makes, its tensors without memory."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with quiet_transformers(), torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except Exception as error:  # of what a model's own constructor may raise
        raise InputError(
            f"transformers makes no causal language model of them ({first_words(error)})"
        ) from error


def _kinds(config: Any) -> Sequence[str]:
    """Each layer's kind. Without a list of them, a window that the family declares is of all."""
    stated = getattr(config, "layer_types", None)
    if stated is None:
        declared = hasattr(type(config), "sliding_window") and config.sliding_window
        stated = [SLIDING if declared else FULL] * config.num_hidden_layers
    strange = sorted(set(stated) - {FULL, SLIDING})
    if strange:
        raise InputError(f"they have layers of {strange[0]}")
    return list(stated)


def _scales(model: Any, n_layers: int) -> list[float | None]:
    """What each layer multiplies queries and keys with, where its attention keeps it."""
    from torch.nn import ModuleList

    layers = next(m for m in model.modules() if isinstance(m, ModuleList) and len(m) == n_layers)
    found: list[float | None] = []
    for layer in layers:
        stated = (getattr(module, "scaling", None) for module in layer.modules())
        found.append(next((scale for scale in stated if isinstance(scale, float)), None))
    return found


def _tables(rotary: Any, kind: str, longest: int) -> tuple[Array, Array]:
    """Cosines and sines of every position, each frequency once."""
    import torch

    of_kind = {"layer_type": kind} if isinstance(rotary.rope_type, dict) else {}
    cos, sin = rotary(torch.zeros(1), torch.arange(longest)[None], **of_kind)
    return _once(cos[0].numpy()), _once(sin[0].numpy())


def _once(table: Array) -> Array:
    """A table whose frequencies stand twice, as halves or as neighbours, with each of them once."""
    half = table.shape[1] // 2
    if np.array_equal(table[:, :half], table[:, half:]):
        return np.ascontiguousarray(table[:, :half])
    return np.ascontiguousarray(table[:, 0::2])
