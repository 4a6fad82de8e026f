"""`kdexport write`: copy for a file of briefs, in its order, gone on with after a kill.

A brief's rows go into a journal when they are done. A shard that a kill has cut is written again
as a whole: the rows are those of unbroken work to the byte.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kdexport import __version__
from kdexport.content.audiences import Personal
from kdexport.content.briefs import Brief
from kdexport.content.channels import Channels, load_channels
from kdexport.copywriting.ads_editor import (
    COLUMNS,
    Placement,
    ads_of,
    check_placements,
    load_placements,
)
from kdexport.copywriting.copywriter import NOTHING, Asked, Beside, Copywriter, shards
from kdexport.copywriting.ranking import STATUSES
from kdexport.copywriting.rows import (
    CopyJournal,
    check_format,
    journal_path,
    open_journal,
    write_copies,
)
from kdexport.errors import InputError
from kdexport.system.console import tracked
from kdexport.system.interrupts import Interrupted, noted
from kdexport.system.journal import file_sha256


@dataclass(frozen=True)
class Summary:
    """What came of it. ``n_written``: briefs of this call; ``statuses``: rows of the table."""

    out: str
    n_briefs: int
    n_written: int
    n_candidates: int
    statuses: dict[str, int]
    seconds: float

    @property
    def copies_per_minute(self) -> float | None:
        """Texts of this call, candidates that were not taken among them, a minute."""
        return 60 * self.n_candidates / self.seconds if self.n_candidates else None


def write_file(
    bundle: Path,
    briefs_path: Path,
    out: Path,
    asked: Asked,
    beside: Beside = NOTHING,
    *,
    ads: tuple[Path, Path] | None = None,
    overwrite: bool = False,
    n_threads: int | None = None,
    warn: Callable[[str], None] = lambda line: None,
) -> Summary:
    """Write the copies of a file of briefs, in its order, and go on where an earlier call ended.

    ``ads``: a table for Google Ads Editor to write too, and one of `load_placements`.
    Raises InputError for what cannot be used, and where ``out`` is there already; Interrupted
    after a signal, with all saved.
    """
    check_format(out)
    channels = load_channels(beside.channels)
    personal = beside.briefs(briefs_path)
    briefs = [one.brief for one in personal]
    placements = _placements(ads, briefs, channels, asked) if ads else {}
    for path in [out, *(ads[:1] if ads else ())]:
        if path.exists() and not journal_path(out).exists() and not overwrite:
            raise InputError(
                "is there already", where=str(path), remedy="give another file, or --overwrite"
            )
    writer = Copywriter(bundle, asked, beside, n_threads=n_threads, warn=warn)
    begun_with = {
        "file of briefs": file_sha256(briefs_path),
        "--against": file_sha256(beside.against) if beside.against else None,
        "--audiences": file_sha256(beside.audiences) if beside.audiences else None,
        "--ranker": file_sha256(beside.ranker) if beside.ranker else None,
        **depends_on(writer, briefs),
    }
    started = time.monotonic()
    with open_journal(out, begun_with, today()) as journal:
        n_before = len(journal.rows)
        n_texts = write_all(writer, personal, journal)
        rows = [row for number in range(len(briefs)) for row in journal.rows[number]]
        write_copies(out, rows)
        if ads:
            write_copies(ads[0], ads_of(rows, placements, channels), COLUMNS)
        journal_path(out).unlink()
    counts = Counter(row["status"] for row in rows)
    return Summary(
        out=str(out),
        n_briefs=len(briefs),
        n_written=len(briefs) - n_before,
        n_candidates=n_texts,
        statuses={status: counts[status] for status in STATUSES},
        seconds=time.monotonic() - started,
    )


def _placements(
    ads: tuple[Path, Path],
    briefs: Sequence[Brief],
    channels: Channels,
    asked: Asked,
) -> dict[str, Placement]:
    """Where ads go; all is refused that cannot be, before anything is written."""
    if asked.disclose:
        raise InputError(
            "an ad has no line for it",
            where="--disclose",
            remedy="put it into the briefs' disclosures, or leave out --google-ads",
        )
    check_format(ads[0])
    placements = load_placements(ads[1])
    check_placements(placements, briefs, channels, ads[1])
    return placements


def write_all(writer: Copywriter, briefs: Sequence[Personal], journal: CopyJournal) -> int:
    """Write what the journal does not have yet; the number of texts that took.

    Raises Interrupted after a signal, with what is done in the journal.
    """
    n_texts = 0
    with noted() as is_asked, tracked("write", "briefs", len(briefs)) as progress:
        work = [writer.work(n, one.brief, one.because) for n, one in enumerate(briefs)]
        progress(len(journal.rows), len(work))
        for shard in shards(work):
            if all(one.number in journal.rows for one in shard):
                continue
            for one, answer in writer.answers(shard, is_asked):
                n_texts += len(answer.candidates)
                if one.number not in journal.rows:
                    journal.add(one.number, writer.rows(one, answer, journal.date))
                    progress(len(journal.rows))
            journal.sync()
            if is_asked():
                raise Interrupted(f"after {len(journal.rows):,} of {len(briefs):,} briefs")
    return n_texts


def depends_on(writer: Copywriter, briefs: Sequence[Brief]) -> dict[str, Any]:
    """What rows depend on beside files, by the names under which a user knows it."""
    channels = sorted({brief.channel for brief in briefs})
    return {
        "bundle": writer.bundle.manifest_sha256,
        "--judge": writer.judge.bundle.manifest_sha256 if writer.judge else None,
        "--brand": writer.brand.model_dump(mode="json") if writer.brand else None,
        "channel": {name: writer.channels[name].model_dump(mode="json") for name in channels},
        "check of the language": writer.checks.identify is not None,
        "sentiment": writer.sentiment is not None,
        "version of kdexport": __version__,
        **{f"--{name.replace('_', '-')}": value for name, value in vars(writer.asked).items()},
    }


def today() -> str:
    """The date in UTC; that of SOURCE_DATE_EPOCH where it is set."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    now = datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)
    return now.date().isoformat()
