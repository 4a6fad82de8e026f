"""Which stages of a run are done: a small JSON file that a person can read.

A stage counts as done when its fingerprint is the recorded one, every file it wrote is there with
the recorded sha256, and they are where its outputs are wanted now. The journal knows nothing of
what stages do.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kdexport.errors import KdexportError

VERSION = 1


@dataclass(frozen=True)
class Entry:
    """One finished stage. ``outputs``: path -> sha256, paths relative to the journal's folder."""

    fingerprint: str
    outputs: dict[str, str]
    seconds: float


class Journal:
    """The journal of one run folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, Entry] = {}
        if path.exists():
            try:
                content = json.loads(path.read_text("utf-8"))
                if content["version"] == VERSION:
                    stages = content["stages"].items()
                    self.entries = {
                        k: Entry(**{**v, "outputs": dict(v["outputs"])}) for k, v in stages
                    }
            except (ValueError, TypeError, KeyError, AttributeError):
                self.entries = {}  # damaged: every stage runs again

    def is_done(self, stage: str, fingerprint: str, outputs: Iterable[Path]) -> bool:
        """Whether the stage has written these outputs with this fingerprint, and they are whole."""
        entry = self.entries.get(stage)
        if entry is None or entry.fingerprint != fingerprint:
            return False
        written = {parent for name in entry.outputs for parent in (Path(name), *Path(name).parents)}
        if not all(Path(self._relative(output)) in written for output in outputs):
            return False
        return all(_is_whole(self._absolute(name), sha) for name, sha in entry.outputs.items())

    def record(self, stage: str, fingerprint: str, outputs: Iterable[Path], seconds: float) -> None:
        """Note a finished stage with the hashes of all files under ``outputs``.

        Raises KdexportError for an output that is not there.
        """
        found = {output: _files(output) for output in outputs}
        for output in (output for output, files in found.items() if not files):
            raise KdexportError(f"the stage {stage} has not written it", where=str(output))
        files = sorted(file for files in found.values() for file in files)
        hashes = {self._relative(file): file_sha256(file) for file in files}
        self.entries[stage] = Entry(fingerprint, hashes, round(seconds, 2))
        beside = self.path.with_suffix(".partial")
        stages = {name: vars(entry) for name, entry in self.entries.items()}
        beside.write_text(json.dumps({"version": VERSION, "stages": stages}, indent=1), "utf-8")
        beside.replace(self.path)

    def _relative(self, file: Path) -> str:
        # Outputs may lie outside of the run folder (exported/NAME), so the way there may climb,
        # and must not climb out of a link.
        return os.path.relpath(file.resolve(), self.path.parent.resolve())

    def _absolute(self, name: str) -> Path:
        return self.path.parent / name


def fingerprint(*parts: object) -> str:
    """sha256 over the canonical JSON of what a stage depends on."""
    text = json.dumps(parts, sort_keys=True, default=str, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return [p for p in path.rglob("*") if p.is_file()]
    return [path] if path.is_file() else []


def _is_whole(path: Path, sha256: str) -> bool:
    return path.is_file() and file_sha256(path) == sha256
