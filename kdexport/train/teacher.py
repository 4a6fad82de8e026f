"""The teacher as a service of targets: asked live, or read from a cache that it filled once.

Both are a ``TargetFn`` and give the same type. The cache holds the top k tokens and the tail's
mass in half precision, keyed by example and by a fingerprint of all that the targets depend on.
"""

import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from kdexport.errors import InputError
from kdexport.train.data import Batch, Encoded, ordered_batches
from kdexport.train.losses import Targets, log_remainder
from kdexport.train.model import target_logits

TargetFn = Callable[[Batch], Targets]
EXAMPLES_PER_SHARD = 128
Progress = Callable[[int, int], None]


def live_targets(
    teacher: Any,
    kept_ids: Sequence[int] | None,
    temperature: float,
    top_k: int | None = None,
    n_drawn: int = 0,
) -> TargetFn:
    """Ask the teacher at every call.

    ``kept_ids``: the teacher's id of each of the student's tokens (None: the vocabularies are the
    same). The teacher reads the same tokens as the student, and its distribution is renormalised
    over the student's vocabulary. ``top_k``: only the most likely tokens, with ``n_drawn`` draws
    from the rest; the same batch gives the same draws.
    """
    kept = None if kept_ids is None else torch.as_tensor(kept_ids, dtype=torch.long)

    @torch.no_grad()
    def ask(batch: Batch) -> Targets:
        ids = batch.ids if kept is None else kept[batch.ids]
        logits = target_logits(teacher, ids, batch.targets, kept)
        logprobs = torch.log_softmax(logits.float() / temperature, dim=-1)
        if top_k is None or top_k >= logprobs.shape[-1]:
            return Targets(logprobs)
        best = logprobs.topk(top_k, dim=-1)
        targets = Targets(best.values, best.indices, log_remainder(best.values))
        return _with_draws(targets, logprobs, n_drawn, batch) if n_drawn else targets

    return ask


def _with_draws(targets: Targets, logprobs: torch.Tensor, n_drawn: int, batch: Batch) -> Targets:
    """Targets with draws from the tail, in proportion to the teacher's distribution there."""
    assert targets.ids is not None
    generator = torch.Generator(logprobs.device).manual_seed(
        zlib.crc32(batch.ids.numpy().tobytes())
    )
    rest = logprobs.exp().scatter(1, targets.ids, 0.0).clamp(min=1e-30)
    drawn = torch.multinomial(rest, n_drawn, replacement=True, generator=generator)
    return Targets(
        torch.cat([targets.logprobs, logprobs.gather(1, drawn)], -1),
        torch.cat([targets.ids, drawn], -1),
        targets.tail,
        n_drawn,
    )


def fill_cache(
    folder: Path,
    examples: Sequence[Encoded],
    ask: TargetFn,
    *,
    batch_size: int,
    progress: Progress | None = None,
) -> None:
    """Write the targets of all examples as safetensors shards; whole shards are not asked again.

    ``ask`` must give top-k targets. Per example: ``ID/ids`` int32 [n, k], ``ID/logprobs`` float16
    [n, k], ``ID/tail`` float16 [n]; how many of the k are draws is in the file's metadata.
    """
    folder.mkdir(parents=True, exist_ok=True)
    by_length = sorted(examples, key=lambda example: len(example.ids))
    for begin in range(0, len(by_length), EXAMPLES_PER_SHARD):
        shard = folder / f"{begin // EXAMPLES_PER_SHARD:05d}.safetensors"
        group = by_length[begin : begin + EXAMPLES_PER_SHARD]
        if not shard.exists():
            tensors: dict[str, torch.Tensor] = {}
            n_drawn = 0
            for batch in ordered_batches(group, batch_size):
                targets = ask(batch)
                n_drawn = targets.n_drawn
                tensors |= _by_example(batch, targets)
            beside = shard.with_suffix(".partial")
            save_file(tensors, beside, {"n_drawn": str(n_drawn)})
            beside.replace(shard)
        if progress:
            progress(begin + len(group), len(examples))


def _by_example(batch: Batch, targets: Targets) -> dict[str, torch.Tensor]:
    """Split the N rows of a batch's targets into tensors named by example."""
    if targets.ids is None or targets.tail is None:
        raise ValueError("the cache keeps top-k targets; ask with top_k below the vocabulary")
    tensors: dict[str, torch.Tensor] = {}
    begin = 0
    for example in batch.examples:
        rows = slice(begin, begin + example.n_targets)
        begin = rows.stop
        name = example.example_id
        tensors[f"{name}/ids"] = targets.ids[rows].to(torch.int32).contiguous()
        tensors[f"{name}/logprobs"] = targets.logprobs[rows].half().contiguous()
        tensors[f"{name}/tail"] = targets.tail[rows].half().contiguous()
    return tensors


def cached_targets(folder: Path) -> TargetFn:
    """Read the targets that ``fill_cache`` wrote; they are held in memory."""
    held: dict[str, torch.Tensor] = {}
    n_drawn = 0
    for shard in sorted(folder.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            n_drawn = int((file.metadata() or {}).get("n_drawn", 0))
            held |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def read(batch: Batch) -> Targets:
        names = [example.example_id for example in batch.examples]
        missing = [name for name in names if f"{name}/ids" not in held]
        if missing:
            raise InputError(
                f"no cached targets for example {missing[0]!r}",
                where=str(folder),
                remedy="remove the folder to have them written again",
            )
        return Targets(
            torch.cat([held[f"{name}/logprobs"] for name in names]).float(),
            torch.cat([held[f"{name}/ids"] for name in names]).long(),
            torch.cat([held[f"{name}/tail"] for name in names]).float(),
            n_drawn,
        )

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
