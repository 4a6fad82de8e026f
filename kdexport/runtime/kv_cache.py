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

    ``lengths``: int32 [batch], valid tokens of each row. Buffers are float32
    [batch, n_kv_heads, capacity, head_dim] and grow by doubling.
    """

    def __init__(self, manifest: Manifest, batch_size: int, capacity: int) -> None:
        self._model = manifest.model
        self.lengths = np.zeros(batch_size, dtype=np.int32)
        self.capacity = min(max(capacity, 1), self._model.max_length)
        self.buffers = [self._empty() for _ in range(2 * self._model.n_layers)]
        self.version = 0

    def _empty(self) -> Array:
        model = self._model
        shape = (len(self.lengths), model.n_kv_heads, self.capacity, model.head_dim)
        return np.zeros(shape, dtype=np.float32)

    def reserve(self, n_tokens: int) -> None:
        """Make room for ``n_tokens`` tokens in each row."""
        if n_tokens <= self.capacity:
            return
        before = self.capacity
        self.capacity = min(max(2 * before, n_tokens), self._model.max_length)
        for number, old in enumerate(self.buffers):
            self.buffers[number] = self._empty()
            self.buffers[number][:, :, :before] = old
        self.version += 1

    def keep_rows(self, rows: Sequence[int] | Array) -> None:
        """Keep the named rows, in this order; a row may be named more than once."""
        index = np.asarray(rows, dtype=np.int64)
        self.buffers = [np.ascontiguousarray(buffer[index]) for buffer in self.buffers]
        self.lengths = self.lengths[index].copy()
        self.version += 1
