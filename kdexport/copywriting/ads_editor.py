"""Responsive search ads as a table that Google Ads Editor imports.

An ad is a copy of a channel with parts ``headline`` and ``description``, and ``path`` if it has
any. Knows rows and parts; no models.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdexport.content.briefs import Brief
from kdexport.content.channels import Channel
from kdexport.content.parts import split_parts
from kdexport.copywriting.ranking import PASS, WARN
from kdexport.copywriting.rows import Row
from kdexport.data.tables import read_rows
from kdexport.errors import InputError

PLACES = {
    "headline": tuple(f"Headline {n}" for n in range(1, 16)),
    "description": tuple(f"Description {n}" for n in range(1, 5)),
    "path": ("Path 1", "Path 2"),
}
PART_COLUMNS = tuple(name for names in PLACES.values() for name in names)
COLUMNS = ("Campaign", "Ad group", *PART_COLUMNS, "Final URL")
"""As the editor names them: Google Ads Editor Help, "CSV file columns"."""
SETTINGS = ("brief", "campaign", "ad_group", "final_url")


@dataclass(frozen=True)
class Placement:
    """Where the ad of a brief belongs, and where it leads."""

    campaign: str
    ad_group: str
    final_url: str


def is_ad(channel: Channel) -> bool:
    """Whether copies of a channel are ads of this kind."""
    return {"headline", "description"} <= channel.parts.keys() <= PLACES.keys()


def load_placements(path: Path) -> dict[str, Placement]:
    """A table with the columns of `SETTINGS`: where the ad of each brief goes, by its id.

    Raises InputError with the line of what is missing, unknown or there twice.
    """
    found: dict[str, Placement] = {}
    for row in read_rows(path):
        cells = {name: str(cell).strip() for name, cell in row.cells.items()}
        for name in SETTINGS:
            if not cells.get(name):
                raise InputError(f"has no {name}", where=row.where)
        if extra := cells.keys() - set(SETTINGS):
            names = ", ".join(SETTINGS)
            raise InputError(f"unknown column {min(extra)!r}; known are {names}", where=row.where)
        brief = cells.pop("brief")
        if brief in found:
            raise InputError(f"brief {brief!r} stands there twice", where=row.where)
        if not cells["final_url"].startswith(("https://", "http://")):
            raise InputError("final_url begins neither with https:// nor http://", where=row.where)
        found[brief] = Placement(**cells)
    return found


def check_placements(
    placements: Mapping[str, Placement],
    briefs: Sequence[Brief],
    channels: Mapping[str, Channel],
    where: Path,
) -> None:
    """Refuse briefs without any ad, and ads that have no place."""
    ads = [brief.id for brief in briefs if is_ad(channels[brief.channel])]
    if not ads:
        raise InputError(
            "no brief is for a channel with headlines and descriptions",
            where="--google-ads",
            remedy="use the channel google_rsa",
        )
    missing = [name for name in ads if name not in placements]
    if missing:
        more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise InputError(f"has no row for brief {missing[0]!r}{more}", where=str(where))


def ads_of(
    rows: Iterable[Row], placements: Mapping[str, Placement], channels: Mapping[str, Channel]
) -> list[Row]:
    """A row for each ad that passes its checks, in the order of the copies."""
    ads = []
    for row in rows:
        channel = channels[row["channel"]]
        if row["status"] in (PASS, WARN) and is_ad(channel):
            to = placements[row["brief"]]
            ad: Row = dict.fromkeys(COLUMNS, "")
            ad |= {"Campaign": to.campaign, "Ad group": to.ad_group, "Final URL": to.final_url}
            pieces, _ = split_parts(row["copy"], channel, row["language"])
            for part, names in PLACES.items():
                texts = [piece.text for piece in pieces if piece.part == part]
                ad |= dict(zip(names, texts, strict=False))
            ads.append(ad)
    return ads
