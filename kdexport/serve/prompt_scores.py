"""Log-probabilities of a prompt's own tokens, as it is read. Knows tokens; no text."""

from collections.abc import Iterator, Sequence

import numpy as np

from kdexport.runtime.generate import Step, scored
from kdexport.runtime.kv_cache import KVCache
from kdexport.runtime.logits import log_sums
from kdexport.runtime.prompt_cache import BLOCK
from kdexport.runtime.session import Session


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
        found = zip(following, logits, log_sums(logits), strict=False)
        yield [scored(*one, n_top) for one in found]
