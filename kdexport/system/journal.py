"""Which stages of a run are done: a small JSON file that a person can read.

A stage counts as done when its fingerprint is the recorded one, every file it wrote is there with
the recorded sha256, and they are where its outputs are wanted now. The journal knows nothing of
what stages do.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kdexport.errors import KdexportError
from kdexport.system.machine import cache_folder

VERSION = 1
SHA256 = re.compile(r"[0-9a-f]{64}")


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
        try:
            content = json.loads(path.read_text("utf-8"))
            if content["version"] == VERSION:
                stages = content["stages"].items()
                self.entries = {k: Entry(**{**v, "outputs": dict(v["outputs"])}) for k, v in stages}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            self.entries = {}  # none, or damaged: every stage runs again

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
        if self.path.is_dir():  # damaged, as above
            shutil.rmtree(self.path)
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


def folder_fingerprint(folder: Path) -> str:
    """sha256 over the hashes of configuration, tokenizer and weights."""
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".safetensors", ".jinja"):
            digest.update(f"{file.name}:{file_digest(file)}\n".encode())
    return digest.hexdigest()


def file_digest(path: Path, *, remember: bool = True) -> str:
    """sha256 of a file; of large ones it is remembered by path, size and time of change."""
    stat = path.stat()
    note: Path | None = None
    if remember and stat.st_size > 10_000_000:
        key = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
        note = cache_folder() / "digests" / hashlib.sha256(key.encode()).hexdigest()
        with suppress(OSError, ValueError):
            known = note.read_text("ascii")
            if SHA256.fullmatch(known):
                return known
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if note is not None:
        _remember(note, digest)
    return digest


def _remember(note: Path, digest: str) -> None:
    """Write a note beside and then in place; a cache that cannot be written is none."""
    beside = note.with_name(f".{note.name}.{os.getpid()}")
    with suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        try:
            beside.write_text(digest, "ascii")
            beside.replace(note)
        finally:
            beside.unlink(missing_ok=True)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return [p for p in path.rglob("*") if p.is_file()]
    return [path] if path.is_file() else []


def _is_whole(path: Path, sha256: str) -> bool:
    return path.is_file() and file_sha256(path) == sha256
