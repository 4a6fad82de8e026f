"""Words and phrases in a text, whatever their case, width and form.

Texts are compared in NFKC without case, word by word: at word boundaries of Unicode, so that
"never" is not found in "nevertheless". Chinese and Japanese, which put no space between words, are
compared character by character.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import regex

from kdexport.content.languages import Language, load_languages

Span = tuple[int, int]
LEFT_OUT = dict.fromkeys(map(ord, "\u00ad\u200b\u2060\ufeff"))  # soft hyphens, zero widths
LEFT_OUT |= dict.fromkeys(map(ord, "©®™℠"), " ")
SHORTEST_STEM = 3  # letters that an ending leaves
SPACELESS = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}]"
LETTER = rf"[[\p{{L}}\p{{N}}\p{{M}}_]--{SPACELESS}]"
TOKEN = regex.compile(
    rf"(?<!{LETTER})\d+(?:[.,']\d+)*(?!{LETTER})"  # a number is one word, separators included
    rf"|{SPACELESS}\p{{M}}*"
    rf"|{LETTER}+(?:'{LETTER}+)*"
    r"|[^\s\p{Pd}\p{Pi}\p{Pf}\"']",
    regex.VERSION1,
)


@dataclass(frozen=True)
class Folded:
    """A text for comparison, and where each of its characters stands in the text as it was."""

    text: str
    begins: Sequence[int]
    ends: Sequence[int]

    def span(self, begin: int, end: int) -> Span:
        """A span of the folded text as one of the text as it was; it holds a character or more."""
        return self.begins[begin], self.ends[end - 1]


@dataclass(frozen=True)
class Token:
    """A word, a number or a sign of a folded text, and where it stands in the text as it was."""

    text: str
    span: Span


def fold(text: str) -> Folded:
    """NFKC without case, one apostrophe, no soft hyphens; signs of trade marks become spaces."""
    parts: list[str] = []
    begins: list[int] = []
    ends: list[int] = []
    for cluster in regex.finditer(r"\X", text):
        part = unicodedata.normalize("NFKC", cluster[0].translate(LEFT_OUT))
        part = unicodedata.normalize("NFKC", part.casefold()).replace("\u2019", "'")
        parts.append(part)
        begins += [cluster.start()] * len(part)
        ends += [cluster.end()] * len(part)
    return Folded("".join(parts), begins, ends)


def tokens_of(text: str, language: str) -> list[Token]:
    """The words, numbers and signs of a text; hyphens and quotation marks are left out."""
    folded = fold(text)
    elisions = load_languages()[language].elisions
    tokens: list[Token] = []
    for match in TOKEN.finditer(folded.text):
        begin, end = match.span()
        before, apostrophe, _ = match[0].partition("'")
        if apostrophe and before in elisions:
            middle = begin + len(before) + 1
            tokens.append(Token(before, folded.span(begin, middle)))
            begin = middle
        tokens.append(Token(folded.text[begin:end], folded.span(begin, end)))
    return tokens


def find_phrase(phrase: str, tokens: Sequence[Token], language: str) -> Iterator[Span]:
    """Where a phrase stands among tokens, its words in any form; ``=phrase``: as it is written."""
    exact = phrase.startswith("=")
    wanted = _wanted(phrase.removeprefix("="), language)
    if not wanted:
        return
    for at in range(len(tokens) - len(wanted) + 1):
        found = tokens[at : at + len(wanted)]
        if all(
            word == token.text or (not exact and words_match(word, token.text, language))
            for word, token in zip(wanted, found, strict=True)
        ):
            yield found[0].span[0], found[-1].span[1]


@lru_cache(maxsize=4096)
def _wanted(phrase: str, language: str) -> tuple[str, ...]:
    return tuple(token.text for token in tokens_of(phrase, language))


def words_match(one: str, other: str, language: str) -> bool:
    """Whether two words, folded, are forms of one word by the rules of the language."""
    return one == other or not _bases(one, language).isdisjoint(_bases(other, language))


@lru_cache(maxsize=65536)
def _bases(word: str, code: str) -> frozenset[str]:
    """A word and what it may be a form of."""
    language = load_languages()[code]
    if word in language.uninflected:
        return frozenset([word])
    bases = {word}
    for ending, base in _rules(code):
        stem = word.removesuffix(ending)
        if stem != word and len(stem) >= SHORTEST_STEM:
            bases.add(stem + base)
            if language.undouble and not base and stem[-1] == stem[-2]:
                bases.add(stem[:-1])
    bases |= {forms[0] for forms in language.irregular if word in forms}
    return frozenset(bases)


@cache
def _rules(code: str) -> list[tuple[str, str]]:
    language: Language = load_languages()[code]
    return language.rules
