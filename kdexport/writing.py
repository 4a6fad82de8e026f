"""`kdexport generate`: copy for a prompt or for briefs, streamed to whoever listens."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdexport.bundle import open_bundle
from kdexport.content.briefs import load_briefs
from kdexport.content.channels import load_channels
from kdexport.content.prompts import Message, brief_messages, split_opening
from kdexport.errors import InputError
from kdexport.runtime.generate import Step, generate
from kdexport.runtime.sample import Sampler, make_sampler
from kdexport.runtime.session import Session, open_session
from kdexport.runtime.text import TextCodec, first_line, load_text

Echo = Callable[..., Any]


@dataclass(frozen=True)
class Writer:
    """An opened bundle and how it is to write."""

    session: Session
    codec: TextCodec
    sampler: Sampler
    max_new_tokens: int
    seed: int

    def stream(
        self, text: str, steps: list[Step], *, max_new_tokens: int, one_line: bool
    ) -> Iterator[str]:
        """The copy for a rendered prompt, piece by piece; the steps are added to ``steps``.

        ``one_line``: up to the first line break.
        """
        decoder = self.codec.stream()
        stop_ids = self.codec.line_end_ids if one_line else frozenset()
        cut = first_line if one_line else str
        for step in generate(
            self.session,
            self.codec.encode(text),
            self.sampler,
            max_new_tokens=max_new_tokens,
            seed=self.seed,
            stop_ids=stop_ids,
            n_logprobs=0,
        ):
            steps.append(step)
            if step.in_text:
                yield cut(decoder.push(step.token_id))
        yield cut(decoder.flush())


def open_writer(
    bundle: Path,
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    top_k: int,
    repetition_penalty: float,
    seed: int,
    threads: int | None,
) -> Writer:
    """Open a bundle, its hashes checked, and make the sampler."""
    opened = open_bundle(bundle)
    sampler = make_sampler(
        temperature=temperature, top_p=top_p, top_k=top_k, repetition_penalty=repetition_penalty
    )
    session = open_session(opened, n_threads=threads)
    return Writer(session, load_text(opened), sampler, max_new_tokens, seed)


def write_prompt(
    bundle: Path, prompt: str, echo: Echo, *, raw: bool, as_json: bool, **options: Any
) -> None:
    """Answer one prompt; through the chat template unless ``raw``."""
    writer = open_writer(bundle, **options)
    asked: str | list[Message] = prompt if raw else [{"role": "user", "content": prompt}]
    _write(writer, asked, writer.max_new_tokens, echo, {"prompt": prompt}, as_json)


def write_briefs(
    bundle: Path, briefs_path: Path, echo: Echo, *, raw: bool, as_json: bool, **options: Any
) -> None:
    """Write the copy of each brief, in order; a channel's own limit of tokens holds."""
    briefs = load_briefs(briefs_path)
    writer = open_writer(bundle, **options)
    channels = load_channels()
    for brief in briefs:
        channel = channels[brief.channel]
        if not as_json:
            echo(f"[{brief.id}] {brief.product}, {channel.label}:")
        messages = brief_messages(brief, channel)
        n_new = min(writer.max_new_tokens, channel.max_new_tokens)
        facts = {"id": brief.id, "product": brief.product}
        try:
            _write(writer, messages, n_new, echo, facts, as_json, one_line=channel.one_line)
        except InputError as error:
            where = error.where or f"{briefs_path}: {brief.id}"
            raise InputError(error.message, where=where, remedy=error.remedy) from error


def _write(
    writer: Writer,
    prompt: str | list[Message],
    n_new: int,
    echo: Echo,
    facts: dict[str, Any],
    as_json: bool,
    *,
    one_line: bool = False,
) -> None:
    """Answer a text as it stands, or messages through the chat template."""
    if isinstance(prompt, str):
        text, opening = prompt, ""
    else:
        text, (_, opening) = writer.codec.render_chat(prompt), split_opening(prompt)
    steps: list[Step] = []
    pieces = [opening]
    if not as_json:
        echo(opening, nl=False)
    started = time.perf_counter()
    for piece in writer.stream(text, steps, max_new_tokens=n_new, one_line=one_line):
        pieces.append(piece)
        if not as_json:
            echo(piece, nl=False)
    seconds = time.perf_counter() - started
    if not as_json:
        echo("")
        return
    facts |= {
        "text": "".join(pieces).strip(),
        "n_tokens": len(steps),
        "finish_reason": steps[-1].finish_reason,
        "mean_logprob": sum(step.logprob or 0.0 for step in steps) / len(steps),
        "seconds": round(seconds, 4),
    }
    echo(json.dumps(facts, ensure_ascii=False))
