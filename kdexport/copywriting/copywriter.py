"""Copies of briefs: over-generated, checked, ranked, and as rows of a table. Knows no output.

Briefs are written in shards, those with prompts of similar length together. What is in a shard
depends on all briefs alone, not on what is done already: an int8 graph rounds a text by its
neighbours.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kdexport import __version__
from kdexport.bundle import Bundle, open_bundle
from kdexport.content.audiences import Personal, load_personal
from kdexport.content.brands import load_brand
from kdexport.content.briefs import Brief, names_of
from kdexport.content.channels import Channel, load_channels
from kdexport.content.prompts import Message, brief_messages, split_opening
from kdexport.copywriting.candidates import MAX_ROWS, Answer, Candidate, Overgenerator, Request
from kdexport.copywriting.checking import Checked, Checks
from kdexport.copywriting.fluency import Judge
from kdexport.copywriting.ranker import load_ranker
from kdexport.copywriting.ranking import ERROR, FAIL, NEARLY, Place, Scored, choose
from kdexport.copywriting.rows import COLUMNS, Row
from kdexport.copywriting.sentiment import sentiment_scorer
from kdexport.data.card import NOT_IDENTIFIED, language_identifier
from kdexport.data.contamination import HeldOut
from kdexport.data.pairs import Pair, read_pairs
from kdexport.runtime.cpu import MANY_TEXTS
from kdexport.runtime.session import open_session
from kdexport.runtime.text import TextCodec, load_text

TEXTS_A_SHARD = 512
DIGITS = 4  # of log-probabilities
MORE_DIGITS = 6  # of the probability of a click


@dataclass(frozen=True)
class Asked:
    """How copy is written. ``disclose``: stands before each copy.

    ``keep``: rows for a brief that has no ``variants`` of its own; ``seed`` likewise.
    """

    candidates: int = 8
    keep: int = 1
    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 50
    seed: int = 0
    disclose: str = ""


@dataclass(frozen=True)
class Beside:
    """Files that hold for all briefs. ``against``: pairs that were trained on; ``judge``: a bundle
    that ranks; ``channels``: a folder of them; ``brand``: a style pack; ``audiences``: segments;
    ``ranker``: of `kdexport.copywriting.ranker`.
    """

    against: Path | None = None
    judge: Path | None = None
    channels: Path | None = None
    brand: Path | None = None
    audiences: Path | None = None
    ranker: Path | None = None

    def briefs(self, path: Path) -> list[Personal]:
        """The briefs of a file, those that name segments once for each."""
        return load_personal(path, load_channels(self.channels), self.audiences)


@dataclass(frozen=True)
class Work:
    """A brief that is to be written: its place in the input, its channel, chat and request.

    ``because``: why it is as it is for its segment.
    """

    number: int
    brief: Brief
    channel: Channel
    messages: list[Message]
    request: Request
    because: Sequence[str] = ()


NOTHING = Beside()


class Copywriter:
    """A bundle that writes, with what judges it."""

    def __init__(
        self,
        bundle: Path,
        asked: Asked,
        beside: Beside = NOTHING,
        *,
        n_threads: int | None = None,
        max_rows: int = MAX_ROWS,
        warn: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.asked = asked
        self.bundle: Bundle = open_bundle(bundle)
        self.codec: TextCodec = load_text(self.bundle)
        self.ranker = load_ranker(beside.ranker) if beside.ranker else None
        self.sentiment = sentiment_scorer()
        self.judge = Judge(beside.judge, n_threads) if beside.judge else None
        self.trained_on = HeldOut(_copies(beside.against), NEARLY) if beside.against else None
        self.channels = load_channels(beside.channels)
        self.brand = load_brand(beside.brand) if beside.brand else None
        self.checks = Checks(self.channels, self.brand, language_identifier(), asked.disclose)
        if self.checks.identify is None:
            warn(NOT_IDENTIFIED)
        self.session = open_session(
            self.bundle, n_threads=n_threads, many_tokens=max_rows >= MANY_TEXTS, warn=warn
        )
        self.generator = Overgenerator(
            self.session,
            self.codec,
            temperature=asked.temperature,
            top_p=asked.top_p,
            top_k=asked.top_k,
            max_rows=max_rows,
        )

    def work(self, number: int, brief: Brief, because: Sequence[str] = ()) -> Work:
        """What is to be written for a brief."""
        channel = self.channels[brief.channel]
        messages = brief_messages(brief, channel, self.brand)
        request = Request(
            key=brief.id,
            prompt_ids=self.codec.encode(self.codec.render_chat(messages)),
            max_new_tokens=channel.max_new_tokens,
            n=max(self.asked.candidates, self.keep(brief)),
            opening=split_opening(messages)[1],
            stop=("\n",) if channel.one_line else (),
            seed=self.asked.seed if brief.seed is None else brief.seed,
        )
        return Work(number, brief, channel, messages, request, because)

    def keep(self, brief: Brief) -> int:
        """How many rows a brief gets."""
        return brief.variants or self.asked.keep

    def score(self, work: Work, candidates: Sequence[Candidate]) -> list[Scored]:
        """The candidates of a brief, checked; equal ones once."""
        known: dict[tuple[str, bool], tuple[Checked, float | None]] = {}
        scored = []
        for one in candidates:
            key = one.text, one.finished
            if key not in known:
                known[key] = self._check(work, one)
            checked, judged = known[key]
            logprobs = _short(one.mean_logprob), _short(judged)
            scored.append(
                Scored(one.number, one.text, checked, *logprobs, self._click_score(work, one.text))
            )
        return scored

    def _click_score(self, work: Work, text: str) -> float | None:
        """The probability of a click by the ranker, where there is one."""
        if self.ranker is None:
            return None
        segment = "; ".join(names_of(work.brief.segment))
        return round(self.ranker.score(text, work.brief.channel, segment), MORE_DIGITS)

    def _check(self, work: Work, candidate: Candidate) -> tuple[Checked, float | None]:
        """What a text violates, and where it passes, what the judge says."""
        text = candidate.text
        checked = self.checks(work.brief, text, finished=candidate.finished)
        if self.trained_on and (match := self.trained_on.match(_alone("", text))):
            nearly = "" if match.is_equal else "nearly "
            why = f"alike: {nearly}the training text {match.held_out!r}"
            checked = _violating(checked, why)
        if self.judge is None or checked.hard:
            return checked, None
        return checked, self.judge.mean_logprob(work.messages, candidate.added)

    def rows(self, work: Work, answer: Answer, date: str) -> list[Row]:
        """The rows of a brief."""
        facts = self._facts(work, date)
        if answer.error is not None:
            return [
                facts | {"place": place, "status": ERROR, "violations": [str(answer.error)]}
                for place in range(1, self.keep(work.brief) + 1)
            ]
        scored = self.score(work, answer.candidates)
        facts["n_passed"] = sum(not one.checked.hard for one in scored)
        places = choose(scored, self.keep(work.brief))
        return [
            facts | {"place": at} | self._told(work, one) for at, one in enumerate(places, start=1)
        ]

    def _told(self, work: Work, place: Place) -> Row:
        told: Row = {"status": place.status, "violations": list(place.violations)}
        if place.scored is None:
            return told
        one, checked = place.scored, place.scored.checked
        return told | {
            "nearest" if place.status == FAIL else "copy": self.checks.shown(work.brief, one.text),
            "lengths": list(checked.lengths),
            "mean_logprob": one.logprob,
            "judge_logprob": one.judge_logprob,
            "click_score": one.click_score,
            "sentiment": self.sentiment and self.sentiment(one.text, work.brief.language),
            "candidate": one.number,
        }

    def _facts(self, work: Work, date: str) -> Row:
        """A row with what is known of it before anything is written."""
        manifest = self.bundle.manifest
        return dict.fromkeys(COLUMNS) | {
            "brief": work.brief.id,
            "product": work.brief.product,
            "channel": work.brief.channel,
            "language": work.brief.language,
            "segment": names_of(work.brief.segment),
            "because": list(work.because),
            "bundle": manifest.name,
            "manifest_sha256": self.bundle.manifest_sha256,
            "recipe_fingerprint": manifest.recipe_fingerprint,
            "seed": work.request.seed,
            "kdexport": __version__,
            "date": date,
        }

    def answers(
        self, shard: Sequence[Work], should_stop: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[Work, Answer]]:
        """The candidates of a shard's briefs, as they are done."""
        for at, answer in self.generator.write([one.request for one in shard], should_stop):
            yield shard[at], answer


def shards(work: Sequence[Work]) -> Iterator[Sequence[Work]]:
    """The work in parts of `TEXTS_A_SHARD` texts, similar lengths together."""
    order = sorted(
        work, key=lambda one: (one.request.max_new_tokens, len(one.request.prompt_ids), one.number)
    )
    shard: list[Work] = []
    n_texts = 0
    for one in order:
        shard.append(one)
        n_texts += one.request.n
        if n_texts >= TEXTS_A_SHARD:
            yield shard
            shard, n_texts = [], 0
    if shard:
        yield shard


def _copies(path: Path) -> Iterator[Pair]:
    """The copies of a file of pairs, each with the opening that it went on from."""
    for pair in read_pairs(path):
        yield _alone(pair.id, split_opening(pair.messages)[1] + pair.completion)


def _alone(name: str, text: str) -> Pair:
    return Pair(name, "train", (), text)


def _violating(checked: Checked, why: str) -> Checked:
    return replace(checked, hard=(*checked.hard, why))


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)
