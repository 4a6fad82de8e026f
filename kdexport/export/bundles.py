"""A Hugging Face folder becomes a float32 bundle, committed only when its parity holds."""

import importlib.metadata
import shutil
from pathlib import Path
from typing import Any

from kdexport import __version__
from kdexport.bundle import (
    Bundle,
    Graphs,
    Manifest,
    ModelFacts,
    commit_bundle,
    staged_bundle,
)
from kdexport.errors import InputError, MissingExtraError
from kdexport.export.draft import Draft, save_drafts
from kdexport.export.graph import build_graph
from kdexport.export.parity import check_parity
from kdexport.export.text import chat_template, text_facts
from kdexport.runtime.session import Session, open_graphs
from kdexport.runtime.text import TextCodec

WEIGHTS = "weights.bin"
GRAPH = "model.onnx"
VERSIONS_OF = ("onnx", "mobius-onnx", "onnxruntime", "torch", "transformers", "tokenizers")


def export_bundle(
    checkpoint: Path,
    out: Path,
    *,
    name: str,
    teacher: str | None = None,
    licence: str | None = None,
    recipe_fingerprint: str | None = None,
    reference: Path | None = None,
) -> Bundle:
    """Write a float32 bundle of a Hugging Face folder, with a quality reference if there is one.

    Raises InputError for a model that cannot be exported, ParityError when the graph does not
    compute what the model computes; in both cases nothing is written.
    """
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(str(error.name), "export") from None
    if not (checkpoint / "tokenizer.json").is_file():
        raise InputError("tokenizer.json is missing", where=str(checkpoint))
    config = _config(checkpoint)
    graphs = Graphs(prefill=GRAPH, decode=GRAPH)
    with staged_bundle(out) as staging:
        draft = build_graph(checkpoint)
        manifest = Manifest(
            name=name,
            scheme="fp32",
            graphs=graphs,
            weights=WEIGHTS,
            model=model_facts(draft, config),
            text=text_facts(checkpoint, config),
            versions=_versions(),
            recipe_fingerprint=recipe_fingerprint,
            teacher=teacher,
            licence=licence,
        )
        save_drafts({GRAPH: draft}, staging, WEIGHTS)
        shutil.copyfile(checkpoint / "tokenizer.json", staging / "tokenizer.json")
        template = chat_template(checkpoint)
        if template is not None:
            (staging / "chat_template.jinja").write_text(template, "utf-8", newline="")
        if reference is not None:
            shutil.copyfile(reference, staging / "reference.npz")
        codec = TextCodec(staging / "tokenizer.json", manifest.text, template)
        session = Session(manifest, open_graphs(staging, graphs, None), graphs)
        parity = check_parity(checkpoint, session, codec)
        return commit_bundle(staging, out, manifest.model_copy(update={"parity": parity}))


def model_facts(draft: Draft, config: Any) -> ModelFacts:
    """Sizes, read off the graph's own inputs where it has them."""
    pasts = [i for i in draft.graph.input if i.name.startswith("past_key_values.")]
    dims = [d.dim_value for d in pasts[0].type.tensor_type.shape.dim]
    if dims[3] % 8:
        raise InputError(
            f"heads of {dims[3]} channels cannot be exported",
            remedy="choose n_heads so that hidden_size / n_heads is a multiple of 8",
        )
    logits = draft.writer("logits")
    vocab_size = draft.weights[logits.input[1]].shape[1] if logits else config.vocab_size
    tables = {id(array): array.size for array in draft.weights.values() if array.dtype == "float32"}
    constants = sum(a.size for n, a in draft.weights.items() if "_cache" in n)  # rotary tables
    return ModelFacts(
        family=str(config.model_type),
        n_parameters=int(sum(tables.values()) - constants),
        n_layers=len(pasts) // 2,
        n_kv_heads=int(dims[1]),
        head_dim=int(dims[3]),
        hidden_size=int(config.hidden_size),
        vocab_size=int(vocab_size),
        max_length=int(config.max_position_embeddings),
    )


def _config(checkpoint: Path) -> Any:
    """The model's configuration; InputError where transformers cannot read it."""
    from huggingface_hub.errors import StrictDataclassError

    from kdexport.train.model import load_config

    try:
        return load_config(checkpoint)
    except (OSError, ValueError, KeyError, TypeError, StrictDataclassError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"transformers cannot read config.json ({first[:160]})", where=str(checkpoint)
        ) from error


def _versions() -> dict[str, str]:
    found = {"kdexport": __version__}
    for distribution in VERSIONS_OF:
        found[distribution] = importlib.metadata.version(distribution)
    return found
