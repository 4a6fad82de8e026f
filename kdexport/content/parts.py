"""Copy that is made of parts: a line for each, which begins with what the part is called."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import regex

from kdexport.content.channels import Channel
from kdexport.content.matching import Span


@dataclass(frozen=True)
class Piece:
    """One part of a copy: ``part`` is its name in the channel, "" for a copy without parts."""

    part: str
    text: str
    span: Span


def split_parts(text: str, channel: Channel, language: str) -> tuple[list[Piece], Span | None]:
    """The parts of a copy, and where words stand before the first one; None where none do.

    ``Headline: …``, ``Headline 2: …`` and ``**Headline:** …`` begin one; it ends where the next
    begins. A copy of a channel without parts is one part.
    """
    if not channel.parts:
        return [Piece("", text, (0, len(text)))], None
    labels = {
        label.casefold(): name
        for name, part in channel.parts.items()
        for label in (part.label, part.label_in(language))
    }
    choice = "|".join(regex.escape(label) for label in sorted(labels, key=len, reverse=True))
    begins = list(
        regex.finditer(
            rf"^[ \t]*(?:[-*•][ \t]+)?(?:\*\*)?(?P<label>{choice})(?:[ \t]*\d+)?(?:\*\*)?"
            r"[ \t]*[:\uff1a](?:\*\*)?[ \t]*",
            text,
            regex.IGNORECASE | regex.MULTILINE,
        )
    )
    pieces = []
    for at, begin in enumerate(begins):
        end = begins[at + 1].start() if at + 1 < len(begins) else len(text)
        body = text[begin.end() : end]
        first = begin.end() + len(body) - len(body.lstrip())
        body = body.strip()
        pieces.append(Piece(labels[begin["label"].casefold()], body, (first, first + len(body))))
    before = text[: begins[0].start()] if begins else text
    stray = (0, len(before.rstrip())) if before.strip() else None
    return pieces, stray


def join_parts(parts: Mapping[str, Sequence[str]], channel: Channel, language: str) -> str:
    """The copy that `split_parts` takes apart into these texts, by the name of their part."""
    return "\n".join(
        f"{channel.parts[name].label_in(language)}: {text}"
        for name, texts in parts.items()
        for text in texts
    )
