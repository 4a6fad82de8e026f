"""Keys and values of texts under way, in buffers that are written in place.

Knows sizes; neither graphs nor text.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kdexport.bundle import Manifest

Array = np.ndarray[Any, Any]


class KVCache:
    """Keys and values of ``batch_size`` texts, one buffer bound as past and as present.

    ``lengths``: int32 [batch], valid tokens of each row; what stands behind them is never read.
    Buffers are [batch, n_kv_heads, capacity, head_dim], of ``dtype``, the manifest's type, and grow
    by doubling, so that a token costs the same however many came before. ``version`` changes with
    the buffers.
    """

    def __init__(self, manifest: Manifest, batch_size: int, capacity: int) -> None:
        self._model = manifest.model
        self.dtype = np.dtype(manifest.kv_cache)
        self.lengths = np.zeros(batch_size, dtype=np.int32)
        self.capacity = min(max(capacity, 1), self._model.max_length)
        self.buffers = [self._empty() for _ in range(2 * self._model.n_layers)]
        self.version = 0

    @property
    def n_bytes(self) -> int:
        """What the buffers take, used or not."""
        return sum(buffer.nbytes for buffer in self.buffers)

    def _empty(self) -> Array:
        # Zeroed by the system, page by page as they are touched: the unused part costs nothing.
        model = self._model
        shape = (len(self.lengths), model.n_kv_heads, self.capacity, model.head_dim)
        return np.zeros(shape, dtype=self.dtype)

    def reserve(self, n_tokens: int) -> None:
        """Make room for ``n_tokens`` tokens in each row."""
        if n_tokens <= self.capacity:
            return
        self.capacity = min(max(2 * self.capacity, n_tokens), self._model.max_length)
        self._replace(np.arange(len(self.lengths)))

    def keep_rows(self, rows: Sequence[int] | Array) -> None:
        """Keep the named rows, in this order; a row may be named more than once."""
        index = np.asarray(rows, dtype=np.int64)
        self.lengths = self.lengths[index].copy()
        self._replace(index)

    def add_rows(self, n: int) -> None:
        """Make room for ``n`` more texts, empty ones, behind those that are there."""
        there = np.arange(len(self.lengths))
        self.lengths = np.concatenate([self.lengths, np.zeros(n, dtype=np.int32)])
        self._replace(there)

    def put(self, row: int, other: "KVCache") -> None:
        """Put the first row of another cache in the place of a row."""
        end = int(other.lengths[0])
        self.reserve(end)
        for buffer, values in zip(self.buffers, other.buffers, strict=True):
            buffer[row, :, :end] = values[0, :, :end]
        self.lengths[row] = end

    def truncate(self, lengths: int | Sequence[int] | Array) -> None:
        """Forget all but the first ``lengths`` tokens of each row.

        Copies nothing: the next tokens are written over what is forgotten. Raises ValueError for
        lengths that a row has not got.
        """
        wanted = np.broadcast_to(np.asarray(lengths, dtype=np.int32), self.lengths.shape)
        if (wanted < 0).any() or (wanted > self.lengths).any():
            raise ValueError(f"cannot cut rows of {self.lengths.tolist()} to {wanted.tolist()}")
        self.lengths = wanted.copy()

    def read(self, begin: int, end: int) -> Array:
        """A copy of tokens of the first row, [2 * layers, kv heads, end - begin, head]."""
        return np.stack([buffer[0, :, begin:end] for buffer in self.buffers])

    def extend(self, values: Array) -> None:
        """Put what `read` gave behind the tokens of the only row."""
        begin = int(self.lengths[0])
        end = begin + values.shape[2]
        self.reserve(end)
        for buffer, value in zip(self.buffers, values, strict=True):
            buffer[0, :, begin:end] = value
        self.lengths = np.asarray([end], dtype=np.int32)

    def _replace(self, rows: Array) -> None:
        """Copy the used part of the old buffers' rows, and nothing else, to new ones."""
        used = int(self.lengths.max(initial=0))
        for number, old in enumerate(self.buffers):
            self.buffers[number] = self._empty()
            for place, row in enumerate(rows):
                self.buffers[number][place, :, :used] = old[row, :, :used]
        self.version += 1
