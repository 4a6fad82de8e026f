"""A Hugging Face folder becomes a fused graph, through mobius-onnx.

mobius-onnx is young, so nothing else imports it; `parity` checks every graph that comes from here.
"""

import contextlib
import io
import logging
import tempfile
from pathlib import Path
from typing import Any

from kdexport.errors import InputError, MissingExtraError, first_words, full_disk
from kdexport.export.draft import Draft, load_draft
from kdexport.export.layers import read_layers
from kdexport.export.passes import PASSES
from kdexport.export.passes.own_attention import own_attention

KNOWN_INPUTS = {
    "input_ids",
    "seqlens_k",
    "total_sequence_length",
    "position_ids",
    "logit_rows",
}


def build_graph(checkpoint: Path) -> Draft:
    """The model's graph under the contract of docs/architecture.md, float32.

    Raises InputError, before anything is built where that can be, for a model type that is no
    decoder with attention in every layer or that mobius-onnx does not know, for weights that are
    quantized already or not finite.
    """
    try:
        import mobius
    except ImportError:
        raise MissingExtraError("mobius-onnx", "export") from None
    from kdexport.train.model import load_config

    config = load_config(checkpoint)
    check_weights(checkpoint, config)
    try:
        layers = read_layers(config)
        if config.model_type not in mobius.registry:
            raise InputError(f"unknown to mobius-onnx {mobius.__version__}")
        draft = _built(checkpoint)
        own_attention(draft, layers)
        for rewrite in PASSES:
            rewrite(draft)
            draft.remove_unused()
        _check_inputs(draft, len(layers))
    except InputError as error:
        if error.where:  # not of the model's type
            raise
        raise InputError(
            f"{config.model_type} models cannot be exported: {error.message}",
            where=str(checkpoint),
        ) from error
    return draft


def check_weights(checkpoint: Path, config: Any) -> None:
    """Refuse weights that are not finite, or are in a quantizer's own form."""
    import torch
    from safetensors import safe_open

    quantizer = getattr(config, "quantization_config", None)
    if quantizer:
        method = dict(quantizer).get("quant_method", "it says")
        raise InputError(
            f"has weights that are quantized already ({method})",
            where=str(checkpoint),
            remedy="export the model that they were made from",
        )
    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (the file is no mapping)
                tensor = file.get_tensor(name)
                if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                    raise InputError(f"{name} has values that are not finite", where=str(path))


def _built(checkpoint: Path) -> Draft:
    """What mobius-onnx makes of a checkpoint."""
    import mobius
    from mobius.__main__ import main as mobius_main

    with tempfile.TemporaryDirectory(prefix="kdexport-") as folder:
        arguments = ["build", "--config", str(checkpoint), "--ep", "cpu", folder]
        try:
            with _silence():
                mobius_main(arguments)
        except Exception as error:  # what a young builder raises for a model it half knows
            raise full_disk(error, folder) or InputError(
                f"mobius-onnx {mobius.__version__} fails ({first_words(error)})"
            ) from error
        return load_draft(Path(folder) / "model.onnx")


def _check_inputs(draft: Draft, n_layers: int) -> None:
    """Refuse a graph that wants to be fed what the runtime does not know."""
    known = {f"past_key_values.{i}.{part}" for i in range(n_layers) for part in ("key", "value")}
    strange = {value.name for value in draft.graph.input} - known - KNOWN_INPUTS
    if strange:
        raise InputError(f"their graph asks for {sorted(strange)[0]}")


@contextlib.contextmanager
def _silence():  # type: ignore[no-untyped-def]
    """Without the builder's own bars and lines."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            yield
    finally:
        logging.disable(before)
