"""How near two texts are in meaning, by word vectors that a package ships.

WordLlama's: a table of 32,000 word pieces in 256 dimensions, trained for similarity of texts, 16 MB
in its wheel. Its files are read without its code, which looks for one of them on the network.
"""

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from kdexport.errors import InputError, first_words

Array = np.ndarray[Any, Any]
PACKAGE = "wordllama"
TOKENIZER = "tokenizers/l2_supercat_tokenizer_config.json"
WEIGHTS = "weights/l2_supercat_256.safetensors"


def load_similarity() -> Callable[[Sequence[str], Sequence[str]], list[float]] | None:
    """The cosine of each text with its counterpart, -1 to 1; None without the package.

    Raises InputError where the package holds other files than it did.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        return None
    folder = Path(found.submodule_search_locations[0])
    try:
        table, tokenizer = (
            read_table(folder / WEIGHTS),
            Tokenizer.from_file(str(folder / TOKENIZER)),
        )
    except Exception as error:  # tokenizers raises plain Exception
        raise InputError(
            f"holds no word vectors that are known here ({first_words(error)})",
            where=str(folder),
            remedy="pip install 'kdexport[scores]'",
        ) from error

    def similarity(texts: Sequence[str], others: Sequence[str]) -> list[float]:
        sides = [[vector_of(text, tokenizer, table) for text in side] for side in (texts, others)]
        return [float(a @ b) for a, b in zip(*sides, strict=True)]

    return similarity


def vector_of(text: str, tokenizer: Tokenizer, table: Array) -> Array:
    """The mean of a text's word vectors, brought to length 1; of no words, zeros. float32 [D]."""
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    mean = table[ids].mean(0) if ids else np.zeros(table.shape[1], dtype=np.float32)
    return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-12))


def read_table(path: Path) -> Array:
    """The only tensor of a safetensors file, float32 [V, D], from half precision."""
    content = path.read_bytes()
    n_header = int.from_bytes(content[:8], "little")
    (facts,) = (
        value for name, value in json.loads(content[8 : 8 + n_header]).items() if name[:1] != "_"
    )
    begin, end = facts["data_offsets"]
    if facts["dtype"] != "F16" or len(facts["shape"]) != 2:
        raise ValueError("the table is not of half precision")
    values = np.frombuffer(content[8 + n_header :][begin:end], dtype="<f2")
    return values.reshape(facts["shape"]).astype(np.float32)
