"""A Hugging Face folder becomes a fused graph, through mobius-onnx.

mobius-onnx is young, so nothing else imports it; `parity` checks every graph that comes from here.
"""

import contextlib
import io
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kdexport.errors import InputError, MissingExtraError, first_words, full_disk
from kdexport.export.draft import Draft, load_draft
from kdexport.export.layers import check_decoder, read_model
from kdexport.export.passes import PASSES
from kdexport.export.passes.own_attention import own_attention
from kdexport.export.passes.own_embedding import own_embedding
from kdexport.model_folder import read_config

ALSO_CALLED = {"mlp_bias": "use_mlp_bias"}
"""What mobius-onnx 0.1.0 calls otherwise than transformers does, and leaves out unsaid."""
KNOWN_INPUTS = {
    "input_ids",
    "seqlens_k",
    "total_sequence_length",
    "position_ids",
    "logit_rows",
}


def build_graph(checkpoint: Path) -> Draft:
    """The model's graph under the contract of docs/architecture.md, float32.

    Raises InputError as `check_family` does, for weights that are quantized already or not finite,
    and for what mobius-onnx fails at.
    """
    from kdexport.train.model import load_config

    check_family(checkpoint)
    config = load_config(checkpoint)
    check_weights(checkpoint, config)
    with named(checkpoint, config):
        words = read_model(config)
        draft = _built(checkpoint)
        own_attention(draft, words.layers)
        own_embedding(draft, words.embedding_scale)
        for rewrite in PASSES:
            rewrite(draft)
            draft.remove_unused()
        _check_inputs(draft, len(words.layers))
    return draft


def check_family(checkpoint: Path) -> None:
    """Refuse by its name a model type that cannot be exported; asks no more than the configuration.

    Raises InputError for what is no decoder of text with attention in every layer, or that
    mobius-onnx does not know.
    """
    from kdexport.train.model import load_config

    try:
        import mobius
    except ImportError:
        raise MissingExtraError("mobius-onnx", "export") from None
    config = load_config(checkpoint)
    with named(checkpoint, config):
        check_decoder(config)
        if config.model_type not in mobius.registry:
            raise InputError(f"unknown to mobius-onnx {mobius.__version__}")


@contextlib.contextmanager
def named(checkpoint: Path, config: Any) -> Iterator[None]:
    """Say of which model type a reason is that no place is known for."""
    try:
        yield
    except InputError as error:
        if error.where:
            raise
        raise InputError(
            f"{config.model_type} models cannot be exported: {error.message}",
            where=str(checkpoint),
            remedy=error.remedy,
        ) from error


def check_weights(checkpoint: Path, config: Any) -> None:
    """Refuse weights that are not finite, or are in a quantizer's own form."""
    import torch
    from safetensors import safe_open

    quantizer = getattr(config, "quantization_config", None)
    if quantizer:
        named = quantizer.get("quant_method") if isinstance(quantizer, dict) else None
        raise InputError(
            f"has weights that are quantized already ({named or 'by its configuration'})",
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
        asked = _renamed(checkpoint, Path(folder) / "checkpoint")
        arguments = ["build", "--config", str(asked), "--ep", "cpu", folder]
        try:
            with silence():
                mobius_main(arguments)
        except Exception as error:  # what a young builder raises for a model it half knows
            raise full_disk(error, folder) or InputError(
                f"mobius-onnx {mobius.__version__} fails ({first_words(error)})"
            ) from error
        draft = load_draft(Path(folder) / "model.onnx")
    draft.graph.name = "model"  # where the builder has the name of a folder
    return draft


def _renamed(checkpoint: Path, folder: Path) -> Path:
    """The checkpoint by links, its configuration with the names that mobius-onnx looks for."""
    folder.mkdir()
    config = read_config(checkpoint / "config.json")
    config |= {name: config[known] for known, name in ALSO_CALLED.items() if known in config}
    link(checkpoint, folder, {"config.json": config})
    return folder


def link(checkpoint: Path, folder: Path, rewritten: Mapping[str, object]) -> None:
    """The files of a checkpoint by links in ``folder``, some of its JSON files written anew."""
    for file in checkpoint.iterdir():
        if file.name not in rewritten:
            (folder / file.name).symlink_to(file.resolve())
    for name, content in rewritten.items():
        (folder / name).write_text(json.dumps(content), "utf-8")


def _check_inputs(draft: Draft, n_layers: int) -> None:
    """Refuse a graph that wants to be fed what the runtime does not know."""
    known = {f"past_key_values.{i}.{part}" for i in range(n_layers) for part in ("key", "value")}
    strange = {value.name for value in draft.graph.input} - known - KNOWN_INPUTS
    if strange:
        raise InputError(f"their graph asks for {sorted(strange)[0]}")


@contextlib.contextmanager
def silence():  # type: ignore[no-untyped-def]
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
