"""Numbers in words, written in digits: "twenty-five", "fünfundzwanzig", 二十五.

Knows how they are spelt; nothing of what they count.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from itertools import pairwise

import regex

from kdexport.content.languages import Language, load_languages
from kdexport.content.matching import SPACELESS, Folded, fold

TENS = range(20, 100, 10)
BETWEEN = r"[\s\-\u2010\u2011]"  # the words of one number
LETTER = rf"[\p{{L}}\p{{N}}--{SPACELESS}]"
NOT_AFTER = "第几数"  # "the second", "some", before a Chinese number
OF_HUNDRED = "百分之"
POINT = "点"
WAN = 10_000  # from this unit on, what stands before it is multiplied as a whole
Spelt = Callable[[regex.Match[str]], str | None]


def words_of(words: Iterable[str]) -> str:
    """A pattern for some phrases as whole words, hyphens as good as spaces; the longest first."""
    longest = sorted(set(words), key=lambda word: (-len(word), word))
    several = "|".join(BETWEEN.join(map(regex.escape, word.split(" "))) for word in longest)
    return rf"(?<!{LETTER})(?:{several or '(?!)'})(?:(?<={SPACELESS})|(?!{LETTER}))"


def as_listed(phrase: str) -> str:
    """A phrase as it is told from others, whatever its case and hyphens."""
    return str(regex.sub(BETWEEN, " ", fold(phrase).text))


def in_digits(folded: Folded, languages: tuple[str, ...]) -> Folded:
    """A text with the words for numbers in digits; one alone, which may be an article, stays."""
    pattern, values = _words(languages)
    if not values:
        return folded
    return _rewritten(folded, pattern, lambda match: str(values[as_listed(match[0])]))


def han_in_digits(folded: Folded, languages: tuple[str, ...]) -> Folded:
    """A text with Chinese numbers that count something in digits: 两分钟, 八折, 百分之五十."""
    for code in languages:
        language = load_languages()[code]
        if language.numerals:
            folded = _rewritten(folded, _han(code), _han_spelt(language))
    return folded


def _rewritten(folded: Folded, pattern: regex.Pattern[str], spelt: Spelt) -> Folded:
    """What matches as it is spelt; None: as it was. Each digit stands where the match did."""
    text, place = "", 0
    begins: list[int] = []
    ends: list[int] = []
    for match in pattern.finditer(folded.text):
        digits = spelt(match)
        if digits is None:
            continue
        begin, end = match.span()
        span = folded.span(begin, end)
        text += folded.text[place:begin] + digits
        begins += [*folded.begins[place:begin], *[span[0]] * len(digits)]
        ends += [*folded.ends[place:begin], *[span[1]] * len(digits)]
        place = end
    return Folded(
        text + folded.text[place:],
        [*begins, *folded.begins[place:]],
        [*ends, *folded.ends[place:]],
    )


@cache
def _words(languages: tuple[str, ...]) -> tuple[regex.Pattern[str], Mapping[str, int]]:
    """What finds the words of some languages, and their values."""
    known = [load_languages()[code] for code in languages]
    values = {as_listed(word): n for one in known for word, n in _spellings(one)}
    ones = {as_listed(word): n for one in known for word, n in one.ones.items() if n == 1}
    counted = [w for one in known for w in (*one.multipliers, *one.percent, *one.currencies)]
    pattern = rf"{words_of(values)}|{words_of(ones)}(?={BETWEEN}*(?:{words_of(counted)}|%))"
    return regex.compile(pattern, regex.VERSION1), values | ones


def _spellings(language: Language) -> Iterator[tuple[str, int]]:
    """The words of a language for numbers, those of tens and ones together made of both."""
    small = {word: n for word, n in (language.numbers | language.ones).items() if n < 10}
    for word, n in language.numbers.items():
        yield word, n
        if n in TENS:
            for template in language.tens_and_ones:
                for one, more in small.items():
                    yield template.format(ten=word, one=one), n + more


@cache
def _han(code: str) -> regex.Pattern[str]:
    """A Chinese number before what it counts, or after "of a hundred"."""
    language = load_languages()[code]
    units = [*language.counted, *language.currencies, *language.percent, *language.discounts]
    counted = "|".join(map(regex.escape, sorted({*units, "%"}, key=len, reverse=True)))
    numeral = f"[{''.join(language.numerals)}]"
    digit = f"[{''.join(one for one, n in language.numerals.items() if n < 10)}]"
    return regex.compile(
        rf"(?P<of>(?<={OF_HUNDRED}))(?P<run>{numeral}+)(?:{POINT}(?P<more>{digit}+))?"
        rf"|(?<![\d{NOT_AFTER}]|{numeral})(?P<run>{numeral}+)(?:{POINT}(?P<more>{digit}+))?"
        rf"(?=\s*(?P<unit>{counted}))",
        regex.VERSION1,
    )


def _han_spelt(language: Language) -> Spelt:
    numerals = language.numerals
    sure = {*language.currencies, *language.percent, *language.discounts, "%"}

    def spelt(match: regex.Match[str]) -> str | None:
        run, more, is_share = match["run"], match["more"], match["of"] is not None
        if run == "一" and not (more or is_share or match["unit"] in sure):
            return None  # an article, as in 一杯
        value = _han_value([numerals[one] for one in run], is_share=is_share)
        if value is None:
            return None
        return f"{value}.{''.join(str(numerals[one]) for one in more)}" if more else str(value)

    return spelt


def _han_value(parts: list[int], *, is_share: bool = False) -> int | None:
    """The number of some numerals by their values: digits and units from ten on.

    None for what is no exact number: 两三 (two or three), 千 (thousands). ``is_share``: 百 alone is
    one.
    """
    if max(parts) < 10:
        steps = {after - before for before, after in pairwise(parts)}
        return None if steps == {1} else int("".join(map(str, parts)))
    if min(parts) >= 100 and not is_share:
        return None
    total = section = 0
    digit: int | None = None
    unit = 1  # of what stands before: in 一百二 the two are tens
    for part in parts:
        if part >= WAN:
            section += digit or 0
            if part == WAN:
                total += (section or 1) * part
            else:
                total = (total + section or 1) * part
            section, digit, unit = 0, None, part
        elif part >= 10:
            section += (1 if digit is None else digit) * part
            digit, unit = None, part
        elif part == 0:
            digit, unit = None, 1
        elif digit is not None:
            return None
        else:
            digit = part
    return total + section + (digit or 0) * max(1, unit // 10 if unit >= 100 else 1)
