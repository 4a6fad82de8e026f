"""/v1/copy: copy for a brief, asked for and reviewed as `kdexport generate --brief` does, or chosen
from several texts as `kdexport write` does.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from kdexport.content.brands import Brand
from kdexport.content.channels import Channels, load_channels
from kdexport.content.counting import UNITS
from kdexport.content.languages import load_languages
from kdexport.content.prompts import brief_messages, load_openings, split_opening
from kdexport.content.review import Identify, lengths_of, review_copy
from kdexport.copywriting.checking import Checks
from kdexport.copywriting.ranking import Place, Scored, choose
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
    review tells whether it keeps to the limits. Where candidates were asked for, the best of them
    are the copies, and what is streamed is of a ``candidate`` in place of a ``variant``.
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
        self._chooses = asked.candidates is not None
        likeliest = asked.model_copy(update={"temperature": 0.0})
        self.jobs: Sequence[Job] = [
            Job(
                ids,
                (likeliest if self._chooses and not number else asked).sampler(),
                n_new,
                stop=("\n",) if channel.one_line else (),
                seed=asked.seed if brief.seed is None else brief.seed,
                key=str(number or ""),
                n_logprobs=0 if self._chooses else None,
            )
            for number in range(asked.n_texts)
        ]
        self._name_of_text = "candidate" if self._chooses else "variant"
        self._counts = asked.stream_options.include_lengths
        self._so_far = [Written(self._opening) for _ in self.jobs]

    def first(self) -> Iterator[Event]:
        """The opening of each copy."""
        if self._opening:
            for number in range(len(self.jobs)):
                yield {self._name_of_text: number, "text": self._opening} | self._lengths(number)

    def event(self, piece: Piece) -> Event:
        """A piece of a copy, and where that was asked for, how long the copy has become."""
        reason = {"finish_reason": piece.finish_reason} if piece.finish_reason else {}
        self._so_far[piece.number].add(piece)
        told = {self._name_of_text: piece.number, "text": piece.text} | reason
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
        told: Event = {"model": self._name, "channel": self._channel.name}
        if self._chooses:
            told |= self._chosen(texts)
        else:
            told["copies"] = [self._copy(number, text) for number, text in enumerate(texts)]
        return told | {"usage": usage(self.jobs, texts)}

    def _chosen(self, texts: Sequence[Written]) -> Event:
        """The best of the candidates, and how many of all have no fault."""
        rules, brief = self._rules, self._brief
        checks = Checks(rules.channels, rules.brand, rules.identify)
        scored = []
        for number, text in enumerate(texts):
            words = self._words(text)
            checked = checks(brief, words, finished=text.finish_reason == "stop")
            logprobs = [step.logprob or 0.0 for step in text.steps]
            mean = sum(logprobs) / len(logprobs) if logprobs else None
            scored.append(Scored(number, words, checked, mean))
        places = choose(scored, brief.variants or 1)
        return {
            "copies": [self._placed(at, place, texts) for at, place in enumerate(places)],
            "n_passed": sum(not one.checked.hard for one in scored),
        }

    def _placed(self, at: int, place: Place, texts: Sequence[Written]) -> Event:
        told: Event = {"status": place.status, "violations": list(place.violations)}
        if place.scored is None:
            return {"variant": at, "text": ""} | told
        number = place.scored.number
        return self._copy(at, texts[number]) | {"candidate": number} | told

    def _words(self, text: Written) -> str:
        return (self._opening + text.text).strip()

    def _copy(self, number: int, text: Written) -> Event:
        words, rules = self._words(text), self._rules
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
