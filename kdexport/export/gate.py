"""Thresholds on a bundle that is still being written: one that fails them is not committed.

Asked is what needs no clock: the size, and the quality against the bundle's own reference. Speed
and memory are the bench's to tell.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from kdexport.bundle import REFERENCE, served_bytes
from kdexport.errors import ThresholdError
from kdexport.runtime.quality import load_reference, measure_quality
from kdexport.runtime.session import Session
from kdexport.runtime.token_scores import Quality
from kdexport.verdict.conditions import Condition, failures

SIZE = "size_mb"
QUALITY = {field.name for field in fields(Quality)}


@dataclass(frozen=True)
class Gate:
    """What a bundle must not fail. ``arm``: as which it will stand in a report."""

    arm: str
    thresholds: Sequence[Condition]

    def check(self, staging: Path, open_session: Callable[[], Session]) -> None:
        """Measure a bundle's folder; raise ThresholdError for what it fails.

        A number that cannot be measured, for want of a reference, fails too.
        """
        asked = [t for t in self.thresholds if t.measure in {SIZE, *QUALITY}]
        known: dict[str, Any] = {}
        if any(t.measure in QUALITY for t in asked) and (staging / REFERENCE).exists():
            reference = load_reference(staging / REFERENCE)
            known = asdict(measure_quality(open_session(), reference, teacher_vocabulary=False))
        files = {p.relative_to(staging).as_posix(): p for p in staging.rglob("*") if p.is_file()}
        known[SIZE] = served_bytes({name: p.stat().st_size for name, p in files.items()}) / 1e6
        lines = failures(asked, [self.arm], self.arm, lambda arm, name: known.get(name))
        if lines:
            raise ThresholdError(
                f"{'; '.join(lines)}; nothing was written", remedy="--allow keeps it all the same"
            )
