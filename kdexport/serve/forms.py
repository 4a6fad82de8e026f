"""Requests as jobs, and what comes of them as each route tells it. Knows no HTTP."""

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from kdexport.errors import InputError
from kdexport.runtime.constrain import TextForm
from kdexport.runtime.generate import Step
from kdexport.runtime.sample import Sampler
from kdexport.runtime.text import TextCodec
from kdexport.serve.fields import ChatRequest, CompletionRequest
from kdexport.serve.jobs import Job, Piece
from kdexport.serve.logprobs import chat_logprobs, completion_logprobs
from kdexport.serve.refusals import RefusedError

Event = dict[str, Any]
LONGEST_WORD = 64  # characters a token at most, of a text that is worth tokenizing
Constrain = Callable[[Sampler, TextForm], Sampler]


@dataclass
class Written:
    """What has come of one job."""

    text: str = ""
    steps: list[Step] = field(default_factory=list)
    scored: list[Step] = field(default_factory=list)
    finish_reason: str | None = None

    def add(self, piece: Piece) -> None:
        """Go on with a piece."""
        self.text += piece.text
        self.scored += piece.scored
        self.finish_reason = piece.finish_reason
        self.steps += piece.steps


class Form(Protocol):
    """A request's jobs, and how its route tells what comes of them."""

    jobs: Sequence[Job]
    streams: bool

    def first(self) -> Iterator[Event]:
        """The events before anything is written."""
        ...

    def event(self, piece: Piece) -> Event:
        """A piece as an event."""
        ...

    def last(self, texts: Sequence[Written]) -> Iterator[Event]:
        """The events after all is written."""
        ...

    def whole(self, texts: Sequence[Written]) -> Event:
        """All at once."""
        ...


def usage(jobs: Sequence[Job], texts: Sequence[Written]) -> dict[str, int]:
    """Counts of tokens; a prompt counts once, however many texts are written for it."""
    n_prompt = sum(len(job.prompt_ids) for job in jobs if not job.key)
    n_new = sum(len(text.steps) for text in texts)
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_new,
        "total_tokens": n_prompt + n_new,
    }


def read_prompt(
    codec: TextCodec, prompt: str | Sequence[int], longest: int, param: str
) -> list[int]:
    """The token ids of a prompt; one of no tokens, or hopelessly long, is refused."""
    if not isinstance(prompt, str):
        return list(prompt)
    if len(prompt) > LONGEST_WORD * longest:
        raise RefusedError(
            400,
            f"the prompt has {len(prompt)} characters; the model reads {longest} tokens, and "
            f"{LONGEST_WORD * longest} characters are taken for it",
            param,
            "context_length_exceeded",
        )
    return codec.encode(prompt)


def check_room(n_prompt: int, n_new: int, longest: int, param: str) -> None:
    """Refuse what the model cannot hold, by both numbers."""
    if n_prompt == 0:
        raise RefusedError(400, "the prompt is empty", param)
    if n_prompt + n_new > longest:
        raise RefusedError(
            400,
            f"the model reads {longest} tokens, answer included; {n_prompt + n_new} are asked for "
            f"({n_prompt} of the prompt and {n_new} new ones)",
            param,
            "context_length_exceeded",
        )


def check_bias(bias: dict[int, float], vocab_size: int) -> None:
    """Refuse tokens that the model does not know."""
    for token in bias:
        if token >= vocab_size:
            words = f"token {token} is not of the model's vocabulary of {vocab_size}"
            raise RefusedError(400, words, "logit_bias")


def check_ids(ids: Sequence[int], vocab_size: int) -> None:
    """Refuse token ids that the model does not know."""
    wrong = next((token for token in ids if token >= vocab_size), None)
    if wrong is not None:
        raise RefusedError(
            400, f"token {wrong} is not of the model's vocabulary of {vocab_size}", "prompt"
        )


class _OpenAI:
    """What both of OpenAI's forms share. ``constrain``: a sampler that keeps to a text's form."""

    def __init__(self, asked: CompletionRequest | ChatRequest, kind: str, prefix: str) -> None:
        self.streams = asked.stream
        self.jobs: Sequence[Job] = []
        self._has_usage = asked.stream_options.include_usage
        self._head = {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": asked.model,
        }

    @staticmethod
    def _sampler(asked: CompletionRequest | ChatRequest, constrain: Constrain) -> Sampler:
        sampler = asked.sampler()
        if asked.form is None:
            return sampler
        param, form = asked.form
        try:
            return constrain(sampler, form)
        except InputError as error:
            raise RefusedError(400, str(error), param) from None

    def _chunk(self, *choices: Event) -> Event:
        none_yet = {"usage": None} if self._has_usage else {}
        return self._head | {"choices": list(choices)} | none_yet

    def last(self, texts: Sequence[Written]) -> Iterator[Event]:
        """The counts, where they were asked for."""
        if self._has_usage:
            yield self._head | {"choices": [], "usage": usage(self.jobs, texts)}


class CompletionForm(_OpenAI):
    """/v1/completions."""

    def __init__(
        self,
        asked: CompletionRequest,
        codec: TextCodec,
        longest: int,
        vocab_size: int,
        constrain: Constrain,
    ) -> None:
        super().__init__(asked, "text_completion", "cmpl")
        check_bias(asked.logit_bias, vocab_size)
        self._codec = codec
        self._asked = asked
        prompts = [read_prompt(codec, prompt, longest, "prompt") for prompt in asked.prompts]
        for ids in prompts:
            check_room(len(ids), asked.max_tokens, longest, "prompt")
            check_ids(ids, vocab_size)
        self._echoes = [
            (prompt if isinstance(prompt, str) else codec.decode(prompt)) if asked.echo else ""
            for prompt in asked.prompts
        ]
        sampler = self._sampler(asked, constrain)
        self.jobs = [
            Job(
                ids,
                sampler,
                asked.max_tokens,
                min_new_tokens=min(asked.min_tokens, asked.max_tokens),
                stop=asked.stop,
                seed=asked.seed,
                key=str(number or ""),
                n_logprobs=asked.logprobs,
                scores_prompt=asked.echo and asked.logprobs is not None,
            )
            for ids in prompts
            for number in range(asked.n)
        ]
        self._offsets = [0] * len(self.jobs)  # of each text's next token, in characters

    def _echo(self, number: int) -> str:
        return self._echoes[number // self._asked.n]

    def first(self) -> Iterator[Event]:
        """The prompts, where they are to be echoed; their log-probabilities come later."""
        if self._asked.echo:
            for number in range(len(self.jobs)):
                yield self._chunk(self._choice(number, self._echo(number), [], None))

    def event(self, piece: Piece) -> Event:
        """A chunk with what a piece brought."""
        steps = [*piece.scored, *piece.steps]
        offset = self._offsets[piece.number]
        choice = self._choice(piece.number, piece.text, steps, piece.finish_reason, offset)
        if choice["logprobs"]:
            self._offsets[piece.number] += sum(map(len, choice["logprobs"]["tokens"]))
        return self._chunk(choice)

    def whole(self, texts: Sequence[Written]) -> Event:
        """All choices and the counts."""
        choices = [
            self._choice(
                number,
                self._echo(number) + text.text,
                [*text.scored, *text.steps],
                text.finish_reason,
            )
            for number, text in enumerate(texts)
        ]
        return self._head | {"choices": choices, "usage": usage(self.jobs, texts)}

    def _choice(
        self, number: int, text: str, steps: Sequence[Step], reason: str | None, offset: int = 0
    ) -> Event:
        n_top = self._asked.logprobs
        logprobs = None
        if n_top is not None:
            logprobs = completion_logprobs(self._codec, steps, n_top, offset)
        return {"index": number, "text": text, "logprobs": logprobs, "finish_reason": reason}


class ChatForm(_OpenAI):
    """/v1/chat/completions."""

    def __init__(
        self,
        asked: ChatRequest,
        codec: TextCodec,
        longest: int,
        vocab_size: int,
        constrain: Constrain,
    ) -> None:
        kind = "chat.completion.chunk" if asked.stream else "chat.completion"
        super().__init__(asked, kind, "chatcmpl")
        check_bias(asked.logit_bias, vocab_size)
        self._codec = codec
        self._asked = asked
        prompt = codec.render_chat([message.as_read for message in asked.messages])
        ids = read_prompt(codec, prompt, longest, "messages")
        check_room(len(ids), asked.n_new or 1, longest, "messages")
        n_new = asked.n_new or longest - len(ids)
        sampler = self._sampler(asked, constrain)
        self.jobs = [
            Job(
                ids,
                sampler,
                n_new,
                min_new_tokens=min(asked.min_tokens, n_new),
                stop=asked.stop,
                seed=asked.seed,
                key=str(number or ""),
                n_logprobs=asked.top_logprobs if asked.logprobs else None,
            )
            for number in range(asked.n)
        ]

    def first(self) -> Iterator[Event]:
        """Who is speaking."""
        for number in range(len(self.jobs)):
            opening = {"role": "assistant", "content": ""}
            yield self._chunk({"index": number, "delta": opening, "finish_reason": None})

    def event(self, piece: Piece) -> Event:
        """A chunk with what a piece brought."""
        delta = {"content": piece.text} if piece.text else {}
        choice = {"index": piece.number, "delta": delta, "finish_reason": piece.finish_reason}
        return self._chunk(choice | self._logprobs(piece.steps))

    def whole(self, texts: Sequence[Written]) -> Event:
        """All choices and the counts."""
        choices = [
            {
                "index": number,
                "message": {"role": "assistant", "content": text.text, "refusal": None},
                "finish_reason": text.finish_reason,
                **self._logprobs(text.steps),
            }
            for number, text in enumerate(texts)
        ]
        return self._head | {"choices": choices, "usage": usage(self.jobs, texts)}

    def _logprobs(self, steps: Sequence[Step]) -> Event:
        if not self._asked.logprobs:
            return {"logprobs": None}
        return {"logprobs": chat_logprobs(self._codec, steps)}
