"""Which requests a bench has answered, and what their copy is held to."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdexport.content.brands import load_brand
from kdexport.content.channels import load_channels
from kdexport.content.prompts import brief_messages, split_opening
from kdexport.copywriting.checking import Checks
from kdexport.copywriting.copywriter import Beside
from kdexport.data.card import language_identifier
from kdexport.data.pairs import Pair, read_pairs
from kdexport.measuring.scoring import Briefed
from kdexport.pipeline.preflight import BESIDE, brand_of, channels_of, load_asked_briefs
from kdexport.pipeline.run import Run


@dataclass(frozen=True)
class Requests:
    """Requests for copy. ``briefed``: those of them that are briefs, and what they are held to."""

    pairs: Sequence[Pair] = ()
    briefed: Briefed | None = None


NOTHING = Requests()


def ask_for(path: Path, beside: Beside, n: int) -> Requests:
    """Requests for the briefs of a file, ``n`` at most, evenly apart.

    Raises InputError that names file, line and field of a brief that cannot be.
    """
    channels = load_channels(beside.channels)
    brand = load_brand(beside.brand) if beside.brand else None
    briefs = {one.brief.id: one.brief for one in beside.briefs(path)}
    pairs = [
        Pair(name, "test", tuple(brief_messages(brief, channels[brief.channel], brand)), "")
        for name, brief in briefs.items()
    ]
    checks = Checks(channels, brand, language_identifier())
    return Requests(spread(asked_once(pairs), n), Briefed(briefs, checks))


def asked_once(pairs: Iterable[Pair]) -> list[Pair]:
    """Those with a prompt; of several with the same one the first: greedy copy would be one."""
    asked: dict[str, Pair] = {}
    for pair in pairs:
        if pair.messages:
            asked.setdefault(json.dumps(pair.messages), pair)
    return list(asked.values())


def requests_of(run: Run) -> tuple[list[Pair], list[Pair]]:
    """The test pairs of a run that copy is written for, and those of them that are shown."""
    wish = run.recipe.bench
    test = (pair for pair in read_pairs(run.pairs) if pair.split == "test")
    if run.recipe.data.own is not None:  # copy is asked for briefs alone
        test = (pair for pair in test if not pair.id.startswith(BESIDE))
    asked = asked_once(test)
    copied = spread(asked, max(wish.n_copies, wish.n_samples))
    return copied, spread(copied, wish.n_samples)


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
