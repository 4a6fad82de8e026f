"""Log-probabilities of a prompt's own tokens, as it is read. Knows tokens; no text."""

from collections.abc import Iterator, Sequence

import numpy as np

from kdexport.runtime.generate import Step
from kdexport.runtime.kv_cache import KVCache
from kdexport.runtime.logits import log_sum_exp, most_likely
from kdexport.runtime.prompt_cache import BLOCK
from kdexport.runtime.session import Array, Session


def scored_parts(
    session: Session, cache: KVCache, ids: Sequence[int], n_top: int
) -> Iterator[list[Step]]:
    """The log-probabilities of a text's tokens, a block at a time, as it is read into a cache.

    ``n_top``: how many of the likeliest tokens come with each. The first token has none of it.
    """
    yield [Step(ids[0])]
    tokens = np.asarray(ids, dtype=np.int64)
    for begin in range(0, len(ids), BLOCK):
        part = tokens[begin : begin + BLOCK]
        logits = session.run(part[None], cache, logit_rows=np.arange(len(part)))
        following = ids[begin + 1 : begin + BLOCK + 1]
        yield [_scored(row, token, n_top) for row, token in zip(logits, following, strict=False)]


def _scored(logits: Array, token_id: int, n_top: int) -> Step:
    """A token by the logits before it, float32 [V]."""
    total = log_sum_exp(logits)
    top = most_likely(logits, n_top).tolist() if n_top else []
    likely = tuple((one, float(logits[one]) - total) for one in top)
    return Step(token_id, float(logits[token_id]) - total, top=likely)
