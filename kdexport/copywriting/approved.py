"""`kdexport content pairs`: copies that people approved, as pairs to train on.

A table that `kdexport write` wrote, with "yes" in its column ``approved``; a copy may have been
edited.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from kdexport.content.brands import load_brand
from kdexport.content.briefs import Brief
from kdexport.content.channels import load_channels
from kdexport.content.prompts import brief_messages, split_opening
from kdexport.copywriting.copywriter import Beside
from kdexport.data.pairs import Pair
from kdexport.data.tables import read_rows
from kdexport.errors import InputError

YES = {"yes", "y", "true", "1", "x"}
NO = {"no", "n", "false", "0"}


def approved_pairs(copies: Path, briefs: Path, beside: Beside, disclose: str = "") -> list[Pair]:
    """A pair for each approved copy, asked for as it was; ``disclose``: what was put before it.

    Raises InputError, with the line, for a cell that says neither yes nor no, a copy that is
    missing, or one of a brief that is not there; and where nothing is approved.
    """
    known = {one.brief.id: one.brief for one in beside.briefs(briefs)}
    channels = load_channels(beside.channels)
    brand = load_brand(beside.brand) if beside.brand else None
    pairs = []
    for name, brief, text in _approved(copies, known):
        messages = brief_messages(brief, channels[brief.channel], brand)
        added = text.removeprefix(disclose).lstrip()
        asked, opening = split_opening(messages)
        if opening and added.startswith(opening) and added != opening:
            asked, added = messages, added.removeprefix(opening)
        pairs.append(Pair(name, brief.split, tuple(asked), added, language=brief.language))
    if not pairs:
        raise InputError(
            "nothing in it is approved", where=str(copies), remedy="put yes into that column"
        )
    return pairs


def _approved(copies: Path, briefs: Mapping[str, Brief]) -> Iterator[tuple[str, Brief, str]]:
    """The name, the brief and the text of each row that is approved."""
    for row in read_rows(copies):
        cells = {name: str(cell).strip() for name, cell in row.cells.items() if cell is not None}
        said = cells.get("approved", "").casefold()
        if said and said not in YES | NO:
            raise InputError(f"approved is {said!r}", where=row.where, remedy="use yes or no")
        if said not in YES:
            continue
        brief = briefs.get(cells.get("brief", ""))
        if brief is None:
            raise InputError(f"there is no brief {cells.get('brief', '')!r}", where=row.where)
        if not cells.get("copy"):
            raise InputError("is approved and has no copy", where=row.where)
        yield f"{brief.id}-{cells.get('place', '1')}", brief, cells["copy"]
