"""How near a model is to its teacher, from a reference file and without the teacher.

The reference holds, for every target token of held-out texts, the teacher's k most likely tokens of
the student's vocabulary, the mass of the rest, and draws from it (`kdexport.train.reference` writes
it).
"""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdexport.errors import InputError
from kdexport.runtime.generate import Runs

Array = np.ndarray[Any, Any]


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
    """Read a reference (an .npz without pickles)."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(arrays.pop("meta").tobytes())
        return Reference(**arrays, meta=meta)
    except FileNotFoundError:
        raise InputError("there is no such file", where=str(path)) from None
    except (ValueError, KeyError, TypeError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"is no quality reference ({error})", where=str(path)) from error


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
