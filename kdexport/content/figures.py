"""Numbers, prices, percentages, dates and times of day in a text, in their usual spellings.

1,000, 1.000, 1 000 and 1000 are one number; 50 %, 50% and fifty percent; $5, 5 USD and 5 dollars. A
spelling that can be read in two ways, as 1.000 or 3/4/2026 can, is both.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from functools import cache
from typing import Literal

import regex

from kdexport.content.languages import load_languages
from kdexport.content.matching import SPACELESS, Folded, Span, fold
from kdexport.content.numerals import as_listed, han_in_digits, in_digits, words_of

Kind = Literal["number", "percent", "money", "date", "time", "rank", "one"]
Value = Decimal | tuple[int, ...]
SYMBOLS = {
    "us$": "USD", "a$": "AUD", "c$": "CAD", "hk$": "HKD", "nz$": "NZD", "r$": "BRL",
    "€": "EUR", "£": "GBP", "₹": "INR", "₩": "KRW", "₽": "RUB", "₺": "TRY", "฿": "THB",
}  # fmt: skip
SHARED = {"$": ("USD", "AUD", "CAD", "HKD", "NZD", "MXN", "SGD"), "¥": ("JPY", "CNY")}
CODES = [
    "aud",
    "brl",
    "cad",
    "chf",
    "cny",
    "czk",
    "dkk",
    "eur",
    "gbp",
    "hkd",
    "inr",
    "jpy",
    "krw",
    "mxn",
    "nok",
    "nzd",
    "pln",
    "rmb",
    "sek",
    "sgd",
    "usd",
]
LETTERS_FOR = {"k": 1_000, "m": 1_000_000, "bn": 1_000_000_000}  # which may be units as well
ORDINAL = r"(?:st|nd|rd|th|er|\.|º)?"
NOT_AFTER = rf"(?<![[\p{{L}}\p{{N}}_]--{SPACELESS}])(?<!\p{{N}}[.,'])"
NUMBER = r"\d+(?:[.,']\d+)*"
SPACED = r"\d{1,3}(?: \d{3})+(?:[.,]\d+)?(?!\d)"


ENOUGH_FOR: Mapping[Kind, tuple[Kind, ...]] = {
    "number": ("money", "rank", "one"),
    "rank": ("number",),
}
"""What may be evidence for a figure beside its own kind."""


@dataclass(frozen=True)
class Figure:
    """A figure and what it may mean. ``values``: a number; (year or 0, month, day); (minutes,).

    A ``rank`` is #1; ``one`` a word that may be an article: evidence for a 1, it asks for none.
    ``units``: the currencies that a price may be in. ``parts``: what it is if it is not one figure
    but several, as 5 and 100 in "5 100".
    """

    kind: Kind
    values: frozenset[Value]
    span: Span
    units: frozenset[str] = frozenset()
    parts: tuple["Figure", ...] = ()


def figures_of(text: str, languages: Collection[str]) -> list[Figure]:
    """The figures of a text in the words of these languages, in their order."""
    found: list[Figure] = []
    for figure in _candidates(fold(text), tuple(languages)):
        begin, end = figure.span
        if not any(one.span[0] < end and begin < one.span[1] for one in found):
            found.append(figure)
    return sorted(found, key=lambda figure: figure.span)


def unsupported(figures: Iterable[Figure], known: Sequence[Figure]) -> list[Figure]:
    """The figures that do not stand among the known ones.

    A number may drop the currency of a price, or be one of the numbers of a date; what has more
    to it, a currency, a percent sign, is not there unless that is.
    """
    evidence = [*known, *(part for figure in known for part in figure.parts)]
    asking = (figure for figure in figures if figure.kind != "one")
    return [figure for figure in asking if not _supported(figure, evidence)]


def _supported(figure: Figure, evidence: Sequence[Figure]) -> bool:
    if any(_same(figure, one) for one in evidence):
        return True
    if figure.kind not in ("number", "percent", "money") or not figure.parts:
        return False
    return all(_supported(part, evidence) for part in figure.parts)


def _same(figure: Figure, known: Figure) -> bool:
    if figure.kind == "date" == known.kind:
        return any(
            one[1:] == other[1:] and (0 in (one[0], other[0]) or one[0] == other[0])
            for one in figure.values
            for other in known.values
            if isinstance(one, tuple) and isinstance(other, tuple)
        )
    if figure.kind == "money" and not figure.units & known.units:
        return False
    alike = figure.kind == known.kind or known.kind in ENOUGH_FOR.get(figure.kind, ())
    return alike and not figure.values.isdisjoint(known.values)


def _candidates(folded: Folded, languages: tuple[str, ...]) -> Iterator[Figure]:
    """Figures, those that hold others first."""
    patterns = _patterns(languages)
    folded = han_in_digits(folded, languages)
    for pattern in patterns.dates:
        for match in pattern.finditer(folded.text):
            if figure := _date(match, folded, languages):
                yield figure
    for match in CLOCK.finditer(folded.text):
        if figure := _time(match, folded):
            yield figure
    for match in patterns.phrase.finditer(folded.text):
        value = frozenset([Decimal(patterns.percents[as_listed(match[0])])])
        yield Figure("percent", value, folded.span(*match.span()))
    folded = in_digits(folded, languages)
    for match in patterns.amount.finditer(folded.text):
        yield _amount(match, folded, languages)
    for match in patterns.one.finditer(folded.text):
        yield Figure("one", frozenset([Decimal(1)]), folded.span(*match.span()))


CLOCK = regex.compile(
    rf"{NOT_AFTER}(?P<hour>\d{{1,2}})(?:[:.](?P<minute>\d{{2}}))?\s*"
    r"(?:(?P<half>[ap])\.?m\b\.?|(?P<clock>uhr|点(?!\d))|h(?P<more>\d{2})?\b)"
    rf"|{NOT_AFTER}(?P<hour>\d{{1,2}}):(?P<minute>\d{{2}})(?!\d)",
    regex.VERSION1,
)


@dataclass(frozen=True)
class _Patterns:
    """``phrase``: one of ``percents``; ``one``: what may be a number or an article."""

    dates: Sequence[regex.Pattern[str]]
    amount: regex.Pattern[str]
    phrase: regex.Pattern[str]
    percents: Mapping[str, int]
    one: regex.Pattern[str]


@cache
def _patterns(languages: tuple[str, ...]) -> _Patterns:
    known = [load_languages()[code] for code in languages]
    months = [name for language in known for names in language.months for name in names]
    day, year = rf"(?P<day>\d{{1,2}}){ORDINAL}", r"(?P<year>\d{4})"
    named = rf"(?P<name>{_any(months)})\b\.?"
    dotted = r" ?(?P<year>\d{4}|\d{2})(?!\d)"
    dotted = f"(?:{dotted})?" if "de" in languages else dotted  # pH 5.5. is no 5th of May
    dates = [
        r"(?P<year>\d{4})([-/.])(?P<month>\d{1,2})\2(?P<day>\d{1,2})(?!\d)",
        rf"(?P<day>\d{{1,2}})\. ?(?P<month>\d{{1,2}})\.{dotted}(?!\d)",
        r"(?P<either>\d{1,2})/(?P<other>\d{1,2})/(?P<year>\d{4}|\d{2})(?!\d)",
        r"(?:(?P<year>\d{4})\s*年\s*)?(?P<month>\d{1,2})\s*月\s*(?P<day>\d{1,2})\s*[日号]",
    ]
    if months:
        dates += [
            rf"{day}\s*(?:of |de )?{named}(?:,? (?:de |del )?{year}(?!\d))?",
            rf"{named} {day}(?!\d)(?:,? {year}(?!\d))?",
        ]
    money = [*CODES, *(word for language in known for word in language.currencies)]
    sign = rf"(?:{_any([*SYMBOLS, *SHARED])})"
    times = [word for language in known for word in language.multipliers]
    percent = [word for language in known for word in language.percent]
    discounts = [word for language in known for word in language.discounts]
    amount = (
        rf"(?:(?P<sign>{sign}|\b(?:{_any(CODES)})(?=[ \d]))\s*|(?P<of>百分之)|(?P<rank>#)"
        rf"|{NOT_AFTER})"
        rf"(?P<number>{SPACED}|{NUMBER})"
        rf"(?:\s*(?P<times>{_any([*times, *LETTERS_FOR], whole=True)})\.?)?"
        rf"(?:\s*(?P<percent>%|{_any(percent, whole=True)})|\s*(?P<off>{_any(discounts)})"
        rf"|\s*(?P<unit>{sign}(?!\s*\d)|{_any(money, whole=True)}))?"
    )
    percents = {as_listed(word): n for one in known for word, n in one.percents.items()}
    ones = [word for language in known for word, n in language.ones.items() if n == 1]
    return _Patterns(
        [regex.compile(NOT_AFTER + pattern, regex.VERSION1) for pattern in dates],
        regex.compile(amount, regex.VERSION1),
        regex.compile(words_of(percents), regex.VERSION1),
        percents,
        regex.compile(words_of(ones), regex.VERSION1),
    )


def _any(words: Iterable[str], *, whole: bool = False) -> str:
    """One of some words; ``whole``: no letter follows, but for Chinese."""
    choice = "|".join(regex.escape(word) for word in sorted(set(words), key=len, reverse=True))
    after = rf"(?![\p{{L}}\p{{N}}--{SPACELESS}])"
    choice = f"(?:{choice or '(?!)'})"
    return rf"(?:{choice}(?:(?<={SPACELESS})|{after}))" if whole else choice


def _date(match: regex.Match[str], folded: Folded, languages: tuple[str, ...]) -> Figure | None:
    groups = {name: text for name, text in match.groupdict().items() if text}
    if "name" in groups:
        pairs = [(_month(groups["name"], languages), int(groups["day"]))]
    elif "either" in groups:
        one, other = int(groups["either"]), int(groups["other"])
        pairs = [(one, other), (other, one)]
    else:
        pairs = [(int(groups["month"]), int(groups["day"]))]
    year = int(groups.get("year", 0))
    year += 2000 if 0 < year < 100 else 0
    values = frozenset((year, month, day) for month, day in pairs if _is_date(year, month, day))
    if not values:
        return None
    numbers = {value for value in (year, *(n for pair in pairs for n in pair)) if value}
    span = folded.span(*match.span())
    parts = tuple(Figure("number", frozenset([Decimal(n)]), span) for n in sorted(numbers))
    return Figure("date", values, span, parts=parts)


def _is_date(year: int, month: int, day: int) -> bool:
    try:
        date(year or 2024, month, day)  # a leap year
    except ValueError:
        return False
    return True


def _month(name: str, languages: tuple[str, ...]) -> int:
    months = (load_languages()[code].months for code in languages)
    return next(at + 1 for names in months for at, group in enumerate(names) if name in group)


def _time(match: regex.Match[str], folded: Folded) -> Figure | None:
    hour, minute = int(match["hour"]), int(match["minute"] or match["more"] or 0)
    if hour > 24 or minute > 59:
        return None
    hours = {hour}
    if match["half"]:
        hours = {hour % 12 + (12 if match["half"] == "p" else 0)}
    elif not match["clock"] and 0 < hour <= 12:
        hours = {hour % 24, (hour + 12) % 24}
    span = folded.span(*match.span())
    parts = tuple(Figure("number", frozenset([Decimal(n)]), span) for n in {hour, minute} if n)
    return Figure("time", frozenset((60 * h + minute,) for h in hours), span, parts=parts)


def _amount(match: regex.Match[str], folded: Folded, languages: tuple[str, ...]) -> Figure:
    values = _readings(match["number"])
    if match["times"]:
        words = {w: n for code in languages for w, n in load_languages()[code].multipliers.items()}
        letter = match["times"] not in words
        factor = (words | LETTERS_FOR)[match["times"]]
        values = frozenset({value * factor for value in values} | (values if letter else set()))
    span = folded.span(*match.span())
    sign = match["sign"] or match["unit"]
    if match["off"]:
        values = frozenset(_reduction(value) for value in values if isinstance(value, Decimal))
    kind: Kind = "rank" if match["rank"] else "number"
    if sign or match["percent"] or match["of"] or match["off"]:
        kind = "money" if sign else "percent"
    units = _currencies(sign, languages) if kind == "money" and sign else frozenset[str]()
    pieces = match["number"].split(" ")
    parts = tuple(
        Figure(kind if last else "number", _readings(piece), span, units if last else frozenset())
        for last, piece in ((at == len(pieces) - 1, piece) for at, piece in enumerate(pieces))
        if len(pieces) > 1
    )
    return Figure(kind, values, span, units, parts)


def _reduction(left: Decimal) -> Decimal:
    """The percentage off where so many tenths (8, 8.5) or hundredths (85) are left to pay."""
    return 100 - (10 * left if left < 10 else left)


def _currencies(sign: str, languages: tuple[str, ...]) -> frozenset[str]:
    if sign in SHARED:
        return frozenset(SHARED[sign])
    words = {w: unit for code in languages for w, unit in load_languages()[code].currencies.items()}
    code = "CNY" if sign == "rmb" else sign.upper()
    return frozenset([(SYMBOLS | words).get(sign, code)])


def _readings(text: str) -> frozenset[Value]:
    """What a number may be: its last separator marks decimals, or thousands, or both can be."""
    plain = text.replace(" ", "").replace("'", "")
    separators = [letter for letter in plain if letter in ".,"]
    whole = Decimal(plain.replace(".", "").replace(",", ""))
    if not separators:
        return frozenset([whole])
    head, _, tail = plain.rpartition(separators[-1])
    decimal = Decimal(f"{head.replace('.', '').replace(',', '')}.{tail}")
    if len(set(separators)) == 2:
        return frozenset([decimal])
    if len(separators) > 1:
        return frozenset([whole])
    thousands = len(tail) == 3 and len(head) <= 3 and head.strip("0") != ""
    return frozenset([whole, decimal] if thousands else [decimal])
