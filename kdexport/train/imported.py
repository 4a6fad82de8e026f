"""Targets that another program computed: checked, and made columns of a cache.

Knows rows of files and examples; no model. A row is one text: ``id``; ``ids``, its tokens as the
teacher numbers them; ``first``, the index of the first token whose distribution is given; for each
token from there on, ``top_ids`` and ``top_logprobs``, the likeliest tokens at temperature 1.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdexport.errors import InputError
from kdexport.train.cache import Columns
from kdexport.train.columns import id_type
from kdexport.train.data import Encoded
from kdexport.train.target_files import rows_of
from kdexport.train.targets import LOWEST, NO_TOKEN

TOO_MUCH = 1e-3  # of a log-probability over 0, or of a sum over 1: what rounding may leave
ROUNDING = 4e-6  # of a sum of float32 log-probabilities, each of which is a difference of logits
TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class Names:
    """Whose tokens are whose. ``teacher``: int64 [V], the teacher's id of each of the student's."""

    teacher: np.ndarray
    teacher_size: int

    def student(self) -> np.ndarray:
        """The student's id of each of the teacher's tokens, int64 [teacher_size]; -1: none."""
        own = np.full(self.teacher_size, -1, dtype=np.int64)
        own[self.teacher] = np.arange(len(self.teacher))
        return own


def asked_texts(examples: Iterable[Encoded], names: Names) -> Iterator[dict[str, Any]]:
    """What the other program has to know of each text: ``id``, ``ids``, ``first``."""
    for example in examples:
        ids = names.teacher[example.ids].tolist()
        yield {"id": example.example_id, "ids": ids, "first": example.first_target}


def read_targets(
    files: Sequence[Path],
    examples: Sequence[Encoded],
    names: Names,
    top_k: int,
    *,
    needed: Collection[str] | None = None,
) -> Iterator[tuple[Sequence[Encoded], Columns]]:
    """Each example of the files, and its columns: ``ids``, ``logprobs`` [N, top_k], ``tail`` [N].

    Of the tokens given, the ``top_k`` likeliest that the student has; where there are fewer, the
    rest of a row is empty. The teacher's distribution is renormalised without the tokens given that
    the student lacks. Rows of other texts are passed over. Raises InputError that names the row;
    at the end, for examples that are in none of the files; ``needed``: the ids of those that must
    be, None for all.
    """
    wanted = {example.example_id: example for example in examples}
    own = names.student()
    seen: dict[str, str] = {}
    for path in files:
        for where, row in rows_of(path):
            name = str(row.get("id"))
            if name not in wanted:
                continue
            if name in seen:
                raise InputError(f"the text {name!r} was in {seen[name]} already", where=where)
            seen[name] = where
            example = wanted[name]
            _check_ids(row, names.teacher[example.ids], where)
            ids, logprobs = _rows_of(row, example, len(own), where)
            yield [example], _columns(own, ids, logprobs, top_k, len(names.teacher))
    must_be = [name for name in wanted if needed is None or name in needed]
    missing = [name for name in must_be if name not in seen]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(must_be)} texts are in no file, {missing[0]!r} is one",
            where=", ".join(map(str, files)),
            remedy="have targets computed for every line that --texts writes",
        )


def _check_ids(row: Mapping[str, Any], ours: np.ndarray, where: str) -> None:
    ids = row.get("ids")
    if not isinstance(ids, list):
        raise InputError("ids is missing, or no list", where=where)
    remedy = "compute targets for the token ids that --texts writes"
    if len(ids) != len(ours):
        raise InputError(f"has {len(ids)} tokens, our text {len(ours)}", where=where, remedy=remedy)
    for place, (theirs, own) in enumerate(zip(ids, ours.tolist(), strict=True)):
        if theirs != own:
            raise InputError(
                f"ids: token {place} is {theirs}, in our text it is {own}",
                where=where,
                remedy=remedy,
            )


def _rows_of(
    row: Mapping[str, Any], example: Encoded, n_tokens: int, where: str
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The tokens and log-probabilities of each target of an example, checked."""
    first, top_ids, top_logprobs = (row.get(k) for k in ("first", "top_ids", "top_logprobs"))
    if not isinstance(first, int) or not 1 <= first <= example.first_target:
        raise InputError(
            f"first is {first!r}; distributions are wanted from token {example.first_target} on",
            where=where,
        )
    n_rows = len(example.ids) - first
    for name, rows in (("top_ids", top_ids), ("top_logprobs", top_logprobs)):
        if not isinstance(rows, list) or len(rows) != n_rows:
            raise InputError(
                f"{name} has to be a list of {n_rows} lists, one for each token from first on",
                where=where,
            )
    assert isinstance(top_ids, list) and isinstance(top_logprobs, list)
    checked = [
        _one_row(ids, logprobs, n_tokens, f"{where}, token {place}")
        for place, (ids, logprobs) in enumerate(
            zip(top_ids, top_logprobs, strict=True), start=first
        )
    ]
    used = checked[example.first_target - first :]
    return [ids for ids, _ in used], [logprobs for _, logprobs in used]


def _one_row(ids: Any, logprobs: Any, n_tokens: int, where: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        tokens, values = np.asarray(ids), np.asarray(logprobs)
    except ValueError:  # lists of lists
        tokens = values = np.zeros(())
    good = tokens.ndim == values.ndim == 1 and len(tokens) == len(values) > 0
    if not good or tokens.dtype.kind != "i" or values.dtype.kind not in "if":
        raise InputError(
            "top_ids has to be a list of ids, top_logprobs one of as many numbers", where=where
        )
    if tokens.min() < 0 or tokens.max() >= n_tokens:
        raise InputError(f"top_ids: the teacher has tokens 0 to {n_tokens - 1}", where=where)
    if len(np.unique(tokens)) < len(tokens):
        raise InputError("top_ids: a token is there twice", where=where)
    values = values.astype(np.float64)
    if not np.isfinite(values).all() or values.max() > TOO_MUCH:
        raise InputError(
            "top_logprobs has to hold finite logarithms of probabilities, none over 0", where=where
        )
    total = float(np.exp(values).sum())
    if total > 1 + TOO_MUCH:
        raise InputError(
            f"top_logprobs: the probabilities add up to {total:.4g}",
            where=where,
            remedy="give log-probabilities over the whole vocabulary, at temperature 1",
        )
    return tokens, np.minimum(values, 0.0)


def _columns(
    own: np.ndarray,
    ids: Sequence[np.ndarray],
    logprobs: Sequence[np.ndarray],
    top_k: int,
    vocab_size: int,
) -> Columns:
    kept_ids = np.zeros((len(ids), top_k), dtype=np.int64)
    kept = np.full((len(ids), top_k), NO_TOKEN)
    tail = np.full(len(ids), LOWEST)
    for number, (tokens, values) in enumerate(zip(ids, logprobs, strict=True)):
        is_known = own[tokens] >= 0
        known = values[is_known]
        order = np.argsort(-known, kind="stable")
        best, others = order[:top_k], order[top_k:]
        rest = max(np.exp(known[others]).sum() + _not_given(values, len(own)), TINY)
        log_mass = np.log(np.exp(known[best]).sum() + rest)
        kept[number, : len(best)] = known[best] - log_mass
        kept_ids[number, : len(best)] = own[tokens[is_known][best]]
        tail[number] = max(np.log(rest) - log_mass, LOWEST)
    return {
        "ids": torch.from_numpy(kept_ids).to(id_type(vocab_size)),
        "logprobs": torch.from_numpy(kept).half(),
        "tail": torch.from_numpy(tail).half(),
    }


def _not_given(logprobs: np.ndarray, n_tokens: int) -> float:
    """The mass of those of ``n_tokens`` that are not given: what the given ones leave of 1.

    Given are the likeliest, and maybe one more, as vLLM adds a text's own token: none of the others
    is likelier than the last but one. Where what is left is no more than rounding, it is taken for
    as many tokens as are given, each as likely as that one.
    """
    least = float(np.exp(np.sort(logprobs)[:2][-1]))
    left = 1.0 - float(np.exp(logprobs).sum())
    if left < ROUNDING:
        left = min(ROUNDING, len(logprobs) * least)
    return min(left, (n_tokens - len(logprobs)) * least)
