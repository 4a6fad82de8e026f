"""How long writing takes: `generate` and `generate_batch` as users run them, from text to text."""

import itertools
import time
from dataclasses import dataclass
from typing import Any

from kdexport.errors import InputError
from kdexport.runtime.generate import Runs, generate, generate_batch
from kdexport.runtime.sample import make_sampler

FILLER = (
    "Our spring collection is here, and every order ships free this week. Find soft cotton "
    "shirts, sturdy canvas bags and rain jackets in twelve colours, made to last for years. "
)


@dataclass(frozen=True)
class Latency:
    """One run: time to first token, then the gaps between tokens (ITL), in milliseconds.

    Of a batch: to the first token of every text, then between the steps of all.
    ``prefill_tok_s`` counts the prompts' tokens over the time to first token, tokenizing included.
    """

    ttft_ms: float
    itl_ms: list[float]
    prefill_tok_s: float
    batch_size: int = 1

    @property
    def decode_tok_s(self) -> float:
        """Tokens of all texts after their first, over the time they took."""
        return 1000 * self.batch_size * len(self.itl_ms) / sum(self.itl_ms)


def measure_once(
    session: Runs, codec: Any, prompt: str, n_new: int, batch_size: int = 1
) -> Latency:
    """Write ``n_new`` tokens greedily after ``prompt``; an end token does not end the run.

    ``batch_size``: the same for so many texts at a time. Raises InputError where the model has no
    room for them.
    """
    decoders = [codec.stream() for _ in range(batch_size)]
    marks = [time.perf_counter()]
    prompts = [codec.encode(prompt) for _ in range(batch_size)]
    n_read = len(prompts[0])
    check_room(n_read, n_new, session.manifest.model.max_length)

    def written(number: int, token_id: int) -> bool:
        decoders[number].push(token_id)
        if number == batch_size - 1:
            marks.append(time.perf_counter())
        return False

    if batch_size == 1:
        steps = generate(session, prompts[0], make_sampler(), max_new_tokens=n_new, ignore_eos=True)
        for step in steps:
            written(0, step.token_id)
    else:
        generate_batch(
            session,
            prompts,
            make_sampler(),
            max_new_tokens=[n_new] * batch_size,
            batch_size=batch_size,
            stops=written,
            ignore_eos=True,
        )
    gaps = [1000 * (b - a) for a, b in itertools.pairwise(marks)]
    return Latency(gaps[0], gaps[1:], batch_size * n_read / (gaps[0] / 1000), batch_size)


def check_room(n_prompt: int, n_new: int, max_length: int, where: str = "") -> None:
    """Refuse to measure more tokens than a model can hold; ``where`` says who asked for them."""
    if n_prompt + n_new > max_length:
        raise InputError(
            f"{n_prompt} tokens of prompt and {n_new} new ones are beyond the model's {max_length}",
            where=where,
            remedy="measure fewer",
        )


def prompt_of(codec: Any, n_tokens: int) -> str:
    """A text that the codec cuts into ``n_tokens`` tokens, or as near below as there is."""
    text = FILLER * (2 + n_tokens // 8)
    ids = codec.encode(text)
    for n_taken in range(n_tokens, 0, -1):
        prompt = codec.decode(ids[:n_taken])
        if len(codec.encode(prompt)) <= n_tokens:
            return str(prompt)
    return str(codec.decode(ids[:1]))
