"""Is a text usable as copy? Cleaning what a model wraps around it, and reasons to drop it."""

import re
from collections import Counter
from collections.abc import Iterable

import regex

QUOTES = {'"': '"', "“": "”", "'": "'", "«": "»", "„": "“"}
LABEL = re.compile(
    r"^(?:here(?:'s| is| are)[^\n:]{0,80}:|"
    r"(?:sms|ad|headline|ad headline|ad description|description|subject|subject line|email subject"
    r"|post|social post|push note|push notification|product description|copy|text|title):)\s*",
    re.IGNORECASE,
)
LEAST_OF_FACTS = 0.25  # share of the facts' words that copy has to use
SMALL_WORDS = {"a", "an", "and", "as", "at", "by", "for", "from", "in", "is", "it", "no", "not"}
SMALL_WORDS |= {"of", "off", "on", "or", "per", "the", "to", "up", "with", "you", "your"}
SHORTEST_COPY = 8  # characters
MOST_REPEATS = 3  # of one run of four words
SPACELESS = regex.compile(r"\p{Han}|\p{Hiragana}|\p{Katakana}")
WORDS = regex.compile(r"\p{Han}|\p{Hiragana}|\p{Katakana}|\w+")


def clean_copy(text: str) -> str:
    """Strip white space, a leading label ("Subject: …"), and quotes around the whole."""
    before = None
    text = text.strip()
    while text != before:
        before = text
        text = LABEL.sub("", text, count=1).strip()
        if len(text) > 1 and QUOTES.get(text[0]) == text[-1] and text[0] not in text[1:-1]:
            text = text[1:-1].strip()
    return text


def why_drop(text: str, *, finished: bool, seen: set[str]) -> str | None:
    """The reason to drop a text: empty, truncated, repetitive, duplicate; None when it is usable.

    ``seen`` holds the `words_key` of what was kept so far; a usable text's is added to it.
    """
    if len(text) < SHORTEST_COPY:
        return "empty"
    if not finished:
        return "truncated"
    if is_repetitive(text):
        return "repetitive"
    key = words_key(text)
    if key in seen:
        return "duplicate"
    seen.add(key)
    return None


def words_key(text: str) -> str:
    """What two texts have in common of which one is a duplicate: their words."""
    return " ".join(words_of(text))


def share_passed(opening: str, added: str, *, finished: bool, facts: Iterable[str]) -> float:
    """The share of checks that copy passes: long enough, ended, not repetitive, about the facts.

    ``added``: what was written on after ``opening``; without any, none is passed.
    """
    text = opening + added
    passed = [
        len(text) >= SHORTEST_COPY,
        finished,
        not is_repetitive(text),
        not strays(added, facts),
    ]
    return sum(passed) / len(passed) if added else 0.0


def strays(text: str, facts: Iterable[str]) -> bool:
    """Whether a text uses hardly any of the facts' words: it is about something else."""
    asked = {word for fact in facts for word in words_of(fact)} - SMALL_WORDS
    used = asked & set(words_of(text))
    return bool(asked) and len(used) < LEAST_OF_FACTS * len(asked)


def words_of(text: str) -> list[str]:
    """The words and numbers of a text, without their case."""
    return re.findall(r"\w+", text.casefold())


def is_repetitive(text: str) -> bool:
    """Whether a run of four words, or a line, comes again and again."""
    words = words_of(text)
    runs = Counter(zip(words, words[1:], words[2:], words[3:], strict=False))
    lines = Counter(line.strip().casefold() for line in text.splitlines() if line.strip())
    return max(runs.values(), default=0) > MOST_REPEATS or max(lines.values(), default=0) > 2


def repeated_span(text: str) -> tuple[int, int] | None:
    """Where what makes a text repetitive stands for the last time; None where nothing does.

    As `is_repetitive`; Chinese characters and kana are words, of which a run has eight.
    """
    words = [(match[0].casefold(), match.span()) for match in WORDS.finditer(text)]
    n = 8 if any(SPACELESS.match(word) for word, _ in words) else 4
    runs: dict[tuple[str, ...], list[int]] = {}
    for at in range(len(words) - n + 1):
        runs.setdefault(tuple(word for word, _ in words[at : at + n]), []).append(at)
    for places in runs.values():
        if len(places) > MOST_REPEATS:
            return words[places[-1]][1][0], words[places[-1] + n - 1][1][1]
    lines: dict[str, list[tuple[int, int]]] = {}
    place = 0
    for line in text.splitlines(keepends=True):
        if line.strip():
            lines.setdefault(line.strip().casefold(), []).append((place, place + len(line)))
        place += len(line)
    return next((spans[-1] for spans in lines.values() if len(spans) > 2), None)
