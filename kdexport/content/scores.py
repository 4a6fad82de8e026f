"""How texts compare with others, and how varied they are; pure functions of strings.

Words are runs of letters and digits without their case (`kdexport.content.checks.words_of`).
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence

from kdexport.content.checks import words_of

CHRF_ORDER = 6
CHRF_BETA = 2
BLEU_ORDER = 4
BLEU_FLOOR = 0.1  # of an order without any match


def chrf(text: str, reference: str) -> float:
    """The F₂-score of character n-grams up to 6, without white space; 0 to 100 (Popović 2015).

    As sacrebleu's sentence_chrf: precisions and recalls are averaged over the orders of which both
    texts have n-grams.
    """
    sides = ["".join(side.split()) for side in (text, reference)]
    precisions, recalls = [], []
    for n in range(1, CHRF_ORDER + 1):
        ours, theirs = (_ngrams(side, n) for side in sides)
        if ours and theirs:
            n_same = (ours & theirs).total()
            precisions.append(n_same / ours.total())
            recalls.append(n_same / theirs.total())
    if not sum(precisions):
        return 0.0
    precision, recall = (sum(values) / len(values) for values in (precisions, recalls))
    weight = CHRF_BETA**2
    return 100 * (1 + weight) * precision * recall / (weight * precision + recall)


def n_as_before(pieces: Sequence[str], text: str) -> int:
    """How many of a text's pieces (its tokens, one after another) another text begins with.

    The first diverging token is the one after them. Token ids would not do: two models may cut
    the same text otherwise.
    """
    count = n_read = 0
    for piece in pieces:
        if not text.startswith(piece, n_read):
            break
        n_read += len(piece)
        count += 1
    return count


def distinct(texts: Sequence[str], n: int) -> float:
    """Distinct runs of ``n`` words over all runs, of all texts together; 0 to 1 (Li et al. 2016).

    It falls with the number of texts and their length: only like amounts compare. 0 for no runs.
    """
    runs = sum((_ngrams(words_of(text), n) for text in texts), Counter[Hashable]())
    return len(runs) / runs.total() if runs else 0.0


def self_bleu(texts: Sequence[str]) -> list[float]:
    """BLEU-4 of each text with all others as its references; 0 to 100, high where texts are alike.

    Zhu et al. 2018; an order without a match counts as 0.1 (Chen & Cherry 2014, method 1), and a
    short text is measured by the orders that it has. 0 for a text that stands alone.
    """
    words = [words_of(text) for text in texts]
    return [bleu(words[at], words[:at] + words[at + 1 :]) for at in range(len(words))]


def bleu(words: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU-4 of one text (Papineni et al. 2002), smoothed as `self_bleu` says; 0 to 100."""
    logs: list[float] = []
    matched = 0.0
    for n in range(1, BLEU_ORDER + 1):
        ours = _ngrams(words, n)
        if not ours:
            break
        theirs: Counter[Hashable] = Counter()
        for reference in references:
            theirs |= _ngrams(reference, n)
        n_same = (ours & theirs).total()
        matched += n_same
        logs.append(math.log((n_same or BLEU_FLOOR) / ours.total()))
    if not matched:
        return 0.0
    length = min((abs(len(other) - len(words)), len(other)) for other in references)[1]
    brevity = min(0.0, 1 - length / len(words))
    return 100 * math.exp(brevity + sum(logs) / len(logs))


def repeated(text: str, n: int = 4) -> float:
    """The share of a text's runs of ``n`` words that came before in it (Welleck et al. 2020)."""
    runs = _ngrams(words_of(text), n)
    return 1 - len(runs) / runs.total() if runs else 0.0


def _ngrams(items: Sequence[str], n: int) -> Counter[Hashable]:
    return Counter(tuple(items[at : at + n]) for at in range(len(items) - n + 1))
