"""Text as it is written: tokens to pieces of text, stop strings, several variants at once.

Joins `generate` and `text`; no model family, no command line.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

from kdexport.runtime.beam import Beam, BeamOptions, beam_search
from kdexport.runtime.generate import Options, Runs, Step, generate_variants
from kdexport.runtime.sample import Sampler
from kdexport.runtime.stop import StopScanner
from kdexport.runtime.text import TextCodec


@dataclass(frozen=True)
class Piece:
    """What one token of a variant brought: the text that is now certain, which may be none."""

    variant: int
    text: str
    step: Step


class TextStream:
    """One text as it grows, up to the first of its stop strings."""

    def __init__(self, codec: TextCodec, stop: Sequence[str] = ()) -> None:
        self._decoder = codec.stream()
        self._scanner = StopScanner(stop)

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come."""
        return self._scanner.stopped

    def push(self, token_id: int) -> str:
        """Add a token; return the text that is now certain."""
        return self._scanner.push(self._decoder.push(token_id))

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        return self._scanner.push(self._decoder.flush()) + self._scanner.flush()


def write_text(
    session: Runs,
    codec: TextCodec,
    prompt_ids: Sequence[int],
    sampler: Sampler,
    *,
    max_new_tokens: int,
    n: int = 1,
    stop: Sequence[str] = (),
    cache: Any = None,
    **options: Unpack[Options],
) -> Iterator[Piece]:
    """Write ``n`` texts for one prompt, piece by piece, those of the variants in turn.

    A text ends before the first of its ``stop`` strings, wherever tokens are cut: no piece has one
    in it, nor the beginning of one that comes. No piece ends within a character. Other arguments
    and errors as in `generate_variants`.
    """
    texts = [TextStream(codec, stop) for _ in range(n)]
    certain = [""] * n
    also = options.get("stops")

    def stops(number: int, token_id: int) -> bool:
        certain[number] = texts[number].push(token_id)
        return (also is not None and also(number, token_id)) or texts[number].stopped

    options["stops"] = stops
    for number, step in generate_variants(
        session, prompt_ids, sampler, n=n, max_new_tokens=max_new_tokens, cache=cache, **options
    ):
        text, certain[number] = certain[number], ""
        yield Piece(number, text + texts[number].flush() if step.finish_reason else text, step)


def search_text(
    session: Runs,
    codec: TextCodec,
    prompt_ids: Sequence[int],
    *,
    stop: Sequence[str] = (),
    **options: Unpack[BeamOptions],
) -> list[tuple[str, Beam]]:
    """The texts of a beam search, best first; a stop string ends a beam as an end token does.

    Arguments and errors as in `beam_search`.
    """
    StopScanner(stop)  # refuses what cannot be one
    if stop:
        options["stops"] = lambda ids: any(one in codec.decode(ids) for one in stop)
    eos_ids = frozenset(session.manifest.text.eos_token_ids)
    found = []
    for beam in beam_search(session, prompt_ids, **options):
        text = TextStream(codec, stop)
        pieces = [text.push(token_id) for token_id in beam.ids if token_id not in eos_ids]
        found.append(("".join(pieces) + text.flush(), beam))
    return found
