"""Broken implementations, and whether the proof that is about them sees them."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from kdexport.train.case import Case, Proof

Patch = pytest.MonkeyPatch
Broken = Callable[[Patch, Case], Case | None]
Traps = Mapping[Broken, tuple[Any, str]]
"""What is broken -> the rows of proofs about it, and the name of the one that has to fail."""


def told(rows: Any) -> dict[str, Proof]:
    return {row.name: row for row in rows}


def is_seen(broken: Broken, traps: Traps, case: Case, patch: Patch) -> bool:
    """Whether its proof fails once a case is broken."""
    rows, name = traps[broken]
    return not told(rows(broken(patch, case) or case))[name].ok
