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
from kdexport.content.prompts import brief_messages
from kdexport.runtime.generate import Step, generate
from kdexport.runtime.sample import Sampler, make_sampler
from kdexport.runtime.session import Session, open_session
from kdexport.runtime.text import TextCodec, load_text

Echo = Callable[..., Any]


@dataclass(frozen=True)
class Writer:
    """An opened bundle and how it is to write."""

    session: Session
    codec: TextCodec
    sampler: Sampler
    max_new_tokens: int
    seed: int

    def stream(self, text: str, steps: list[Step], *, max_new_tokens: int) -> Iterator[str]:
        """The copy for a rendered prompt, piece by piece; the steps are added to ``steps``."""
        decoder = self.codec.stream()
        eos_ids = set(self.session.manifest.text.eos_token_ids)
        for step in generate(
            self.session,
            self.codec.encode(text),
            self.sampler,
            max_new_tokens=max_new_tokens,
            seed=self.seed,
        ):
            steps.append(step)
            if step.token_id not in eos_ids:
                yield decoder.push(step.token_id)
        yield decoder.flush()


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
    text = prompt if raw else writer.codec.render_chat([{"role": "user", "content": prompt}])
    _write(writer, text, writer.max_new_tokens, echo, {"prompt": prompt}, as_json)


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
        text = writer.codec.render_chat(brief_messages(brief, channel))
        n_new = min(writer.max_new_tokens, channel.max_new_tokens)
        _write(writer, text, n_new, echo, {"id": brief.id, "product": brief.product}, as_json)


def _write(
    writer: Writer, text: str, n_new: int, echo: Echo, facts: dict[str, Any], as_json: bool
) -> None:
    steps: list[Step] = []
    pieces: list[str] = []
    started = time.perf_counter()
    for piece in writer.stream(text, steps, max_new_tokens=n_new):
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
        "mean_logprob": sum(step.logprob for step in steps) / len(steps),
        "seconds": round(seconds, 4),
    }
    echo(json.dumps(facts, ensure_ascii=False))
