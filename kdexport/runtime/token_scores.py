"""What a model says of given tokens, summed up: perplexity, calibration, distance to a teacher.

Knows log-probabilities; no models, no files.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
N_BINS = 15  # as Guo et al. 2017 have in their tables
N_TOP = 5


@dataclass(frozen=True)
class TeacherScores:
    """What the teacher says of the n targets of one text.

    ``kl``: KL(teacher ‖ model) in nats, float64 [n]. ``top``: its likeliest tokens, likeliest
    first, int [n, k]. ``logprobs``: of the targets, float64 [n]; None where it is not known.
    """

    kl: Array
    top: Array
    logprobs: Array | None


@dataclass(frozen=True)
class TextScores:
    """What a model says of the n targets of one text.

    ``nll``: -log of the target's probability in nats; ``confidence``: the probability of the
    model's likeliest token; both float64 [n]. ``best``: that token, int64 [n]. ``is_right``: it is
    the target, bool [n].
    """

    nll: Array
    confidence: Array
    best: Array
    is_right: Array
    teacher: TeacherScores | None = None


@dataclass(frozen=True)
class Quality:
    """How well a model foretells M tokens, and how near it is to its teacher.

    ``perplexity``: exp(mean NLL); ``ppl_ratio``: it over the teacher's, on the same tokens. Their
    standard errors are llama-perplexity's: s / √M of the NLL, and of its difference from the
    teacher's token by token, times the value (the delta method); tokens count as independent.
    ``ece``: expected calibration error, 0 to 1 (`calibration_error`).
    ``kl_*``: KL(teacher ‖ model), nats per token. ``top1``, ``top5``: share of tokens at which the
    model's likeliest token is the teacher's, or one of the teacher's five likeliest.
    ``texts``: a value for each text: how many ``tokens``, and the sums of ``nll``, ``kl``,
    ``teacher_nll`` and ``top1`` over them.
    What needs a teacher is None without one, ``ppl_ratio`` also where its log-probabilities are
    not known.
    """

    perplexity: float
    perplexity_se: float | None
    ece: float
    n_tokens: int
    texts: dict[str, list[float] | None]
    kl_mean: float | None = None
    kl_p50: float | None = None
    kl_p90: float | None = None
    kl_p99: float | None = None
    kl_max: float | None = None
    top1: float | None = None
    top5: float | None = None
    ppl_ratio: float | None = None
    ppl_ratio_se: float | None = None


def score_text(logprobs: Array, targets: Array, teacher: TeacherScores | None = None) -> TextScores:
    """Scores from log-probabilities, float64 [n, V], and the targets that came, int64 [n]."""
    best = logprobs.argmax(-1)
    rows = np.arange(len(targets))
    return TextScores(
        nll=-logprobs[rows, targets],
        confidence=np.exp(logprobs[rows, best]),
        best=best,
        is_right=best == targets,
        teacher=teacher,
    )


def whole_teacher(teacher: Array, model: Array, targets: Array) -> TeacherScores:
    """A teacher's scores from both log-probabilities over one vocabulary, float64 [n, V]."""
    n_top = min(N_TOP, teacher.shape[-1])
    return TeacherScores(
        kl=(np.exp(teacher) * (teacher - model)).sum(-1),
        top=np.argsort(-teacher, axis=-1, kind="stable")[:, :n_top],
        logprobs=teacher[np.arange(len(targets)), targets],
    )


def sum_up(texts: Sequence[TextScores]) -> Quality:
    """The quality over all tokens of all texts; all have a teacher, or none has."""
    nll = np.concatenate([text.nll for text in texts])
    mean = _exp(nll.mean())
    sums: dict[str, list[float] | None] = {
        "tokens": [float(len(text.nll)) for text in texts],
        "nll": [float(text.nll.sum()) for text in texts],
    }
    return Quality(
        perplexity=mean,
        perplexity_se=_times(mean, standard_error(nll)),
        ece=calibration_error(
            np.concatenate([text.confidence for text in texts]),
            np.concatenate([text.is_right for text in texts]),
        ),
        n_tokens=len(nll),
        texts=sums,
        **_beside_teacher(texts, nll, sums),
    )


def _beside_teacher(
    texts: Sequence[TextScores], nll: Array, sums: dict[str, list[float] | None]
) -> dict[str, float | None]:
    """What of a `Quality` needs a teacher; its sums are added to ``sums``."""
    pairs = [(text.best, text.teacher) for text in texts if text.teacher is not None]
    if not pairs:
        return {}
    teachers = [teacher for _, teacher in pairs]
    same = [best == teacher.top[:, 0] for best, teacher in pairs]
    sums["kl"] = [float(teacher.kl.sum()) for teacher in teachers]
    sums["top1"] = [float(each.sum()) for each in same]
    kl = np.concatenate([teacher.kl for teacher in teachers])
    p50, p90, p99 = (float(value) for value in np.percentile(kl, (50, 90, 99)))
    found: dict[str, float | None] = {
        "kl_mean": float(kl.mean()),
        "kl_p50": p50,
        "kl_p90": p90,
        "kl_p99": p99,
        "kl_max": float(kl.max()),
        "top1": float(np.concatenate(same).mean()),
    }
    if all(teacher.top.shape[-1] >= N_TOP for teacher in teachers):
        among = [(best[:, None] == teacher.top[:, :N_TOP]).any(-1) for best, teacher in pairs]
        found["top5"] = float(np.concatenate(among).mean())
    known = [teacher.logprobs for teacher in teachers if teacher.logprobs is not None]
    if len(known) == len(texts):
        sums["teacher_nll"] = [float(-logprobs.sum()) for logprobs in known]
        more = nll + np.concatenate(known)
        ratio = _exp(more.mean())
        found |= {"ppl_ratio": ratio, "ppl_ratio_se": _times(ratio, standard_error(more))}
    return found


def calibration_error(confidence: Array, is_right: Array, n_bins: int = N_BINS) -> float:
    """Expected calibration error (Guo et al. 2017, equation 3).

    The mean of |share right - mean confidence| over ``n_bins`` bins of equal width, (m - 1) / M to
    m / M, each weighted by how many tokens fall into it. 0 to 1.
    """
    bins = np.searchsorted(np.arange(1, n_bins) / n_bins, confidence, side="left")
    gaps = np.bincount(bins, weights=is_right - confidence, minlength=n_bins)
    return float(np.abs(gaps).sum() / len(confidence))


def standard_error(values: Array) -> float | None:
    """Of the mean of independent values: s / √n; None for fewer than two."""
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None


def _exp(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(value))


def _times(value: float, error: float | None) -> float | None:
    return None if error is None else value * error
