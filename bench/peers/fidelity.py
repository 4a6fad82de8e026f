"""How near an engine's logits are to the reference's, over fixed windows of text. numpy only."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
WINDOWS = "windows.npy"  # int64 [W, S]: the token ids
LOGITS = "logits.npy"  # float32 [W, S, V]: the reference's logits after each of them


def distances(reference: Array, logits: Array) -> tuple[Array, Array]:
    """KL(reference ‖ model) in nats, float64 [S], and whether the top tokens agree, bool [S]."""
    p, q = (_log_softmax(values.astype(np.float64)) for values in (reference, logits))
    return (np.exp(p) * (p - q)).sum(-1), reference.argmax(-1) == logits.argmax(-1)


def _log_softmax(logits: Array) -> Array:
    logits = logits - logits.max(-1, keepdims=True)
    return np.asarray(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))


def compare(
    folder: Path, n_windows: int, read: Callable[[Sequence[int]], Array]
) -> dict[str, float | int]:
    """Mean KL and share of equal top tokens over the first windows of a reference's folder."""
    windows = np.load(folder / WINDOWS)[:n_windows]
    expected = np.load(folder / LOGITS, mmap_mode="r")
    kl, same = [], []
    for ids, reference in zip(windows, expected, strict=False):
        logits = read(ids.tolist())
        if logits.shape != reference.shape:
            raise ValueError(f"logits of {logits.shape}, where {reference.shape} are expected")
        found = distances(np.asarray(reference), np.asarray(logits))
        kl.append(found[0])
        same.append(found[1])
    return {
        "kl": float(np.concatenate(kl).mean()),
        "top1": float(np.concatenate(same).mean()),
        "n_tokens": int(windows.size),
    }


def write_reference(
    folder: Path, windows: Array, n_vocab: int, read: Callable[[Sequence[int]], Array]
) -> None:
    """Keep the windows and the reference's logits after each of their tokens, in full float32."""
    shape = (*windows.shape, n_vocab)
    logits = np.lib.format.open_memmap(folder / LOGITS, "w+", np.float32, shape)
    for number, ids in enumerate(windows):
        logits[number] = read(ids.tolist())
    logits.flush()
    np.save(folder / WINDOWS, windows)
