"""How near a model is to its teacher, from a reference file and without the teacher.

The reference holds, for every target token of held-out texts, the teacher's k most likely tokens of
the student's vocabulary, the mass of the rest, and draws from it (`kdexport.train.reference` writes
it).
"""

import json
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdexport.errors import InputError, first_words
from kdexport.runtime.generate import Runs
from kdexport.runtime.token_scores import (
    N_TOP,
    Quality,
    TeacherScores,
    TextScores,
    score_text,
    sum_up,
)

Array = np.ndarray[Any, Any]
LEAST = 1e-7  # of a tail's mass: what half precision keeps
FORMAT = 2
"""Of a reference: 1 had no log-probabilities of the targets. Told by ``meta["format"]``."""
NOT_NPZ = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)


@dataclass(frozen=True)
class Reference:
    """N tokens in T texts, M of them targets; see `kdexport.train.reference.write_reference`."""

    ids: Array
    offsets: Array
    target: Array
    topk_ids: Array
    topk_logprobs: Array
    tail_logprob: Array
    drawn_ids: Array
    drawn_logprobs: Array
    kept_ids: Array
    kept_mass: Array
    meta: dict[str, Any]
    target_logprobs: Array | None = None  # of format 1


def load_reference(path: Path) -> Reference:
    """Read a reference (an .npz without pickles); InputError for one that cannot be scored on."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(arrays.pop("meta").tobytes())
        _check_format(meta, path)
        reference = Reference(**arrays, meta=meta)
        _check(reference)
        return reference
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError("there is no such file", where=str(path)) from None
    except (*NOT_NPZ, ValueError, KeyError, TypeError, IndexError, OSError) as error:
        raise InputError(
            f"is no quality reference ({first_words(error)})", where=str(path)
        ) from error


def _check_format(meta: dict[str, Any], path: Path) -> None:
    if int(meta.get("format", 1)) > FORMAT:
        raise InputError(
            f"is a quality reference of format {meta['format']}, "
            f"this kdexport reads up to {FORMAT}",
            where=str(path),
            remedy="upgrade kdexport",
        )


def _check(reference: Reference) -> None:
    """Raise ValueError unless sizes fit, texts follow one another and ids are of the vocabulary."""
    n_tokens, n_targets = len(reference.ids), len(reference.target)
    per_target = [
        reference.topk_ids,
        reference.topk_logprobs,
        reference.tail_logprob,
        reference.drawn_ids,
        reference.drawn_logprobs,
    ]
    if reference.target_logprobs is not None:
        per_target.append(reference.target_logprobs)
    if not n_targets or any(len(array) != n_targets for array in per_target):
        raise ValueError("it has no targets, or not what belongs to each")
    offsets = reference.offsets
    if offsets[0] != 0 or offsets[-1] != n_tokens or (np.diff(offsets) < 0).any():
        raise ValueError("its texts do not follow one another")
    if np.isin(reference.target, offsets).any():
        raise ValueError("the first token of a text is a target")
    bounds = {"target": n_tokens, **dict.fromkeys(("ids", "topk_ids", "drawn_ids"), 0)}
    for name, bound in bounds.items():
        array = getattr(reference, name)
        wrong = array.size and not 0 <= array.min() <= array.max() < (
            bound or len(reference.kept_ids)
        )
        if array.dtype.kind not in "iu" or wrong:
            raise ValueError(f"{name} are out of range")


def measure_quality(session: Runs, reference: Reference, *, teacher_vocabulary: bool) -> Quality:
    """Score a model on the reference's texts.

    ``teacher_vocabulary``: the model has the teacher's vocabulary; it reads the same tokens under
    their ids there, and its distribution is renormalised over the student's.
    The KL is exact over the teacher's top k and estimated without bias over the rest.
    """
    kept = reference.kept_ids.astype(np.int64) if teacher_vocabulary else None
    texts: list[TextScores] = []
    for begin, end in zip(reference.offsets, reference.offsets[1:], strict=False):
        rows = (reference.target >= begin) & (reference.target < end)
        if not rows.any():
            continue
        ids = reference.ids[begin:end].astype(np.int64)
        places = reference.target[rows] - begin
        logits = target_logits(session, ids, places, kept)
        if logits.shape[-1] != len(reference.kept_ids):
            raise InputError(
                f"the reference is of {len(reference.kept_ids)} tokens, "
                f"the model of {logits.shape[-1]}"
            )
        logprobs = log_softmax(logits.astype(np.float64))
        texts.append(score_text(logprobs, ids[places], _teacher(reference, rows, logprobs)))
    return sum_up(texts)


def _teacher(reference: Reference, rows: Array, logprobs: Array) -> TeacherScores:
    """What the reference tells of some of its targets, beside a model's [n, V] of the same."""
    best = np.argsort(-reference.topk_logprobs[rows], axis=-1, kind="stable")[:, :N_TOP]
    known = reference.target_logprobs
    return TeacherScores(
        kl=kl_per_token(reference, rows, logprobs),
        top=np.take_along_axis(reference.topk_ids[rows], best, axis=-1),
        logprobs=None if known is None else known[rows].astype(np.float64),
    )


def target_logits(session: Runs, ids: Array, targets: Array, kept: Array | None = None) -> Array:
    """What a model foretells of the tokens at ``targets`` of one text, float32 [n, V].

    ``kept``: the model's id of each of the vocabulary's tokens; None: they are the same.
    """
    read = ids if kept is None else kept[ids]
    cache = session.new_cache(1, len(ids))
    logits = session.run(read[None], cache, logit_rows=targets.astype(np.int64) - 1)
    if kept is None:
        return logits
    if kept.max() >= logits.shape[-1]:
        raise InputError(f"is of token {kept.max()} too, the model of {logits.shape[-1]} tokens")
    return logits[:, kept]


def kl_per_token(reference: Reference, rows: Array, logprobs: Array) -> Array:
    """KL(teacher ‖ model) of each target token, float64 [n], from log-probabilities [n, V].

    Sum over the top k of p (log p - log q), plus the tail's mass times the mean of log p - log q
    over the draws from it: unbiased. Without draws the tail counts as one event, which makes the
    value a lower bound.
    """

    def distance(ids: Array, teacher: Array) -> Array:
        model = np.take_along_axis(logprobs, ids[rows].astype(np.int64), axis=-1)
        return np.asarray(teacher[rows].astype(np.float64) - model)

    weights = np.exp(reference.topk_logprobs[rows].astype(np.float64))
    inside = (weights * distance(reference.topk_ids, reference.topk_logprobs)).sum(-1)
    tail = np.exp(reference.tail_logprob[rows].astype(np.float64))
    if reference.drawn_ids.shape[-1] == 0:
        model = np.take_along_axis(logprobs, reference.topk_ids[rows].astype(np.int64), axis=-1)
        rest = 1 - (np.exp(model) * (weights > 0)).sum(-1)
        outside = np.log(np.maximum(tail, LEAST)) - np.log(np.maximum(rest, LEAST))
        return np.asarray(inside + tail * outside)
    outside = distance(reference.drawn_ids, reference.drawn_logprobs).mean(-1)
    return np.asarray(inside + tail * outside)


def log_softmax(logits: Array) -> Array:
    """Log-probabilities along the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))
