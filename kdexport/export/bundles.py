"""A Hugging Face folder becomes a float32 bundle, committed only when its parity holds."""

import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any

from kdexport import __version__
from kdexport.bundle import (
    Bundle,
    Graphs,
    Manifest,
    ModelFacts,
    TextFacts,
    commit_bundle,
    staged_bundle,
)
from kdexport.errors import InputError, MissingExtraError
from kdexport.export.draft import Draft, save_drafts
from kdexport.export.graph import build_graph
from kdexport.export.parity import check_parity
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
        from transformers import AutoConfig
    except ImportError as error:
        raise MissingExtraError(str(error.name), "export") from None
    if not (checkpoint / "tokenizer.json").is_file():
        raise InputError("tokenizer.json is missing", where=str(checkpoint))
    config = AutoConfig.from_pretrained(checkpoint, local_files_only=True)
    draft = build_graph(checkpoint)
    graphs = Graphs(prefill=GRAPH, decode=GRAPH)
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
    with staged_bundle(out) as staging:
        save_drafts({GRAPH: draft}, staging, WEIGHTS)
        for file_name in ("tokenizer.json", "chat_template.jinja"):
            if (checkpoint / file_name).is_file():
                shutil.copyfile(checkpoint / file_name, staging / file_name)
        if reference is not None:
            shutil.copyfile(reference, staging / "reference.npz")
        template = staging / "chat_template.jinja"
        codec = TextCodec(
            staging / "tokenizer.json",
            manifest.text,
            template.read_text("utf-8") if template.exists() else None,
        )
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


def text_facts(checkpoint: Path, config: Any) -> TextFacts:
    """Special tokens, by the generation config where it says more than the model's."""
    generation = _read_json(checkpoint / "generation_config.json")
    tokenizer = _read_json(checkpoint / "tokenizer_config.json")
    eos = generation.get("eos_token_id", config.eos_token_id)
    return TextFacts(
        bos_token_id=config.bos_token_id,
        eos_token_ids=eos if isinstance(eos, list) else [] if eos is None else [eos],
        add_bos=bool(tokenizer.get("add_bos_token", False)),
        bos_token=_content(tokenizer.get("bos_token")),
        eos_token=_content(tokenizer.get("eos_token")),
    )


def _content(token: Any) -> str | None:
    """A special token's text, which some configurations wrap in an object."""
    return token.get("content") if isinstance(token, dict) else token


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content


def _versions() -> dict[str, str]:
    found = {"kdexport": __version__}
    for distribution in VERSIONS_OF:
        found[distribution] = importlib.metadata.version(distribution)
    return found
