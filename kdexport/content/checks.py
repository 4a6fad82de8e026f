"""Is a text usable as copy? Cleaning what a model wraps around it, and reasons to drop it."""

from collections.abc import Iterable
from functools import cache

import regex

from kdexport.content.languages import load_languages

QUOTES = {'"': '"', "“": "”", "'": "'", "«": "»", "„": "“", "「": "」", "『": "』"}
LEAST_OF_FACTS = 0.25  # share of the facts' words that copy has to use
SMALL_WORDS = {"a", "an", "and", "as", "at", "by", "for", "from", "in", "is", "it", "no", "not"}
SMALL_WORDS |= {"of", "off", "on", "or", "per", "the", "to", "up", "with", "you", "your"}
SHORTEST_COPY = 8  # by `extent`
MOST_REPEATS = 3  # of one run of four words
SPACELESS = regex.compile(r"\p{Han}|\p{Hiragana}|\p{Katakana}")
WORDS = regex.compile(r"\p{Han}|\p{Hiragana}|\p{Katakana}|\w+")


def clean_copy(text: str, language: str = "en") -> str:
    """Strip white space, a leading label ("Subject: …"), and quotes around the whole."""
    before, label = None, _label(language)
    text = text.strip()
    while text != before:
        before = text
        text = label.sub("", text, count=1).strip()
        if len(text) > 1 and QUOTES.get(text[0]) == text[-1] and text[0] not in text[1:-1]:
            text = text[1:-1].strip()
    return text


@cache
def _label(language: str) -> regex.Pattern[str]:
    """What a model begins with before its copy, in a language or in English."""
    known = [load_languages()[code] for code in dict.fromkeys((language, "en"))]
    leads = "|".join(regex.escape(word) for one in known for word in one.leads)
    labels = "|".join(regex.escape(word) for one in known for word in one.labels)
    colon = r":\uff1a"
    return regex.compile(
        rf"^(?:(?:{leads})[^\n{colon}]{{0,80}}|(?:{labels})\s?)[{colon}]\s*", regex.IGNORECASE
    )


def extent(text: str) -> int:
    """Characters; one of Chinese or Japanese says as much as two."""
    return len(text) + len(SPACELESS.findall(text))


def why_drop(text: str, *, finished: bool, seen: set[str]) -> str | None:
    """The reason to drop a text: empty, truncated, repetitive, duplicate; None when it is usable.

    ``seen`` holds the `words_key` of what was kept so far; a usable text's is added to it.
    """
    if extent(text) < SHORTEST_COPY:
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


def share_passed(
    opening: str, added: str, *, finished: bool, facts: Iterable[str], language: str = "en"
) -> float:
    """The share of checks that copy passes: long enough, ended, not repetitive, about the facts.

    ``added``: what was written on after ``opening``; without any, none is passed.
    """
    text = opening + added
    passed = [
        extent(text) >= SHORTEST_COPY,
        finished,
        not is_repetitive(text),
        not strays(added, facts, language),
    ]
    return sum(passed) / len(passed) if added else 0.0


def strays(text: str, facts: Iterable[str], language: str = "en") -> bool:
    """Whether a text uses hardly any of the facts' words: it is about something else.

    Told of English only: facts may be English in a brief for another language, and others have more
    forms of a word.
    """
    if language != "en":
        return False
    asked = {word for fact in facts for word in words_of(fact)} - SMALL_WORDS
    used = asked & set(words_of(text))
    return bool(asked) and len(used) < LEAST_OF_FACTS * len(asked)


def words_of(text: str) -> list[str]:
    """The words and numbers of a text, without their case; a Chinese character or kana is one."""
    words: list[str] = WORDS.findall(text.casefold())
    return words


def is_repetitive(text: str) -> bool:
    """Whether a run of words, or a line, comes again and again."""
    return repeated_span(text) is not None


def repeated_span(text: str) -> tuple[int, int] | None:
    """Where what makes a text repetitive stands for the last time; None where nothing does.

    A run of words has four, of Chinese characters and kana eight.
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
