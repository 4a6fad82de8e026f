"""The quality reference: a teacher's targets on held-out text, to measure by without torch."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdexport.train.data import Batch, Encoded, ordered_batches
from kdexport.train.memory import Memory
from kdexport.train.model import Reading, read_batch, written
from kdexport.train.targets import TargetRows, Targets, runs
from kdexport.train.teacher import TargetFn, as_ids, told_by_reading, top_k_targets

FORMAT = 2  # that of kdexport.runtime.quality, which this does not know


@dataclass(frozen=True)
class Told:
    """What a teacher tells of a batch's N target tokens: its likeliest ones and the tail.

    ``target_logprobs``: float32 [N], of the target tokens themselves, where they are known.
    ``kept_mass``: float32 [N], the share of its probability on the student's vocabulary.
    """

    few: Targets
    target_logprobs: np.ndarray | None
    kept_mass: np.ndarray


Tell = Callable[[Batch], Told]


def write_reference(
    path: Path,
    teacher: Any,
    examples: Sequence[Encoded],
    kept_ids: Sequence[int] | None,
    *,
    vocab_size: int,
    top_k: int,
    n_drawn: int,
    batch_size: int,
    meta: dict[str, Any],
    writes: bool = True,
    in_step: bool = False,
) -> None:
    """Ask a teacher, and write what it tells (`write_told`).

    ``writes``: False in a process that only helps to ask. ``in_step``: all processes ask equally
    often.
    """
    ids = as_ids(kept_ids)
    n_top, whole_of = min(top_k, vocab_size - 1), told_by_reading(teacher, ids, 1.0)

    @torch.no_grad()
    def tell(batch: Batch) -> Told:
        reading = read_batch(teacher, batch.renamed(ids))
        whole = whole_of(reading)
        few = top_k_targets(_always(whole), n_top, n_drawn)
        mass = _kept_mass(reading, batch.n_targets, teacher, ids)
        return Told(few(batch).rows(slice(None)), _target_logprobs(whole, batch), mass)

    kept = range(vocab_size) if kept_ids is None else kept_ids
    at_least = batch_size if in_step else 1
    around: Any = {"batch_size": batch_size, "meta": meta, "writes": writes}
    write_told(path, tell, examples, kept, memory=Memory(at_least=at_least), **around)


def told_by(kept: TargetFn) -> Tell:
    """What kept targets tell: the likeliest tokens alone."""

    def tell(batch: Batch) -> Told:
        every = np.ones(batch.n_targets, dtype=np.float32)
        return Told(kept(batch).rows(slice(None)), None, every)

    return tell


def write_told(
    path: Path,
    tell: Tell,
    examples: Sequence[Encoded],
    kept_ids: Sequence[int],
    *,
    batch_size: int,
    meta: dict[str, Any],
    writes: bool = True,
    memory: Memory | None = None,
) -> None:
    """Write an .npz (no pickles) that ``kdexport.runtime.quality`` reads.

    N tokens, T texts, M target tokens, k kept probabilities: ``ids`` int32 [N] in the student's
    vocabulary, ``offsets`` int64 [T + 1], ``target`` int64 [M] (flat index of each target token),
    ``topk_ids`` int32 [M, k], ``topk_logprobs`` float32 [M, k], ``tail_logprob`` float32 [M],
    ``drawn_ids`` int32 [M, d] and ``drawn_logprobs`` float32 [M, d] (draws from the tail, with
    replacement), ``target_logprobs`` float32 [M] (of the target tokens themselves), ``kept_ids``
    int32 [V], ``kept_mass`` float32 [M], ``meta`` UTF-8 JSON as uint8, its ``format`` `FORMAT`.
    Without ``target_logprobs``, where they are not known, its format is 1. ``memory``: how many
    texts of a batch are asked for at once.
    """
    memory = memory or Memory()
    columns: dict[str, list[np.ndarray]] = {}
    offset = 0
    offsets = [0]
    for batch in ordered_batches(examples, batch_size):
        for told in batch.in_parts(memory, tell):
            _add(told, columns)
        for example in batch.examples:
            columns.setdefault("ids", []).append(example.ids.astype(np.int32))
            where = np.arange(example.first_target, len(example.ids), dtype=np.int64) + offset
            columns.setdefault("target", []).append(where)
            offset += len(example.ids)
            offsets.append(offset)
    if not writes:
        return
    arrays = {name: np.concatenate(parts) for name, parts in columns.items()}
    arrays["offsets"] = np.asarray(offsets, dtype=np.int64)
    arrays["kept_ids"] = np.asarray(kept_ids, dtype=np.int32)
    facts = {"format": FORMAT if "target_logprobs" in arrays else 1, **meta}
    arrays["meta"] = np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)
    beside = path.with_name(f".{path.name}.partial.npz")
    with written(path):
        np.savez_compressed(beside, **arrays)  # type: ignore[arg-type]
        beside.replace(path)


def _add(told: Told, columns: dict[str, list[np.ndarray]]) -> None:
    """Put what a teacher told behind what it told before."""
    targets = told.few
    if targets.ids is None or targets.tail is None:
        raise ValueError("a reference needs top-k targets")
    n_top = targets.ids.shape[-1] - targets.n_drawn
    ids, logprobs = targets.ids.int().cpu().numpy(), targets.logprobs.float().cpu().numpy()
    columns.setdefault("topk_ids", []).append(ids[:, :n_top])
    columns.setdefault("topk_logprobs", []).append(logprobs[:, :n_top])
    columns.setdefault("drawn_ids", []).append(ids[:, n_top:])
    columns.setdefault("drawn_logprobs", []).append(logprobs[:, n_top:])
    columns.setdefault("tail_logprob", []).append(targets.tail.float().cpu().numpy())
    if told.target_logprobs is not None:
        columns.setdefault("target_logprobs", []).append(told.target_logprobs)
    columns.setdefault("kept_mass", []).append(told.kept_mass)


def _always(targets: TargetRows) -> TargetFn:
    """A teacher that has been asked already."""
    return lambda batch: targets


def _target_logprobs(whole: TargetRows, batch: Batch) -> np.ndarray:
    """The log-probability of each target token, float32 [M]."""
    labels = batch.labels[:, None]
    parts = []
    for rows in runs(batch.n_targets):
        logprobs = whole.rows(rows).logprobs
        parts.append(logprobs.gather(1, labels[rows].to(logprobs.device))[:, 0])
    return np.asarray(torch.cat(parts).float().cpu().numpy())


def _kept_mass(
    reading: Reading, n_targets: int, teacher: Any, ids: torch.Tensor | None
) -> np.ndarray:
    """The share of the teacher's probability that the student's tokens have, float32 [M]."""
    if ids is None:
        return np.ones(n_targets, dtype=np.float32)
    shares = []
    for rows in runs(n_targets, int(teacher.config.vocab_size)):
        logits = reading.rows(rows).to_logits(teacher).float()
        shares.append(torch.logsumexp(logits[:, ids], -1) - torch.logsumexp(logits, -1))
    return torch.cat(shares).exp().cpu().numpy().astype(np.float32)
