"""`kdexport content learn`: a ranker from how often published copy was clicked.

Logistic regression, each row counting by its impressions. What it is worth is measured on texts
that were held out with all that are like them, in turns.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from kdexport.content.checks import words_of
from kdexport.content.clicks import Clicked
from kdexport.copywriting.ranker import Ranker, features
from kdexport.data.contamination import normalised
from kdexport.errors import InputError, require_extras
from kdexport.verdict.bootstrap import N_DRAWS, Interval, drawn_counts, interval_of

Array = np.ndarray[Any, Any]
ALIKE = 0.8  # Jaccard index of words from which two texts are kept together
N_FOLDS, N_INNER_FOLDS = 5, 3
STRENGTHS = (0.01, 0.1, 1.0, 10.0)  # of the weights against the penalty; chosen by log loss
CANDIDATES = 8  # of which one is picked, as `kdexport write` has by default
LEAST_GROUPS = 2  # that a word is in
COUNTED = ("word ", "pair ", "channel ", "segment ")  # features that count in some groups only
Tracker = Callable[[int, int], None]


@dataclass(frozen=True)
class HeldOut:
    """What a ranker is worth on texts that it had not learnt.

    ``log_loss`` of an impression, in nats, beside that of the base rate; ``auc``: how often a click
    scores above an impression without, and ``auc_within`` that of the same channel, segment and
    group, if there are both. ``picked``: the share of clicks of the best of `CANDIDATES` texts
    drawn from these, ``chance`` that of one of them; ``lift``: their ratio, with the interval of
    groups drawn anew.
    """

    n_texts: int
    n_groups: int
    n_impressions: int
    n_clicks: int
    log_loss: float
    log_loss_base: float
    auc: float | None
    auc_within: float | None
    picked: float
    chance: float
    lift: Interval


def learn_clicks(
    rows: Sequence[Clicked], where: str, progress: Tracker = lambda done, of: None
) -> tuple[Ranker, HeldOut]:
    """A ranker of all rows, and what one of the others was worth on each row.

    Raises InputError for too few texts to hold any out, and where none or all was clicked.
    """
    require_extras("ranking")
    from sklearn.model_selection import GroupKFold

    rows = merged(rows)
    groups = groups_of(rows)
    n_groups = int(groups.max()) + 1
    if n_groups < 2 * N_FOLDS:
        raise InputError(
            f"has {n_groups} groups of texts that differ; {2 * N_FOLDS} are needed", where=where
        )
    clicks, shown = _counts(rows)
    if clicks.sum() in (0, shown.sum()):
        raise InputError("tells no text from another: none or all was clicked", where=where)
    found = [features(row.text, row.channel, row.segment) for row in rows]
    logits = np.zeros(len(rows))
    base = np.zeros(len(rows))
    folds = np.zeros(len(rows), dtype=np.int64)
    for number, (train, test) in enumerate(GroupKFold(N_FOLDS).split(rows, groups=groups)):
        progress(number, N_FOLDS + 1)
        part = _fitted([found[at] for at in train], clicks[train], shown[train], groups[train])
        logits[test] = [_logit(part, found[at]) for at in test]
        base[test] = _base_rate(clicks[train], shown[train])
        folds[test] = number
    progress(N_FOLDS, N_FOLDS + 1)
    measured = _measured(rows, groups, folds, logits, base)
    ranker = _fitted(found, clicks, shown, groups)
    progress(N_FOLDS + 1, N_FOLDS + 1)
    return ranker.model_copy(update={"held_out": asdict(measured)}), measured


def merged(rows: Sequence[Clicked]) -> list[Clicked]:
    """Rows of one text, channel, segment and group added up."""
    sums: dict[tuple[str, ...], Clicked] = {}
    for row in rows:
        key = normalised(row.text), row.channel, row.segment, row.group
        before = sums.get(key)
        if before:
            both = row.impressions + before.impressions, row.clicks + before.clicks
            row = before.model_copy(update=dict(zip(("impressions", "clicks"), both, strict=True)))
        sums[key] = row
    return list(sums.values())


def groups_of(rows: Sequence[Clicked]) -> Array:
    """A number for each row, int64 [rows]: equal for texts of one group, and for those alike.

    Alike are texts that share `ALIKE` of their words; with them go those that are alike to them.
    """
    parents = list(range(len(rows)))

    def root(at: int) -> int:
        while parents[at] != at:
            parents[at] = parents[parents[at]]
            at = parents[at]
        return at

    firsts: dict[str, int] = {}
    for at, row in enumerate(rows):
        if row.group:
            parents[root(at)] = root(firsts.setdefault(row.group, at))
    for one, other in _alike([frozenset(words_of(normalised(row.text))) for row in rows]):
        parents[root(one)] = root(other)
    numbers: dict[int, int] = {}
    return np.array([numbers.setdefault(root(at), len(numbers)) for at in range(len(rows))])


def _alike(sets: Sequence[frozenset[str]]) -> Iterator[tuple[int, int]]:
    """Pairs of sets whose Jaccard index is `ALIKE` or more.

    Such a pair shares one of the rarest words of each: of n, the first n - ⌈ALIKE · n⌉ + 1 (prefix
    filtering, Chaudhuri et al. 2006).
    """
    n_holders = Counter(word for words in sets for word in words)
    holders: dict[str, list[int]] = {}
    for at, words in enumerate(sets):
        rarest = sorted(words, key=lambda word: (n_holders[word], word))
        prefix = rarest[: len(words) - int(np.ceil(ALIKE * len(words))) + 1]
        for other in {other for word in prefix for other in holders.get(word, ())}:
            n_shared = len(words & sets[other])
            if n_shared >= ALIKE * (len(words) + len(sets[other]) - n_shared):
                yield at, other
        for word in prefix:
            holders.setdefault(word, []).append(at)


def _counts(rows: Sequence[Clicked]) -> tuple[Array, Array]:
    """Clicks and impressions, float64 [rows] each."""
    return (
        np.array([row.clicks for row in rows], dtype=np.float64),
        np.array([row.impressions for row in rows], dtype=np.float64),
    )


def _fitted(
    found: Sequence[Mapping[str, float]], clicks: Array, shown: Array, groups: Array
) -> Ranker:
    """The model of some rows, as strong as is best for those of its own that it has not seen."""
    from sklearn.model_selection import GroupKFold

    names, matrix = _matrix(found, groups)
    losses = dict.fromkeys(STRENGTHS, 0.0)
    for train, test in GroupKFold(N_INNER_FOLDS).split(matrix, groups=groups):
        for strength in STRENGTHS:
            inner = _regression(matrix[train], clicks[train], shown[train], strength)
            logits = inner.decision_function(matrix[test])
            losses[strength] += _log_loss(logits, clicks[test], shown[test])
    model = _regression(matrix, clicks, shown, min(losses, key=lambda one: losses[one]))
    weights = {
        name: round(float(weight), 6) for name, weight in zip(names, model.coef_[0], strict=True)
    }
    return Ranker(
        intercept=float(model.intercept_[0]), weights={name: w for name, w in weights.items() if w}
    )


def _matrix(found: Sequence[Mapping[str, float]], groups: Array) -> tuple[list[str], Any]:
    """Features as a sparse matrix, float64 [rows, features], and their names.

    A word that is in one group alone tells of the group.
    """
    from scipy.sparse import csr_array

    seen: dict[str, set[int]] = {}
    for one, group in zip(found, groups, strict=True):
        for name in one:
            seen.setdefault(name, set()).add(int(group))
    names = sorted(
        name for name, of in seen.items() if len(of) >= LEAST_GROUPS or not name.startswith(COUNTED)
    )
    column = {name: at for at, name in enumerate(names)}
    cells = [
        (at, column[name], value)
        for at, one in enumerate(found)
        for name, value in one.items()
        if name in column and value
    ]
    rows, columns, values = zip(*cells, strict=True)
    return names, csr_array((values, (rows, columns)), shape=(len(found), len(names)))


def _regression(matrix: Any, clicks: Array, shown: Array, strength: float) -> Any:
    """Logistic regression of each impression, clicked or not; a row's mean weight is 1."""
    from scipy.sparse import vstack
    from sklearn.linear_model import LogisticRegression

    base = _base_rate(clicks, shown)  # one more impression of each keeps both kinds there
    weights = np.concatenate([clicks + base, shown - clicks + 1 - base]) / (shown.mean() + 1)
    is_click = np.concatenate([np.ones(len(shown)), np.zeros(len(shown))])
    model = LogisticRegression(C=strength, max_iter=1000)
    return model.fit(vstack([matrix, matrix]).tocsr(), is_click, weights)


def _base_rate(clicks: Array, shown: Array) -> float:
    """The share of impressions that were clicked, neither 0 nor 1."""
    return float((clicks.sum() + 0.5) / (shown.sum() + 1))


def _logit(ranker: Ranker, found: Mapping[str, float]) -> float:
    return ranker.intercept + sum(ranker.weights.get(name, 0.0) * x for name, x in found.items())


def _log_loss(logits: Array, clicks: Array, shown: Array) -> float:
    """The mean over impressions, nats."""
    total = (clicks * np.logaddexp(0, -logits) + (shown - clicks) * np.logaddexp(0, logits)).sum()
    return float(total / shown.sum())


def _measured(
    rows: Sequence[Clicked], groups: Array, folds: Array, logits: Array, base: Array
) -> HeldOut:
    clicks, shown = _counts(rows)
    names = [
        (int(fold), row.channel, row.segment, row.group)
        for fold, row in zip(folds, rows, strict=True)
    ]
    within: dict[tuple[int, str, str, str], list[int]] = {}
    for at, name in enumerate(names):
        within.setdefault(name, []).append(at)
    sets = [np.array(of) for of in within.values()]
    picked, chance, lift = picks(sets, groups, logits, clicks / shown)
    return HeldOut(
        n_texts=len(rows),
        n_groups=int(groups.max()) + 1,
        n_impressions=int(shown.sum()),
        n_clicks=int(clicks.sum()),
        log_loss=_log_loss(logits, clicks, shown),
        log_loss_base=_log_loss(np.log(base / (1 - base)), clicks, shown),
        auc=auc([np.arange(len(rows))], logits, clicks, shown),
        auc_within=auc(sets, logits, clicks, shown),
        picked=picked,
        chance=chance,
        lift=lift,
    )


def auc(sets: Sequence[Array], scores: Array, clicks: Array, shown: Array) -> float | None:
    """How often a click of a set scores above an impression of it without; ties are halves.

    Over all pairs of all sets; None where there are none.
    """
    above = pairs = 0.0
    for at in sets:
        values, place = np.unique(scores[at], return_inverse=True)
        hits = np.bincount(place, clicks[at], len(values))
        misses = np.bincount(place, (shown - clicks)[at], len(values))
        above += float((hits * (np.cumsum(misses) - misses / 2)).sum())
        pairs += float(hits.sum() * misses.sum())
    return above / pairs if pairs else None


def picks(
    sets: Sequence[Array], groups: Array, scores: Array, rates: Array
) -> tuple[float, float, Interval]:
    """The rate of the best of `CANDIDATES` of a set, that of any of them, and their ratio.

    Candidates are drawn with replacement, texts of equal scores by lot; sets count by their size.
    """
    chosen = np.zeros(len(scores))
    for at in sets:
        _, place, counts = np.unique(scores[at], return_inverse=True, return_counts=True)
        up_to = np.cumsum(counts) / len(at)
        best = up_to**CANDIDATES - np.concatenate([[0.0], up_to[:-1]]) ** CANDIDATES
        chosen[at] = (best / counts)[place] * len(at)
    n_groups = int(groups.max()) + 1
    sums = [
        np.bincount(groups, values, n_groups)
        for values in (chosen * rates, chosen, rates, np.ones(len(rates)))
    ]
    drawn = []
    for counts in drawn_counts(n_groups, N_DRAWS):
        won, n_won, any_one, n_any = (counts @ one for one in sums)
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn.append((won / n_won) / (any_one / n_any))
    picked, chance = sums[0].sum() / sums[1].sum(), sums[2].sum() / sums[3].sum()
    return picked, chance, interval_of(picked / chance, np.concatenate(drawn))
