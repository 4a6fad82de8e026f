"""Which requests a bench has answered, and what their copy must be about."""

import json
from collections.abc import Iterable, Sequence

from kdexport.content.prompts import split_opening
from kdexport.data.pairs import Pair
from kdexport.pipeline.preflight import load_asked_briefs
from kdexport.pipeline.run import Run


def asked_once(pairs: Iterable[Pair]) -> list[Pair]:
    """Those with a prompt; of several with the same one the first: greedy copy would be one."""
    asked: dict[str, Pair] = {}
    for pair in pairs:
        if pair.messages:
            asked.setdefault(json.dumps(pair.messages), pair)
    return list(asked.values())


def spread(pairs: Sequence[Pair], n: int) -> list[Pair]:
    """``n`` of the pairs, evenly apart: neighbours are often about one product."""
    n = min(n, len(pairs))
    return [pairs[i * len(pairs) // n] for i in range(n)]


def request_of(pair: Pair) -> str:
    """What the user asked for: the last message but for the answer's opening."""
    asked, _ = split_opening(pair.messages)
    return asked[-1]["content"]


def facts_of(run: Run, pairs: Sequence[Pair]) -> dict[str, Sequence[str]]:
    """The facts of each pair's brief, where the teacher wrote the pairs."""
    if run.recipe.data.briefs is None:
        return {}
    facts = {brief.id: brief.facts for brief in load_asked_briefs(run)}
    briefs = {
        pair.id: pair.id if pair.id in facts else pair.id.rpartition("-")[0] for pair in pairs
    }
    return {name: facts[brief] for name, brief in briefs.items() if brief in facts}
