"""What is asked of the checks of copy where many texts are written: it alone calls them."""

from collections.abc import Mapping
from dataclasses import dataclass

from kdexport.content.brands import Brand
from kdexport.content.briefs import Brief
from kdexport.content.channels import Channel
from kdexport.content.checks import strays
from kdexport.content.review import Identify, Length, Review, review_copy


@dataclass(frozen=True)
class Checked:
    """What a text violates, in words. ``over``: by how much it is too long, of what is allowed.

    ``lengths``: as the channel counts, and its limits.
    """

    hard: tuple[str, ...] = ()
    soft: tuple[str, ...] = ()
    lengths: tuple[str, ...] = ()
    over: float = 0.0


@dataclass(frozen=True)
class Checks:
    """The checks of copy, and what they need beside a brief.

    ``disclose``: stands before each copy, counted in its length. A copy of parts has it in a line
    of its own, which is none of them.
    """

    channels: Mapping[str, Channel]
    brand: Brand | None = None
    identify: Identify | None = None
    disclose: str = ""

    def shown(self, brief: Brief, text: str) -> str:
        """A text as it is to be published."""
        between = "\n" if self.channels[brief.channel].parts else " "
        return f"{self.disclose}{between}{text}".strip() if self.disclose else text

    def __call__(self, brief: Brief, text: str, *, finished: bool) -> Checked:
        """Check a text that a model wrote; ``finished``: it ended by itself."""
        channel = self.channels[brief.channel]
        shown, asked = text, brief
        if text and not channel.parts:
            shown = self.shown(brief, text)
        if self.disclose and shown != text:  # whose figures need no proof
            asked = brief.model_copy(update={"disclosures": (*brief.disclosures, self.disclose)})
        review = review_copy(shown, asked, channel, self.brand, self.identify, finished=finished)
        hard = [f"{one.check}: {one.message}" for one in review.findings if one.hard]
        soft = [f"{one.check}: {one.message}" for one in review.findings if not one.hard]
        if strays(text, brief.facts, brief.language):
            soft.append("strays: hardly a word of the facts")
        return Checked(tuple(hard), tuple(soft), _lengths(review), _over(review))


def check_of(fault: str) -> str:
    """The check that found a fault, which is told as ``check: what``."""
    return fault.partition(":")[0]


def _lengths(review: Review) -> tuple[str, ...]:
    """The longest of each kind of part in each counting."""
    longest: dict[tuple[str, str], Length] = {}
    for one in review.lengths:
        key = one.part, one.counter
        if key not in longest or one.count > longest[key].count:
            longest[key] = one
    return tuple(
        f"{one.part} {one.count}/{one.hard or one.soft or '-'} {one.counter}".strip()
        for one in longest.values()
    )


def _over(review: Review) -> float:
    return max([0.0, *(one.count / one.hard - 1 for one in review.lengths if one.hard)])
