"""Which requests a bench has answered, and what their copy is held to."""

import json
from collections.abc import Iterable, Sequence

from kdexport.content.prompts import split_opening
from kdexport.copywriting.checking import Checks
from kdexport.data.card import language_identifier
from kdexport.data.pairs import Pair
from kdexport.measuring.scoring import Briefed
from kdexport.pipeline.preflight import brand_of, channels_of, load_asked_briefs
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


def briefs_of(run: Run, pairs: Sequence[Pair]) -> Briefed | None:
    """The briefs of pairs that the teacher wrote, and the checks that a run's copy is held to."""
    if run.recipe.data.briefs is None:
        return None
    known = {brief.id: brief for brief in load_asked_briefs(run)}
    names = [
        (pair.id, pair.id if pair.id in known else pair.id.rpartition("-")[0]) for pair in pairs
    ]
    briefs = {name: known[brief] for name, brief in names if brief in known}
    return Briefed(briefs, Checks(channels_of(run), brand_of(run), language_identifier()))
