"""The small files by which other tools know a bundle: configurations of model, text and runtime.

They repeat what the manifest and the checkpoint say; kdexport itself reads none of them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdexport.bundle import Manifest
from kdexport.export.draft import Draft
from kdexport.export.standard import STANDARD, shares_buffers
from kdexport.model_folder import read_config

Facts = dict[str, Any]
FROM_TOKENIZER_JSON = "PreTrainedTokenizerFast"  # the class that adds nothing of its own


def write_companions(
    folder: Path,
    checkpoint: Path,
    config: Any,
    manifest: Manifest,
    standard: Draft,
    template: str | None,
) -> None:
    """Write the files beside a bundle's own.

    ``config``: transformers' of the checkpoint; ``standard``: the graph for other tools;
    ``template``: of chats, or None.
    """
    inputs = [i.name for i in standard.graph.input if not i.name.startswith("past_key_values.")]
    files: Mapping[str, Facts] = {
        "config.json": _model_config(checkpoint),
        "generation_config.json": _generation_config(checkpoint, manifest),
        "tokenizer_config.json": _tokenizer_config(checkpoint, manifest, template),
        "genai_config.json": _genai_config(manifest, config, inputs, shares_buffers(standard)),
    }
    for name, facts in files.items():
        text = json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
        (folder / name).write_text(text, "utf-8", newline="")


def _model_config(checkpoint: Path) -> Facts:
    """The checkpoint's own, and where transformers.js finds graph and weights."""
    graph = STANDARD.rpartition("/")[2]
    stated = {"dtype": "fp32", "use_external_data_format": {graph: 1}}
    return read_config(checkpoint / "config.json") | {"transformers.js_config": stated}


def _generation_config(checkpoint: Path, manifest: Manifest) -> Facts:
    path = checkpoint / "generation_config.json"
    text = manifest.text
    stated: Facts = {"bos_token_id": text.bos_token_id, "eos_token_id": text.eos_token_ids or None}
    own = read_config(path) if path.exists() else {}
    return {name: value for name, value in (own | stated).items() if value is not None}


def _tokenizer_config(checkpoint: Path, manifest: Manifest, template: str | None) -> Facts:
    """The checkpoint's own, with the class that reads tokenizer.json and nothing else.

    A family's own class is another in every version of transformers, and may add tokens.
    transformers.js looks for the chat template here only.
    """
    path = checkpoint / "tokenizer_config.json"
    own = read_config(path) if path.exists() else {}
    stated = {
        "tokenizer_class": FROM_TOKENIZER_JSON,
        "model_max_length": manifest.model.max_length,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        "bos_token": manifest.text.bos_token,
        "eos_token": manifest.text.eos_token,
        "chat_template": template,
    }
    kept = own.keys() - {"auto_map", "backend", "chat_template", "is_local"}
    return {name: own[name] for name in sorted(kept)} | {
        name: value for name, value in stated.items() if value is not None
    }


def _genai_config(manifest: Manifest, config: Any, inputs: Sequence[str], shares: bool) -> Facts:
    """What onnxruntime-genai and lm-eval read: the graph's names and the model's sizes.

    ``shares``: whether past and present may be one buffer.
    """
    model, text = manifest.model, manifest.text
    names = {f"past_{part}_names": f"past_key_values.%d.{part}" for part in ("key", "value")}
    made = {f"present_{part}_names": f"present.%d.{part}" for part in ("key", "value")}
    decoder = {
        "session_options": {"provider_options": []},
        "filename": STANDARD,
        "head_size": model.head_dim,
        "hidden_size": model.hidden_size,
        "inputs": {name: name for name in inputs} | names,
        "outputs": {"logits": "logits"} | made,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": model.n_layers,
        "num_key_value_heads": model.n_kv_heads,
    }
    pad = getattr(config, "pad_token_id", None)
    stated = {
        "type": "decoder",
        "context_length": model.max_length,
        "vocab_size": model.vocab_size,
        "bos_token_id": text.bos_token_id,
        "eos_token_id": text.eos_token_ids,
        "pad_token_id": next(iter(text.eos_token_ids), 0) if pad is None else pad,
        "decoder": decoder,
    }
    return {
        "model": {name: value for name, value in stated.items() if value is not None},
        "search": {
            "do_sample": False,
            "max_length": model.max_length,
            "past_present_share_buffer": shares,
        },
    }
