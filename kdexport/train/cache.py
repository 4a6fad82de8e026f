"""A teacher's targets on disk: written once, gone on with after a kill, read without being loaded.

Knows examples and columns of numbers, a row a target token; not what the columns mean, nor who
gave them. A cache is a folder of safetensors shards. Each holds every column for all tokens of its
examples, one example after another, and in its metadata ``examples`` (JSON: [[id, rows], ...]) and
the ``seconds`` that it took.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from kdexport.errors import InputError
from kdexport.train.data import Batch, Encoded, ordered_batches
from kdexport.train.memory import Memory
from kdexport.train.model import sync, written
from kdexport.train.world import ALONE, World

Columns = dict[str, torch.Tensor]
Progress = Callable[[int, int], None]
SHARD_BYTES = 2**27  # held in memory before they are written


def fill_cache(
    folder: Path,
    examples: Sequence[Encoded],
    ask: Callable[[Batch], Columns],
    *,
    batch_size: int,
    shard_seconds: float = 60.0,
    progress: Progress | None = None,
    world: World = ALONE,
    in_step: bool = False,
) -> None:
    """Write what ``ask`` gives for all examples that are not in whole shards yet.

    Each process asks its share, and goes on when all have. A kill loses what was asked in the last
    ``shard_seconds``, an interrupt nothing. Which examples are asked together does not depend on
    where an earlier run ended, so neither do the targets; only where memory ends fewer are asked at
    once, which moves their last bits, and draws. ``in_step``: all processes ask equally often, some
    for nothing, and none may ask for fewer. Raises InputError where the disk takes no more.
    """
    if world.is_first:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_damaged(folder)
    world.wait()
    held = {name for shard in _shards(folder) for name, _ in _contents(shard)}
    world.wait()  # all have seen the same before any writes
    n_done = 0
    memory = Memory(at_least=batch_size if in_step else 1)

    def is_wanted(batch: Batch) -> bool:
        return not held.issuperset(example.example_id for example in batch.examples)

    def asked() -> Iterator[tuple[Sequence[Encoded], Columns]]:
        nonlocal n_done
        batches = ordered_batches(examples, batch_size)
        while every := list(islice(batches, world.size)):
            own = every[world.rank] if world.rank < len(every) else None
            if own is not None and is_wanted(own):
                yield own.examples, _joined(own.in_parts(memory, ask))
            elif in_step and any(is_wanted(batch) for batch in every):
                ask(own or every[0])
            n_done += sum(len(batch.examples) for batch in every)
            if progress:
                progress(n_done, len(examples))

    write_shards(folder, asked(), shard_seconds=shard_seconds, world=world)
    world.wait()


def _joined(parts: Sequence[Columns]) -> Columns:
    if len(parts) == 1:
        return parts[0]
    return {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}


def write_shards(
    folder: Path,
    parts: Iterable[tuple[Sequence[Encoded], Columns]],
    *,
    shard_seconds: float = 60.0,
    world: World = ALONE,
) -> None:
    """Write examples and their columns [N, ...] as shards after those that are there.

    A shard is written, synced and renamed when it has ``shard_seconds`` of work or `SHARD_BYTES`.
    Each process has numbers of its own.
    """
    waiting: list[tuple[Sequence[Encoded], Columns]] = []
    begun = time.monotonic()

    def flush() -> None:
        nonlocal begun
        if waiting:
            _write_shard(folder, waiting, time.monotonic() - begun, world)
            waiting.clear()
            begun = time.monotonic()

    try:
        n_bytes = 0
        for part in parts:
            waiting.append(part)
            n_bytes += sum(values.nbytes for values in part[1].values())
            if n_bytes >= SHARD_BYTES or time.monotonic() - begun >= shard_seconds:
                flush()
                n_bytes = 0
        flush()
    except KeyboardInterrupt:
        flush()
        raise


def _write_shard(
    folder: Path,
    parts: Sequence[tuple[Sequence[Encoded], Columns]],
    seconds: float,
    world: World,
) -> None:
    columns = {
        name: torch.cat([part[name].cpu() for _, part in parts]).contiguous()
        for name in parts[0][1]
    }
    rows = [[example.example_id, example.n_targets] for group, _ in parts for example in group]
    facts = {"examples": json.dumps(rows), "seconds": f"{seconds:.2f}"}
    last = max((int(shard.stem) for shard in _shards(folder)), default=-1)
    number = (last // world.size + 1) * world.size + world.rank
    shard = folder / f"{number:05d}.safetensors"
    beside = shard.with_suffix(".partial")
    try:
        with written(shard):
            save_file(columns, beside, facts)
            sync(beside)
            beside.replace(shard)
            sync(folder)
    finally:
        beside.unlink(missing_ok=True)


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def prune(place: Path, keep: Collection[str], *, room: float) -> list[str]:
    """Remove caches of ``place``, the longest unused first, until the others take ``room`` bytes.

    Those named in ``keep`` stay, and count as used now; they are not part of the ``room``. Returns
    the names of what is gone.
    """
    others: list[tuple[float, int, Path]] = []
    for folder in place.iterdir() if place.is_dir() else ():
        if folder.name in keep:
            os.utime(folder)
        elif folder.is_dir():
            size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
            others.append((folder.stat().st_mtime, size, folder))
    gone = []
    for _, _, folder in sorted(others):
        if sum(size for _, size, left in others if left.name not in gone) <= room:
            break
        shutil.rmtree(folder)
        gone.append(folder.name)
    return gone


def _remove_damaged(folder: Path) -> None:
    for beside in folder.glob("*.partial"):
        beside.unlink()
    for shard in _shards(folder):
        try:
            _contents(shard)
        except (OSError, SafetensorError, KeyError, ValueError):
            shard.unlink()


def _contents(shard: Path) -> list[tuple[str, int]]:
    """The examples of a shard and how many rows each has."""
    with safe_open(shard, framework="pt") as file:
        return [(name, rows) for name, rows in json.loads((file.metadata() or {})["examples"])]


def seconds_asked(folder: Path) -> float:
    """How long the teacher took to fill a cache, over all runs that had a part in it."""
    seconds = 0.0
    for shard in _shards(folder):
        with safe_open(shard, framework="pt") as file:
            seconds += float((file.metadata() or {}).get("seconds", 0.0))
    return seconds


class TargetCache:
    """The columns of a cache. They stay on disk, mapped into memory: what is held grows with the
    number of examples, not with their tokens.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shards: list[Columns] = []
        self._rows: dict[str, tuple[int, slice]] = {}
        for shard in _shards(folder):
            with safe_open(shard, framework="pt") as file:
                columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            begin = 0
            for name, n_rows in _contents(shard):
                self._rows[name] = len(self._shards), slice(begin, begin + n_rows)
                begin += n_rows
            self._shards.append(columns)

    def columns(self, batch: Batch) -> Columns:
        """The columns of a batch's examples, [N, ...]. Raises InputError where one is missing."""
        parts = [self._of(example) for example in batch.examples]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _of(self, example: Encoded) -> Columns:
        number, rows = self._rows.get(example.example_id, (0, slice(0, 0)))
        if rows.stop - rows.start != example.n_targets:
            raise InputError(
                f"no cached targets for example {example.example_id!r}",
                where=str(self._folder),
                remedy="remove the folder to have them written again",
            )
        return {name: values[rows] for name, values in self._shards[number].items()}


def fingerprint_examples(examples: Iterable[Encoded]) -> str:
    """sha256 over the ids and token ids of examples: part of a cache's key."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(
            f"{example.example_id}:{example.first_target}:{example.first_completion}:".encode()
        )
        digest.update(example.ids.tobytes())
    return digest.hexdigest()
