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

Array = np.ndarray[Any, Any]
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


@dataclass(frozen=True)
class Quality:
    """KL(teacher ‖ model) in nats per token, share of equal top tokens, exp(mean NLL).

    The KL is exact over the teacher's top k and estimated without bias over the rest.
    """

    kl_mean: float
    kl_p50: float
    kl_p99: float
    top1: float
    perplexity: float
    n_tokens: int


def load_reference(path: Path) -> Reference:
    """Read a reference (an .npz without pickles); InputError for one that cannot be scored on."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(arrays.pop("meta").tobytes())
        reference = Reference(**arrays, meta=meta)
        _check(reference)
        return reference
    except FileNotFoundError:
        raise InputError("there is no such file", where=str(path)) from None
    except (*NOT_NPZ, ValueError, KeyError, TypeError, IndexError, OSError) as error:
        raise InputError(
            f"is no quality reference ({first_words(error)})", where=str(path)
        ) from error


def _check(reference: Reference) -> None:
    """Raise ValueError unless sizes fit, texts follow one another and ids are of the vocabulary."""
    n_tokens, n_targets = len(reference.ids), len(reference.target)
    per_target = (
        reference.topk_ids,
        reference.topk_logprobs,
        reference.tail_logprob,
        reference.drawn_ids,
        reference.drawn_logprobs,
    )
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
    """
    kept = reference.kept_ids.astype(np.int64) if teacher_vocabulary else None
    kl, agree, nll = [], [], []
    for begin, end in zip(reference.offsets, reference.offsets[1:], strict=False):
        rows = (reference.target >= begin) & (reference.target < end)
        if not rows.any():
            continue
        ids = reference.ids[begin:end].astype(np.int64)
        logits = _target_logits(session, ids, reference.target[rows] - begin - 1, kept)
        if logits.shape[-1] != len(reference.kept_ids):
            raise InputError(
                f"the reference is of {len(reference.kept_ids)} tokens, "
                f"the model of {logits.shape[-1]}"
            )
        logprobs = log_softmax(logits.astype(np.float64))
        kl.append(kl_per_token(reference, rows, logprobs))
        teacher_best = reference.topk_ids[rows, reference.topk_logprobs[rows].argmax(-1)]
        agree.append(logprobs.argmax(-1) == teacher_best)
        nll.append(-logprobs[np.arange(len(logprobs)), ids[reference.target[rows] - begin]])
    values = np.concatenate(kl)
    return Quality(
        kl_mean=float(values.mean()),
        kl_p50=float(np.percentile(values, 50)),
        kl_p99=float(np.percentile(values, 99)),
        top1=float(np.concatenate(agree).mean()),
        perplexity=float(np.exp(np.concatenate(nll).mean())),
        n_tokens=len(values),
    )


def _target_logits(session: Runs, ids: Array, positions: Array, kept: Array | None) -> Array:
    """Logits at the given positions of one text, over the student's vocabulary; float32 [n, V]."""
    read = ids if kept is None else kept[ids]
    cache = session.new_cache(1, len(ids))
    logits = session.run(read[None], cache, logit_rows=positions.astype(np.int64))
    return logits if kept is None else logits[:, kept]


def kl_per_token(reference: Reference, rows: Array, logprobs: Array) -> Array:
    """KL(teacher ‖ model) of each target token, float64 [n], from log-probabilities [n, V].

    Sum over the top k of p (log p - log q), plus the tail's mass times the mean of log p - log q
    over the draws from it: unbiased, where the tail as one event would give a lower bound.
    """

    def distance(ids: Array, teacher: Array) -> Array:
        model = np.take_along_axis(logprobs, ids[rows].astype(np.int64), axis=-1)
        return np.asarray(teacher[rows].astype(np.float64) - model)

    weights = np.exp(reference.topk_logprobs[rows].astype(np.float64))
    inside = (weights * distance(reference.topk_ids, reference.topk_logprobs)).sum(-1)
    if reference.drawn_ids.shape[-1] == 0:
        return np.asarray(inside)
    tail = np.exp(reference.tail_logprob[rows].astype(np.float64))
    outside = distance(reference.drawn_ids, reference.drawn_logprobs).mean(-1)
    return np.asarray(inside + tail * outside)


def log_softmax(logits: Array) -> Array:
    """Log-probabilities along the last axis."""
    shifted = logits - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))
