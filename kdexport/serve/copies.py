"""/v1/copy: copy for a brief, asked for and reviewed as `kdexport generate --brief` does."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from kdexport.content.brands import Brand
from kdexport.content.channels import Channels, load_channels
from kdexport.content.counting import UNITS
from kdexport.content.languages import load_languages
from kdexport.content.prompts import brief_messages, load_openings, split_opening
from kdexport.content.review import Identify, lengths_of, review_copy
from kdexport.runtime.text import TextCodec
from kdexport.serve.fields import CopyRequest
from kdexport.serve.forms import Event, Written, check_bias, check_room, read_prompt, usage
from kdexport.serve.jobs import Job, Piece


@dataclass(frozen=True)
class Rules:
    """What copy is written by. ``identify``: tells a text's language; None: it is not checked."""

    channels: Channels = field(default_factory=load_channels)
    brand: Brand | None = None
    identify: Identify | None = None


def choices(rules: Rules, name: str) -> dict[str, Any]:
    """What a brief may choose from: channels with their limits, languages, known tones, campaigns.

    ``name``: of the model. ``units``: what each counter of a limit counts, in words.
    """
    openings = load_openings()
    shown = {"name", "label", "limits", "parts", "sources"}
    return {
        "model": name,
        "brand": rules.brand.name if rules.brand else None,
        "channels": [
            channel.model_dump(mode="json", include=shown) for channel in rules.channels.values()
        ],
        "languages": [
            {"code": code, "name": language.name} for code, language in load_languages().items()
        ],
        "units": dict(UNITS),
        "tones": list(openings.greetings),
        "campaigns": [name for name in openings.occasions if name != "none"],
    }


class CopyForm:
    """A brief, and the copies that come of it.

    A copy begins with its channel's opening, ends where the channel says, and is never cut: a
    review tells whether it keeps to the limits.
    """

    def __init__(
        self,
        asked: CopyRequest,
        codec: TextCodec,
        longest: int,
        vocab_size: int,
        rules: Rules,
        name: str,
    ) -> None:
        check_bias(asked.logit_bias, vocab_size)
        self.streams = asked.stream
        self._name = name
        self._rules = rules
        self._brief = brief = asked.brief
        self._channel = channel = rules.channels[brief.channel]
        messages = brief_messages(brief, channel, rules.brand)
        self._opening = split_opening(messages)[1]
        ids = read_prompt(codec, codec.render_chat(messages), longest, "brief")
        n_new = min(asked.max_tokens or channel.max_new_tokens, channel.max_new_tokens)
        check_room(len(ids), n_new, longest, "brief")
        self.jobs: Sequence[Job] = [
            Job(
                ids,
                asked.sampler(),
                n_new,
                stop=("\n",) if channel.one_line else (),
                seed=asked.seed if brief.seed is None else brief.seed,
                key=str(number or ""),
            )
            for number in range(brief.variants or 1)
        ]
        self._counts = asked.stream_options.include_lengths
        self._so_far = [Written(self._opening) for _ in self.jobs]

    def first(self) -> Iterator[Event]:
        """The opening of each copy."""
        if self._opening:
            for number in range(len(self.jobs)):
                yield {"variant": number, "text": self._opening} | self._lengths(number)

    def event(self, piece: Piece) -> Event:
        """A piece of a copy, and where that was asked for, how long the copy has become."""
        reason = {"finish_reason": piece.finish_reason} if piece.finish_reason else {}
        self._so_far[piece.number].add(piece)
        told = {"variant": piece.number, "text": piece.text} | reason
        return told | self._lengths(piece.number)

    def _lengths(self, number: int) -> Event:
        if not self._counts:
            return {}
        copy = self._so_far[number]
        found = lengths_of(copy.text.strip(), self._channel, self._brief.language)
        return {"n_tokens": len(copy.steps), "lengths": [asdict(length) for length in found]}

    def last(self, texts: Sequence[Written]) -> Iterator[Event]:
        """The copies as a whole."""
        yield self.whole(texts)

    def whole(self, texts: Sequence[Written]) -> Event:
        """The copies, each with its review."""
        return {
            "model": self._name,
            "channel": self._channel.name,
            "copies": [self._copy(number, text) for number, text in enumerate(texts)],
            "usage": usage(self.jobs, texts),
        }

    def _copy(self, number: int, text: Written) -> Event:
        words, rules = (self._opening + text.text).strip(), self._rules
        review = review_copy(
            words,
            self._brief,
            self._channel,
            rules.brand,
            rules.identify,
            finished=text.finish_reason == "stop",
        )
        return {
            "variant": number,
            "text": words,
            "n_tokens": len(text.steps),
            "finish_reason": text.finish_reason,
            "review": review.as_json(),
        }
