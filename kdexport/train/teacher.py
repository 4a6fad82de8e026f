"""The teacher as a service of targets: asked live, or read from a cache that it filled once.

All are a ``TargetFn`` and give the same type. A cache is keyed by example and by a fingerprint of
all that the targets depend on. It holds, in half precision, either the top k tokens and the tail's
mass, or the teacher's last hidden state, of which its head makes the whole distribution again.
"""

import json
import time
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from kdexport.errors import InputError
from kdexport.train.data import Batch, Encoded, ordered_batches
from kdexport.train.model import head_is_plain, head_of, low_precision, read_batch, written
from kdexport.train.targets import HeadTargets, TargetRows, Targets, joined, log_remainder, runs

TargetFn = Callable[[Batch], TargetRows]
Columns = dict[str, torch.Tensor]
EXAMPLES_PER_SHARD = 128
Progress = Callable[[int, int], None]


def live_targets(
    teacher: Any,
    kept_ids: Sequence[int] | None,
    temperature: float,
) -> TargetFn:
    """Ask the teacher at every call.

    ``kept_ids``: the teacher's id of each of the student's tokens (None: the vocabularies are the
    same). The teacher reads the same tokens as the student, and its distribution is renormalised
    over the student's vocabulary.
    """
    kept = _as_ids(kept_ids)
    with torch.no_grad():
        weight, bias = head_of(teacher, kept) if head_is_plain(teacher) else (None, None)

    @torch.no_grad()
    def ask(batch: Batch) -> TargetRows:
        reading = read_batch(teacher, batch.renamed(kept))
        if reading.hidden is None:
            logits = reading.to_logits(teacher, kept).float()
            return Targets(torch.log_softmax(logits / temperature, dim=-1))
        assert weight is not None
        return HeadTargets(reading.hidden, weight, bias, temperature)

    return ask


def top_k_targets(ask: TargetFn, top_k: int, n_drawn: int = 0) -> TargetFn:
    """Only the ``top_k`` most likely tokens of what ``ask`` gives whole, and the tail's mass.

    ``n_drawn``: with so many draws from the tail; the same batch gives the same draws.
    """

    @torch.no_grad()
    def few(batch: Batch) -> Targets:
        asked = ask(batch)
        generator = torch.Generator().manual_seed(zlib.crc32(batch.ids.numpy().tobytes()))
        parts = [
            _top_k(asked.rows(rows), top_k, n_drawn, generator) for rows in runs(batch.n_targets)
        ]
        return joined(parts)

    return few


def _as_ids(kept_ids: Sequence[int] | None) -> torch.Tensor | None:
    return None if kept_ids is None else torch.as_tensor(kept_ids, dtype=torch.long)


def _top_k(whole: Targets, top_k: int, n_drawn: int, generator: torch.Generator) -> Targets:
    """The likeliest tokens, and draws from the rest in proportion to the teacher's distribution."""
    logprobs = whole.logprobs
    best = logprobs.topk(top_k, dim=-1)
    tail = log_remainder(best.values)
    if not n_drawn:
        return Targets(best.values, best.indices, tail)
    rest = logprobs.exp().scatter(1, best.indices, 0.0).clamp(min=1e-30)
    drawn = torch.multinomial(rest.cpu(), n_drawn, replacement=True, generator=generator)
    drawn = drawn.to(logprobs.device)
    return Targets(
        torch.cat([best.values, logprobs.gather(1, drawn)], -1),
        torch.cat([best.indices, drawn], -1),
        tail,
        n_drawn,
    )


def top_k_columns(ask: TargetFn) -> Callable[[Batch], Columns]:
    """What a cache keeps of top-k targets: int32 ids, float16 logprobs [N, k], float16 tail [N]."""

    def columns(batch: Batch) -> Columns:
        targets = ask(batch).rows(slice(None))
        if targets.ids is None or targets.tail is None:
            raise ValueError("the cache keeps top-k targets; ask with top_k below the vocabulary")
        return {
            "ids": targets.ids.to(torch.int32),
            "logprobs": targets.logprobs.half(),
            "tail": targets.tail.half(),
        }

    return columns


def hidden_columns(
    teacher: Any, kept_ids: Sequence[int] | None, precision: str
) -> Callable[[Batch], Columns]:
    """What a cache keeps of a teacher's last hidden states: float16 [N, H].

    Raises InputError where the teacher's logits are more than its head's product of them.
    """
    if not head_is_plain(teacher):
        raise InputError(
            "the teacher's logits do not follow from its last hidden state alone",
            where="train.targets",
            remedy="use cached or live",
        )
    kept = _as_ids(kept_ids)

    @torch.no_grad()
    def columns(batch: Batch) -> Columns:
        with low_precision(teacher, precision):
            hidden = read_batch(teacher, batch.renamed(kept)).hidden
        assert hidden is not None
        return {"hidden": hidden.half()}

    return columns


def fill_cache(
    folder: Path,
    examples: Sequence[Encoded],
    ask: Callable[[Batch], Columns],
    *,
    batch_size: int,
    progress: Progress | None = None,
) -> None:
    """Write what ``ask`` gives as safetensors shards, per example and column ``EXAMPLE/COLUMN``.

    Whole shards are not asked again; each knows how many seconds it took (`seconds_asked`).
    Raises InputError where the disk takes no more.
    """
    folder.mkdir(parents=True, exist_ok=True)
    by_length = sorted(examples, key=lambda example: len(example.ids))
    for begin in range(0, len(by_length), EXAMPLES_PER_SHARD):
        shard = folder / f"{begin // EXAMPLES_PER_SHARD:05d}.safetensors"
        group = by_length[begin : begin + EXAMPLES_PER_SHARD]
        if not _is_whole(shard):
            started = time.monotonic()
            tensors: Columns = {}
            for batch in ordered_batches(group, batch_size):
                tensors |= _by_example(batch, ask(batch))
            took = {"seconds": f"{time.monotonic() - started:.2f}"}
            beside = shard.with_suffix(".partial")
            try:
                with written(shard):
                    save_file(tensors, beside, took)
                    beside.replace(shard)
            finally:
                beside.unlink(missing_ok=True)
        if progress:
            progress(begin + len(group), len(examples))


def seconds_asked(folder: Path) -> float:
    """How long the teacher took to fill a cache, over all runs that had a part in it."""
    seconds = 0.0
    for shard in folder.glob("*.safetensors"):
        with safe_open(shard, framework="pt") as file:
            seconds += float((file.metadata() or {}).get("seconds", 0.0))
    return seconds


def _is_whole(shard: Path) -> bool:
    try:
        with safe_open(shard, framework="pt"):
            return True
    except (OSError, SafetensorError):
        return False


def _by_example(batch: Batch, columns: Columns) -> Columns:
    """Split the N rows of a batch's columns into tensors named by example."""
    tensors: Columns = {}
    begin = 0
    for example in batch.examples:
        rows = slice(begin, begin + example.n_targets)
        begin = rows.stop
        for name, values in columns.items():
            tensors[f"{example.example_id}/{name}"] = values[rows].cpu().contiguous()
    return tensors


class _Cache:
    """The columns that `fill_cache` wrote, held in memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: Columns = {}
        for shard in sorted(folder.glob("*.safetensors")):
            with safe_open(shard, framework="pt") as file:
                self._held |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def column(self, batch: Batch, name: str) -> torch.Tensor:
        """One column of a batch's examples, [N, ...]."""
        try:
            return torch.cat([self._held[f"{e.example_id}/{name}"] for e in batch.examples])
        except KeyError as missing:
            raise InputError(
                f"no cached targets for example {missing.args[0].rpartition('/')[0]!r}",
                where=str(self._folder),
                remedy="remove the folder to have them written again",
            ) from None


def cached_targets(folder: Path, n_drawn: int = 0) -> TargetFn:
    """Targets from `top_k_columns`; the last ``n_drawn`` of them are draws."""
    cache = _Cache(folder)

    def read(batch: Batch) -> Targets:
        return Targets(
            cache.column(batch, "logprobs").float(),
            cache.column(batch, "ids").long(),
            cache.column(batch, "tail").float(),
            n_drawn,
        )

    return read


def targets_of_hidden(
    folder: Path, teacher: Any, kept_ids: Sequence[int] | None, temperature: float
) -> TargetFn:
    """Whole distributions, from `hidden_columns` through the teacher's head."""
    cache = _Cache(folder)
    with torch.no_grad():
        weight, bias = head_of(teacher, _as_ids(kept_ids))

    def read(batch: Batch) -> HeadTargets:
        return HeadTargets(cache.column(batch, "hidden"), weight, bias, temperature)

    return read


def check_vocabularies(
    teacher_vocab: dict[str, int], student_vocab: dict[str, int], kept_ids: Sequence[int] | None
) -> None:
    """Refuse a student whose tokens are not the teacher's: equal sizes prove nothing."""
    teacher_token = {i: token for token, i in teacher_vocab.items()}
    for token, i in student_vocab.items():
        if kept_ids is not None and i >= len(kept_ids):
            found = None
        else:
            found = teacher_token.get(i if kept_ids is None else kept_ids[i])
        if found != token:
            raise InputError(
                f"teacher and student vocabularies do not match: the student's token {i} is "
                f"{json.dumps(token)}, the teacher's is {json.dumps(found)}",
                remedy="distil with a student made from this teacher's tokenizer",
            )


def fingerprint_examples(examples: Iterable[Encoded]) -> str:
    """sha256 over the ids and token ids of examples: part of a cache's key."""
    import hashlib

    digest = hashlib.sha256()
    for example in examples:
        digest.update(
            f"{example.example_id}:{example.first_target}:{example.first_completion}:".encode()
        )
        digest.update(example.ids.tobytes())
    return digest.hexdigest()
