"""Whether a model's tokens are its teacher's, by their names."""

from pathlib import Path
from typing import Any

import numpy as np

from kdexport.bundle import Bundle, TextFacts
from kdexport.errors import InputError
from kdexport.runtime.quality import load_reference
from kdexport.runtime.text import TextCodec, load_text

Array = np.ndarray[Any, Any]
REMEDY = "name the teacher that the model was distilled from"


def kept_ids(own: TextCodec, teacher: TextCodec) -> Array | None:
    """The teacher's id of each of the model's tokens, int64 [V]; None where they are the same.

    Raises InputError where one of the model's tokens is not the teacher's.
    """
    ours, theirs = (codec.tokenizer.get_vocab(with_added_tokens=True) for codec in (own, teacher))
    if ours == theirs:
        return None
    names = sorted(ours, key=ours.__getitem__)
    missing = next((name for name in names if name not in theirs), None)
    if missing is not None or sorted(ours.values()) != list(range(len(ours))):
        raise InputError(
            f"its token {missing!r} is not the teacher's", where=own.where, remedy=REMEDY
        )
    return np.asarray([theirs[name] for name in names], dtype=np.int64)


def check_teacher(teacher: Path, bundle: Bundle, reference: Path) -> None:
    """Refuse a teacher, a Hugging Face folder, whose tokens a bundle's reference is not of.

    Of another one the KL would be a number without a meaning, if there were one at all.
    """
    its = TextCodec(teacher / "tokenizer.json", TextFacts(), None)
    ours, theirs = (
        codec.tokenizer.get_vocab(with_added_tokens=True) for codec in (load_text(bundle), its)
    )
    told = load_reference(reference).kept_ids.tolist()
    for token, number in ours.items():
        if number >= len(told) or theirs.get(token) != told[number]:
            raise InputError(
                f"is not the teacher of {bundle.path}: their token {token!r} is not the same",
                where=str(teacher),
                remedy=REMEDY,
            )
