"""A Hugging Face folder becomes a float32 bundle, committed only when its parity holds."""

import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdexport import __version__
from kdexport.bundle import (
    ORIGIN,
    REFERENCE,
    WEIGHTS,
    Bundle,
    Graphs,
    Manifest,
    ModelFacts,
    TextFacts,
    commit_bundle,
    make_facts,
    staged_bundle,
)
from kdexport.errors import InputError, MissingExtraError
from kdexport.export import graph, optimum_graph
from kdexport.export.companions import write_companions
from kdexport.export.draft import Draft, save_drafts
from kdexport.export.gate import Gate
from kdexport.export.layers import count_parameters, longest_text
from kdexport.export.parity import check_parity
from kdexport.export.standard import STANDARD, standard_graph
from kdexport.export.text import chat_template, text_facts
from kdexport.model_folder import FP32_BYTES, check_safetensors
from kdexport.runtime.quality import load_reference
from kdexport.runtime.session import session_of
from kdexport.runtime.text import TextCodec
from kdexport.system.machine import need_room

GRAPH = "onnx/decode.onnx"
VERSIONS_OF = ("onnx", "onnxruntime", "torch", "transformers", "tokenizers")


@dataclass(frozen=True)
class Backend:
    """Who builds graphs: the distribution that does it, and how it is asked.

    ``readable``: for the time of a block, a checkpoint as the libraries beside it read it.
    """

    distribution: str
    readable: Callable[[Path], AbstractContextManager[Path]]
    check_family: Callable[[Path], None]
    build_graph: Callable[[Path], Draft]


BACKENDS: Mapping[str, Backend] = {
    "mobius": Backend("mobius-onnx", nullcontext, graph.check_family, graph.build_graph),
    "optimum": Backend(
        "optimum-onnx",
        optimum_graph.readable,
        optimum_graph.check_family,
        optimum_graph.build_graph,
    ),
}


def export_bundle(
    checkpoint: Path,
    out: Path,
    *,
    name: str,
    teacher: str | None = None,
    licence: str | None = None,
    recipe_fingerprint: str | None = None,
    reference: Path | None = None,
    origin: Mapping[str, str] | None = None,
    backend: str = "mobius",
    gate: Gate | None = None,
) -> Bundle:
    """Write a float32 bundle of a Hugging Face folder, with a quality reference if there is one.

    ``origin``: how the model came to be, for its card. ``backend``: of BACKENDS. Writes nothing and
    raises InputError for a model that cannot be built, ParityError for a graph that computes
    something else, and ThresholdError where ``gate`` does.
    """
    _check_libraries()
    from kdexport.train.model import load_config

    maker = BACKENDS[backend]
    with maker.readable(checkpoint) as checkpoint:
        if not (checkpoint / "tokenizer.json").is_file():
            raise InputError("tokenizer.json is missing", where=str(checkpoint))
        maker.check_family(checkpoint)
        config = load_config(checkpoint)
        text = text_facts(checkpoint, config)
        codec = _codec(checkpoint, text, config.vocab_size)
        if reference is not None:
            load_reference(reference)
        parts = sorted(checkpoint.glob("*.safetensors"))
        n_bytes = FP32_BYTES * sum(check_safetensors(part) for part in parts)
        need_room(Path(tempfile.gettempdir()), n_bytes)  # build_graph's
        graphs = Graphs(prefill=GRAPH, decode=GRAPH, standard=STANDARD)
        with staged_bundle(out, n_bytes) as staging:
            draft = maker.build_graph(checkpoint)
            manifest = Manifest(
                name=name,
                scheme="fp32",
                graphs=graphs,
                model=model_facts(draft, config, checkpoint),
                text=text,
                versions=_versions(maker.distribution),
                recipe_fingerprint=recipe_fingerprint,
                teacher=teacher,
                licence=licence,
            )
            standard = standard_graph(draft)
            save_drafts({GRAPH: draft, STANDARD: standard}, staging, WEIGHTS)
            write_companions(staging, checkpoint, config, manifest, standard, codec.template)
            shutil.copyfile(checkpoint / "tokenizer.json", staging / "tokenizer.json")
            _write_more(staging, codec.template, reference, origin)
            session = session_of(manifest, staging, GRAPH)
            parity = check_parity(checkpoint, session, codec)
            if gate is not None:
                gate.check(staging, lambda: session)
            return commit_bundle(staging, out, manifest.model_copy(update={"parity": parity}))


def _write_more(
    staging: Path,
    template: str | None,
    reference: Path | None,
    origin: Mapping[str, str] | None,
) -> None:
    """What not every bundle has."""
    if template is not None:
        (staging / "chat_template.jinja").write_text(template, "utf-8", newline="")
    if reference is not None:
        shutil.copyfile(reference, staging / REFERENCE)
    if origin:
        told = json.dumps(origin, indent=1, ensure_ascii=False)
        (staging / ORIGIN).write_text(told + "\n", "utf-8")


def _check_libraries() -> None:
    """Refuse to begin where what every backend needs is missing."""
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(str(error.name), "export") from None


def _codec(checkpoint: Path, text: TextFacts, vocab_size: int) -> TextCodec:
    """Tokenizer and chat template; InputError where the model could not be asked through them."""
    codec = TextCodec(checkpoint / "tokenizer.json", text, chat_template(checkpoint))
    largest = max(codec.tokenizer.get_vocab().values(), default=0)
    if text.add_bos and text.bos_token_id is not None:
        largest = max(largest, text.bos_token_id)
    if largest >= vocab_size:
        raise InputError(
            f"the tokenizer has token {largest}, the model a vocabulary of {vocab_size}",
            where=str(checkpoint),
            remedy="give the model the tokenizer that it was trained with",
        )
    codec.render_chat([{"role": "user", "content": "Hello"}])
    return codec


def model_facts(draft: Draft, config: Any, checkpoint: Path) -> ModelFacts:
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
    stated = {
        "family": str(config.model_type),
        "n_parameters": count_parameters(config),
        "n_layers": len(pasts) // 2,
        "n_kv_heads": int(dims[1]),
        "head_dim": int(dims[3]),
        "hidden_size": config.hidden_size,
        "vocab_size": int(vocab_size),
        "max_length": longest_text(config),
    }
    return make_facts(ModelFacts, stated, checkpoint / "config.json")


def _versions(builder: str) -> dict[str, str]:
    found = {"kdexport": __version__}
    for distribution in (*VERSIONS_OF, builder):
        found[distribution] = importlib.metadata.version(distribution)
    return found
