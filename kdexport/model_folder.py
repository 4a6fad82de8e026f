"""A model's folder: whether it is whole, and what its JSON files and its weights' headers say.

Knows no sources and no torch.
"""

import json
import math
from pathlib import Path
from typing import Any

from kdexport.errors import InputError

WEIGHT_FILES = "*.safetensors"
BESIDE = ("tokenizer_config.json", "generation_config.json", "special_tokens_map.json")
FP32_BYTES = 4  # of a parameter, as everything here is computed


def has_weights(folder: Path) -> bool:
    """Whether a model's folder has weights in it, beside configuration and tokenizer."""
    return any(folder.glob(WEIGHT_FILES))


def check_model_folder(folder: Path, *, weights: bool = True) -> None:
    """Refuse a folder that is no whole Hugging Face model in safetensors, or brings code.

    ``weights``: False where there need be none.
    """
    if not folder.is_dir():
        raise InputError("there is no such folder", where=str(folder))
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise InputError("is no model: config.json is missing", where=str(folder))
    config = read_config(config_path)
    if "auto_map" in config:
        raise InputError("brings code of its own, which is never run", where=str(config_path))
    files = sorted(folder.glob(WEIGHT_FILES))
    if not files and (folder / "manifest.json").is_file():
        raise InputError("is a bundle; a model in safetensors is wanted", where=str(folder))
    if weights and not files:
        other = [p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth")]
        remedy = f"convert {other[0]} to safetensors" if other else ""
        raise InputError("has no safetensors file", where=str(folder), remedy=remedy)
    for file in files:
        check_safetensors(file)
    if not (folder / "tokenizer.json").is_file():
        raise InputError("tokenizer.json is missing", where=str(folder))
    for name in BESIDE:
        if (folder / name).exists():
            read_config(folder / name)
    _check_ids(folder / "tokenizer.json", config.get("vocab_size"))


def _check_ids(path: Path, vocab_size: Any) -> None:
    """Refuse a tokenizer with ids that the model has no rows for; fewer are fine (padding)."""
    content = read_config(path)
    try:
        vocab = content["model"]["vocab"]
        ids = list(vocab.values()) if isinstance(vocab, dict) else [len(vocab) - 1]
        largest = max([*ids, *(token["id"] for token in content.get("added_tokens") or [])])
        fits = not isinstance(vocab_size, int) or largest < vocab_size
    except (KeyError, TypeError, ValueError):
        raise InputError("is no tokenizer with a vocabulary", where=str(path)) from None
    if not fits:
        raise InputError(
            f"has token {largest} where the model's config.json says vocab_size {vocab_size}",
            where=str(path),
            remedy="take the tokenizer that belongs to the model",
        )


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a model."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError):
        raise InputError("is not JSON", where=str(path)) from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(path)) from None
    if not isinstance(content, dict):
        raise InputError("is not a JSON object", where=str(path))
    return content


def check_safetensors(file: Path) -> int:
    """The number of parameters; header and size of a safetensors file must agree."""
    try:
        size = file.stat().st_size
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if not 0 < length <= size - 8:
                raise ValueError
            header = json.loads(handle.read(length))
        tensors = [v for k, v in header.items() if k != "__metadata__"]
        expected = 8 + length + max([int(v["data_offsets"][1]) for v in tensors], default=0)
        n_parameters = sum(math.prod(map(int, v["shape"])) for v in tensors)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=str(file)) from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        raise InputError("is no safetensors file, or truncated", where=str(file)) from None
    if size != expected:
        raise InputError(
            f"has {size} bytes where its header says {expected}: corrupt or truncated",
            where=str(file),
        )
    return n_parameters
