"""What a Hugging Face folder says of text: special tokens and the chat template."""

import json
from pathlib import Path
from typing import Any

from kdexport.bundle import TextFacts


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


def chat_template(checkpoint: Path) -> str | None:
    """The template of a Hugging Face folder, from whichever file has it; None without one."""
    from kdexport.train.model import load_tokenizer

    return template_of(load_tokenizer(checkpoint))


def template_of(tokenizer: Any) -> str | None:
    """The template of transformers' tokenizer; of several the one named "default", as it does."""
    found = tokenizer.chat_template
    if isinstance(found, dict):
        found = found.get("default")
    return str(found) if found else None


def _content(token: Any) -> str | None:
    """A special token's text, which some configurations wrap in an object."""
    return token.get("content") if isinstance(token, dict) else token


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content
