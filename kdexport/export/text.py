"""What a Hugging Face folder says of text: special tokens and the chat template."""

from pathlib import Path
from typing import Any

from kdexport.bundle import TextFacts, make_facts
from kdexport.model_folder import read_config


def text_facts(checkpoint: Path, config: Any) -> TextFacts:
    """Special tokens, by the generation config where it says more than the model's.

    Raises InputError for a file that is not JSON, or says what can be no token.
    """
    generation = _read_json(checkpoint / "generation_config.json")
    tokenizer = _read_json(checkpoint / "tokenizer_config.json")
    eos = generation.get("eos_token_id", getattr(config, "eos_token_id", None))
    stated = {
        "bos_token_id": getattr(config, "bos_token_id", None),
        "eos_token_ids": eos if isinstance(eos, list) else [] if eos is None else [eos],
        "add_bos": bool(tokenizer.get("add_bos_token", False)),
        "bos_token": _content(tokenizer.get("bos_token")),
        "eos_token": _content(tokenizer.get("eos_token")),
    }
    return make_facts(TextFacts, stated, checkpoint)


def chat_template(checkpoint: Path) -> str | None:
    """The template of a Hugging Face folder, from whichever file has it; None without one.

    Raises InputError for a folder whose tokenizer transformers cannot load.
    """
    from kdexport.train.model import load_tokenizer, template_of

    return template_of(load_tokenizer(checkpoint))


def _content(token: Any) -> str | None:
    """A special token's text, which some configurations wrap in an object."""
    return token.get("content") if isinstance(token, dict) else token


def _read_json(path: Path) -> dict[str, Any]:
    return read_config(path) if path.exists() else {}
