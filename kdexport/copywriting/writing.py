"""`kdexport generate`: copy for a prompt or for briefs, streamed to whoever listens."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from kdexport.bundle import open_bundle
from kdexport.content.brands import load_brand
from kdexport.content.briefs import Brief, load_briefs
from kdexport.content.channels import Channel, load_channels
from kdexport.content.prompts import Message, brief_messages, split_opening
from kdexport.content.review import review_copy
from kdexport.copywriting.text_form import OPTIONS, kept_to
from kdexport.data.card import language_identifier
from kdexport.errors import InputError
from kdexport.runtime.constrain import TextForm
from kdexport.runtime.cpu import MANY_TEXTS
from kdexport.runtime.generate import Step
from kdexport.runtime.prompt_cache import PromptCache, Reads
from kdexport.runtime.sample import Sampler, TokenSampler, make_sampler
from kdexport.runtime.session import Session, check_ids, open_session
from kdexport.runtime.speculate import Guesses, Speculation, grouping_error, match_vocabularies
from kdexport.runtime.stop import StopScanner
from kdexport.runtime.stream import Piece, search_text, write_text
from kdexport.runtime.text import TextCodec, load_text

Echo = Callable[..., Any]
GROUPED = "Write a line about fresh bread, please."


@dataclass(frozen=True)
class Writer:
    """An opened bundle and how it is to write.

    ``beams`` above 1: by a beam search, of which the best ``variants`` are taken. ``kept`` holds
    beginnings of prompts; ``speculation`` is the session with a draft beside it; ``constrained``
    is the sampler where texts have to have a form.
    """

    session: Session
    codec: TextCodec
    sampler: TokenSampler
    max_new_tokens: int
    seed: int = 0
    min_new_tokens: int = 0
    variants: int = 1
    beams: int = 1
    stop: Sequence[str] = ()
    n_logprobs: int | None = None
    lists_logprobs: bool = False
    kept: PromptCache | None = None
    speculation: Speculation | None = None
    constrained: Sampler | None = None

    def stream(self, text: str, *, max_new_tokens: int, one_line: bool) -> Iterator[Piece]:
        """The copy for a rendered prompt, piece by piece; ``one_line``: to the first line break."""
        ids = self.codec.encode(text)
        cache = None
        if self.kept:
            self.kept.reads = Reads()
            cache = self.kept.begin(ids, max_new_tokens)
        if self.speculation:
            self.speculation.guesses = Guesses()
        yield from write_text(
            self.speculation or self.session,
            self.codec,
            ids,
            self.speculation.choose if self.speculation else self.constrained or self.sampler,
            n=self.variants,
            cache=cache,
            stop=self._stop(one_line),
            max_new_tokens=max_new_tokens,
            min_new_tokens=min(self.min_new_tokens, max_new_tokens),
            seed=self.seed,
            n_logprobs=self.n_logprobs,
        )

    def search(self, text: str, *, max_new_tokens: int, one_line: bool) -> list["Copy"]:
        """The best texts of a beam search for a rendered prompt."""
        found = search_text(
            self.session,
            self.codec,
            self.codec.encode(text),
            sampler=self.sampler,
            width=self.beams,
            n=self.variants,
            stop=self._stop(one_line),
            max_new_tokens=max_new_tokens,
            min_new_tokens=min(self.min_new_tokens, max_new_tokens),
        )
        return [
            Copy(words, len(beam.ids), beam.finish_reason, beam.logprob / len(beam.ids))
            for words, beam in found
        ]

    def _stop(self, one_line: bool) -> Sequence[str]:
        return (*self.stop, "\n") if one_line else self.stop


@dataclass
class Copy:
    """One text as it comes, and what `--json` says of it."""

    text: str = ""
    n_tokens: int = 0
    finish_reason: str | None = None
    mean_logprob: float | None = None
    seconds: float = 0.0
    steps: list[Step] = field(default_factory=list)

    def add(self, piece: Piece, seconds: float) -> None:
        """Go on with a piece."""
        self.text += piece.text
        self.n_tokens += 1
        self.finish_reason = piece.step.finish_reason
        self.seconds = seconds
        if piece.step.logprob is not None:
            self.steps.append(piece.step)
            self.mean_logprob = sum(s.logprob or 0.0 for s in self.steps) / len(self.steps)


def open_writer(
    bundle: Path,
    *,
    max_new_tokens: int,
    min_new_tokens: int,
    stop: Sequence[str],
    variants: int,
    beams: int,
    logit_bias: Sequence[str],
    seed: int,
    threads: int | None,
    n_logprobs: int | None = None,
    lists_logprobs: bool = False,
    prompt_cache: Path | None = None,
    draft: Path | None = None,
    exact: bool = False,
    form: TextForm | None = None,
    warn: Callable[[str], None] = lambda line: None,
    **sampling: Any,
) -> Writer:
    """Open a bundle, its hashes checked, and make the sampler; ``sampling`` is what that takes.

    ``exact``, always so with a draft: see `Session`. ``form``: what each text has to be.
    """
    bias = parse_bias(logit_bias)
    sampler = make_sampler(logit_bias=bias, **sampling)
    StopScanner(stop)  # refuses what cannot be one
    if min_new_tokens > max_new_tokens:
        raise InputError("is more than --max-new-tokens", where="--min-new-tokens")
    if beams > 1:
        _check_beams(beams, variants, sampler, prompt_cache)
    if draft is not None and max(beams, variants) > 1:
        raise InputError("guesses for one text at a time", where="--draft")
    if form is not None:
        _check_form(form, min_new_tokens=min_new_tokens, beams=beams, draft=draft)
    opened = open_bundle(bundle)
    check_ids(np.asarray(list(bias), dtype=np.int64), opened.manifest.model.vocab_size)
    exact = exact or draft is not None
    many = max(variants, beams) >= MANY_TEXTS
    session = open_session(opened, n_threads=threads, exact=exact, many_tokens=many, warn=warn)
    codec = load_text(opened)
    kept = PromptCache(session, folder=prompt_cache, warn=warn) if prompt_cache else None
    return Writer(
        session,
        codec,
        sampler,
        max_new_tokens,
        seed,
        min_new_tokens,
        variants,
        beams,
        stop,
        n_logprobs,
        lists_logprobs,
        kept,
        _speculation(session, codec, sampler, draft, threads, warn) if draft else None,
        kept_to(form, sampler, codec, session.vocab_size) if form else None,
    )


def _check_beams(
    beams: int, variants: int, sampler: TokenSampler, prompt_cache: Path | None
) -> None:
    """Refuse what a beam search is not asked for."""
    if not sampler.greedy:
        raise InputError("draws no tokens", where="--beams", remedy="leave out --temperature")
    if beams < variants:
        raise InputError("cannot be more than --beams", where="--variants")
    if prompt_cache is not None:
        raise InputError("is not of a beam search", where="--prompt-cache")


def _check_form(form: TextForm, *, min_new_tokens: int, beams: int, draft: Path | None) -> None:
    """Refuse what chooses tokens in another way than the form, which also says where texts end."""
    others = {"--min-new-tokens": min_new_tokens, "--beams": beams > 1, "--draft": draft}
    for option, is_asked in others.items():
        if is_asked:
            raise InputError(f"does not go together with {OPTIONS[form.kind]}", where=option)


def _speculation(
    session: Session,
    codec: TextCodec,
    sampler: TokenSampler,
    draft: Path,
    threads: int | None,
    warn: Callable[[str], None],
) -> Speculation:
    """Open a draft, its vocabulary compared with the teacher's."""
    opened = open_bundle(draft)
    vocabularies = match_vocabularies(codec, load_text(opened))
    error = grouping_error(session, codec.encode(GROUPED))
    if error:
        warn(
            f"{codec.where}: its logits depend on how many tokens are read at once, by {error:.2g}:"
            " a text may differ from that of --exact without --draft"
        )
    guessing = open_session(opened, n_threads=threads, warn=warn)
    return Speculation(session, guessing, vocabularies, sampler)


def parse_bias(texts: Sequence[str]) -> dict[int, float]:
    """Token ids and what is added to their logits, from texts like ``198=-5``."""
    bias = {}
    for text in texts:
        token, _, value = text.partition("=")
        try:
            bias[int(token)] = float(value)
        except ValueError:
            raise InputError(
                f"{text!r} is no ID=VALUE, as in 198=-5", where="--logit-bias"
            ) from None
    return bias


def write_prompt(
    bundle: Path, prompt: str, echo: Echo, *, raw: bool, as_json: bool, **options: Any
) -> None:
    """Answer one prompt; through the chat template unless ``raw``."""
    writer = open_writer(bundle, warn=_to_stderr(echo), **_with_logprobs(options, as_json))
    asked: str | list[Message] = prompt if raw else [{"role": "user", "content": prompt}]
    _write(writer, asked, writer.max_new_tokens, echo, {"prompt": prompt}, as_json)


def write_briefs(
    bundle: Path,
    briefs_path: Path,
    echo: Echo,
    *,
    raw: bool,
    as_json: bool,
    channels_folder: Path | None = None,
    brand_path: Path | None = None,
    **options: Any,
) -> None:
    """Write the copy of each brief, in order; a channel's own limit of tokens holds.

    A brief's own ``variants`` and ``seed`` come before those of the command.
    """
    channels = load_channels(channels_folder)
    brand = load_brand(brand_path) if brand_path else None
    briefs = load_briefs(briefs_path, channels)
    identify = language_identifier() if as_json else None
    writer = open_writer(bundle, warn=_to_stderr(echo), **_with_logprobs(options, as_json))
    for brief in briefs:
        channel = channels[brief.channel]
        if not as_json:
            echo(f"[{brief.id}] {brief.product}, {channel.label}:")
        messages = brief_messages(brief, channel, brand)
        n_new = min(writer.max_new_tokens, channel.max_new_tokens)
        facts = {"id": brief.id, "product": brief.product}

        def review(
            text: str, finished: bool, brief: Brief = brief, channel: Channel = channel
        ) -> dict[str, Any]:
            found = review_copy(text, brief, channel, brand, identify, finished=finished)
            return {"review": found.as_json()}

        try:
            mine = _writer_for(brief, writer)
            _write(mine, messages, n_new, echo, facts, as_json, channel.one_line, review)
        except InputError as error:
            where = error.where or f"{briefs_path}: {brief.id}"
            raise InputError(error.message, where=where, remedy=error.remedy) from error


def _writer_for(brief: Brief, writer: Writer) -> Writer:
    """The writer with the variants and the seed that a brief asks for."""
    variants = brief.variants or writer.variants
    if variants > 1 and writer.speculation:
        raise InputError("variants: a draft guesses for one text at a time")
    if 1 < writer.beams < variants:
        raise InputError("variants: cannot be more than --beams")
    seed = writer.seed if brief.seed is None else brief.seed
    return replace(writer, variants=variants, seed=seed)


def _to_stderr(echo: Echo) -> Callable[[str], None]:
    return lambda line: echo(line, err=True)


def _with_logprobs(options: dict[str, Any], as_json: bool) -> dict[str, Any]:
    """The options of a writer: JSON has a mean log-probability, and may list each."""
    asked = options.pop("logprobs")
    if asked is not None and not as_json:
        raise InputError("is of --json, which is not given", where="--logprobs")
    if asked is not None and options["beams"] > 1:
        raise InputError("is not of a beam search", where="--logprobs")
    n_logprobs = (asked or 0) if as_json else None
    return {**options, "n_logprobs": n_logprobs, "lists_logprobs": asked is not None}


def _write(
    writer: Writer,
    prompt: str | list[Message],
    n_new: int,
    echo: Echo,
    facts: dict[str, Any],
    as_json: bool,
    one_line: bool = False,
    review: Callable[[str, bool], dict[str, Any]] = lambda text, finished: {},
) -> None:
    """Answer a text as it stands, or messages through the chat template."""
    if isinstance(prompt, str):
        text, opening = prompt, ""
    else:
        text, (_, opening) = writer.codec.render_chat(prompt), split_opening(prompt)
    streams = not as_json and writer.variants == 1 and writer.beams == 1
    if streams:
        echo(opening, nl=False)
    started = time.perf_counter()
    if writer.beams > 1:
        copies = writer.search(text, max_new_tokens=n_new, one_line=one_line)
        seconds = time.perf_counter() - started
        copies = [replace(copy, seconds=seconds) for copy in copies]
    else:
        copies = [Copy() for _ in range(writer.variants)]
        for piece in writer.stream(text, max_new_tokens=n_new, one_line=one_line):
            copies[piece.variant].add(piece, time.perf_counter() - started)
            if streams:
                echo(piece.text, nl=False)
    if streams:
        echo("")
        return
    for number, copy in enumerate(copies):
        words = (opening + copy.text).strip()
        if as_json:
            told = facts | _facts(copy, number, words, writer)
            told |= review(words, copy.finish_reason == "stop")
            echo(json.dumps(told, ensure_ascii=False))
        else:
            echo(words if writer.variants == 1 else f"{number + 1}. {words}")


def _facts(copy: Copy, number: int, words: str, writer: Writer) -> dict[str, Any]:
    """What `--json` says of one text."""
    facts = {
        "variant": number,
        "text": words,
        "n_tokens": copy.n_tokens,
        "finish_reason": copy.finish_reason,
        "mean_logprob": copy.mean_logprob,
        "seconds": round(copy.seconds, 4),
    }
    if writer.kept:
        facts["prompt_tokens"] = asdict(writer.kept.reads)
    if writer.speculation:
        guesses = writer.speculation.guesses
        facts["draft"] = asdict(guesses) | {"tokens_per_call": round(guesses.tokens_per_call, 3)}
    if writer.lists_logprobs:
        facts["logprobs"] = [
            _token(writer, step.token_id, step.logprob)
            | {"top": [_token(writer, *one) for one in step.top]}
            for step in copy.steps
        ]
    return facts


def _token(writer: Writer, token_id: int, logprob: float | None) -> dict[str, Any]:
    return {"id": token_id, "token": writer.codec.decode([token_id]), "logprob": logprob}
