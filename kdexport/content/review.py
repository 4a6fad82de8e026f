"""Whether copy keeps to its brief, its channel and its brand: one report per text.

A fault (``hard``) is what must not be published; a warning is what a person should look at.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from kdexport.content.brands import Brand
from kdexport.content.briefs import Brief
from kdexport.content.channels import Channel, Limit
from kdexport.content.checks import extent, repeated_span
from kdexport.content.counting import COUNTERS, UNITS
from kdexport.content.figures import Figure, figures_of, unsupported
from kdexport.content.matching import Span, Token, find_phrase, tokens_of
from kdexport.content.parts import Piece, split_parts
from kdexport.content.sms import count_sms

Identify = Callable[[str], str]
ENOUGH_TO_TELL = 20  # by `extent`: of so much a language can be told
SMS_UNITS = {"GSM-7": "septets", "UCS-2": "16-bit units"}


@dataclass(frozen=True)
class Finding:
    """What a check found. ``span``: in the text, in code points; None: nowhere in it."""

    check: str
    message: str
    span: Span | None = None
    hard: bool = True


@dataclass(frozen=True)
class Length:
    """How long a part is in one counting.

    ``unit``: what is counted, in words; ``detail``: what more there is to tell of it.
    """

    part: str
    counter: str
    unit: str
    count: int
    soft: int | None
    hard: int | None
    detail: str = ""


@dataclass(frozen=True)
class Review:
    """What was found in a text, how long it is as its channel counts, and which checks it had."""

    findings: list[Finding]
    lengths: list[Length]
    checks: list[str]

    @property
    def passed(self) -> bool:
        """Whether there is no fault; there may be warnings."""
        return not any(finding.hard for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """For a machine."""
        return {"passed": self.passed, **asdict(self)}


def review_copy(
    text: str,
    brief: Brief,
    channel: Channel,
    brand: Brand | None = None,
    identify: Identify | None = None,
    *,
    finished: bool = True,
) -> Review:
    """All checks of a text. ``finished``: it ended by itself.

    ``identify``: tells the language of a text, "und" where it is not sure
    (`kdexport.data.card.language_identifier`); without it the language is not checked.
    """
    pieces, stray = split_parts(text, channel, brief.language)
    lengths = list(_all_lengths(text, pieces, channel))
    tokens = tokens_of(text, brief.language)
    findings = [
        *_emptiness(text),
        *(finding for _, finding in lengths if finding),
        *_part_findings(pieces, stray, channel),
        *_wording(tokens, brief, brand),
        *_claims(tokens, brief, brand),
        *(found for piece in pieces for found in _facts(piece, brief, brand)),
        *_repetition(text),
        *_language(text, brief, identify),
        *_end(finished=finished),
    ]
    checks = list(_checks(text, brief, channel, brand, identify))
    return Review(findings, [length for length, _ in lengths], checks)


def lengths_of(text: str, channel: Channel, language: str) -> list[Length]:
    """How long a text is by each limit of its channel; it may be one still being written."""
    pieces, _ = split_parts(text, channel, language)
    return [length for length, _ in _all_lengths(text, pieces, channel)]


def review_wording(text: str, brief: Brief, brand: Brand | None = None) -> list[Finding]:
    """The faults of a text's words: banned, required, disclosures, claims without proof."""
    tokens = tokens_of(text, brief.language)
    findings = (*_wording(tokens, brief, brand), *_claims(tokens, brief, brand))
    return [finding for finding in findings if finding.hard]


def _emptiness(text: str) -> Iterator[Finding]:
    if not text.strip():
        yield Finding("empty", "there is no text")


def _end(*, finished: bool) -> Iterator[Finding]:
    if not finished:
        yield Finding("truncated", "it had not ended")


def _checks(
    text: str, brief: Brief, channel: Channel, brand: Brand | None, identify: Identify | None
) -> Iterator[str]:
    """The names of the checks that had something to look for."""
    asked = {
        "length": channel.limits or any(part.limits for part in channel.parts.values()),
        "parts": channel.parts,
        "banned": brief.banned or (brand and brand.banned),
        "required": brief.must_include,
        "disclosure": brief.disclosures or (brand and brand.disclosures),
        "claim": brand and brand.claims,
        "facts": True,
        "repetition": True,
        "language": identify and extent(text) >= ENOUGH_TO_TELL,
        "keyword": brief.keywords,
        "call to action": brief.call_to_action,
    }
    return (name for name, is_asked in asked.items() if is_asked)


def _all_lengths(
    text: str, pieces: Sequence[Piece], channel: Channel
) -> Iterator[tuple[Length, Finding | None]]:
    """Those of each part, and where there are several, of the whole."""
    for piece in pieces:
        yield from _lengths(piece, channel)
    if channel.parts:
        yield from _lengths(Piece("", text, (0, len(text))), channel)


def _lengths(piece: Piece, channel: Channel) -> Iterator[tuple[Length, Finding | None]]:
    """How long a part is by each of its limits, and what is wrong with that."""
    limits = channel.parts[piece.part].limits if piece.part else channel.limits
    for name, limit in limits.items():
        count, detail = COUNTERS[name](piece.text), ""
        if name == "sms_segments":
            sms = count_sms(piece.text)
            detail = f"{sms.encoding}, {sms.units} {SMS_UNITS[sms.encoding]}"
        length = Length(piece.part, name, UNITS[name], count, limit.soft, limit.hard, detail)
        words, hard = _beyond(count, limit)
        what = f"{piece.part}: " if piece.part else ""
        counted = f"{what}{count} {UNITS[name]}, {words}"
        yield length, Finding("length", counted, piece.span, hard) if words else None


def _beyond(count: int, limit: Limit) -> tuple[str, bool]:
    """What is wrong with a count, and whether it is a fault; "" where nothing is."""
    if limit.hard is not None and count > limit.hard:
        return f"at most {limit.hard}", True
    if limit.min is not None and count < limit.min:
        return f"at least {limit.min}", True
    if limit.soft is not None and count > limit.soft:
        return f"better at most {limit.soft}", False
    return "", False


def _part_findings(
    pieces: Sequence[Piece], stray: Span | None, channel: Channel
) -> Iterator[Finding]:
    if stray:
        yield Finding("parts", "these words belong to no part", stray)
    for name, part in channel.parts.items():
        mine = [piece for piece in pieces if piece.part == name]
        if len(mine) < part.min:
            yield Finding("parts", f"{name}: {len(mine)}, at least {part.min}")
        if len(mine) > part.max:
            span = (mine[part.max].span[0], mine[-1].span[1])
            yield Finding("parts", f"{name}: {len(mine)}, at most {part.max}", span)
        seen: set[str] = set()
        for piece in mine:
            key = " ".join(piece.text.casefold().split())
            if not key:
                yield Finding("parts", f"{name} is empty", piece.span)
            elif key in seen:
                yield Finding("parts", f"{name}: the same twice", piece.span)
            seen.add(key)


def _wording(tokens: Sequence[Token], brief: Brief, brand: Brand | None) -> Iterator[Finding]:
    """Banned and required words, disclosures; keywords and the call to action are wishes."""

    def missing(phrases: Iterable[str], check: str, hard: bool) -> Iterator[Finding]:
        for phrase in phrases:
            if phrase and not any(find_phrase(phrase, tokens, brief.language)):
                yield Finding(check, f"{phrase.removeprefix('=')!r} is missing", hard=hard)

    for phrase in dict.fromkeys((*brief.banned, *(brand.banned if brand else ()))):
        for span in find_phrase(phrase, tokens, brief.language):
            yield Finding("banned", f"{phrase.removeprefix('=')!r} is banned", span)
    texts = dict.fromkeys((*brief.disclosures, *(brand.disclosures if brand else ())))
    yield from missing((f"={text.removeprefix('=')}" for text in texts), "disclosure", True)
    yield from missing(brief.must_include, "required", True)
    yield from missing(brief.keywords, "keyword", False)
    yield from missing([brief.call_to_action], "call to action", False)


def _claims(tokens: Sequence[Token], brief: Brief, brand: Brand | None) -> Iterator[Finding]:
    """Claims that no fact or disclosure of the brief makes."""
    proofs = [tokens_of(text, brief.language) for text in (*brief.facts, *brief.disclosures)]
    for claim in brand.claims if brand else ():
        if not any(any(find_phrase(claim, proof, brief.language)) for proof in proofs):
            for span in find_phrase(claim, tokens, brief.language):
                words = f"{claim.removeprefix('=')!r} needs a fact of the brief that says so"
                yield Finding("claim", words, span)


@lru_cache(maxsize=64)
def _figures_known(texts: tuple[str, ...], languages: tuple[str, ...]) -> tuple[Figure, ...]:
    """Those of a brief, found once for all copies that are reviewed against it."""
    return tuple(figure for text in texts for figure in figures_of(text, languages))


def _facts(piece: Piece, brief: Brief, brand: Brand | None) -> Iterator[Finding]:
    """Figures that the brief does not have. It may be in the copy's language or in English."""
    known = (
        *(brief.product, brief.audience, brief.campaign, brief.objective, brief.call_to_action),
        *(*brief.facts, *brief.must_include, *brief.disclosures, *brief.keywords),
        *((brand.name, *brand.disclosures, *brand.preferred) if brand else ()),
    )
    languages = tuple(dict.fromkeys((brief.language, "en")))
    for figure in unsupported(
        figures_of(piece.text, (brief.language,)), _figures_known(known, languages)
    ):
        begin, end = figure.span
        words = piece.text[begin:end].strip()
        span = (piece.span[0] + begin, piece.span[0] + end)
        yield Finding("facts", f"{words!r} is not in the brief", span)


def _repetition(text: str) -> Iterator[Finding]:
    span = repeated_span(text)
    if span:
        yield Finding("repetition", "the same words again and again", span)


def _language(text: str, brief: Brief, identify: Identify | None) -> Iterator[Finding]:
    code = identify(text) if identify and extent(text) >= ENOUGH_TO_TELL else "und"
    if code not in (brief.language, "und"):
        yield Finding("language", f"reads as {code}, wanted is {brief.language}", (0, len(text)))
