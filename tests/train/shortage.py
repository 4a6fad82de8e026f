"""Memory that ends: raised as GPUs and CPUs do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kdexport.train.data import Batch


def for_at_most(n: int, ask: Callable[[Batch], Any]) -> Callable[[Batch], Any]:
    """The same, of batches of up to ``n`` examples."""

    def tried(batch: Batch) -> Any:
        if len(batch.examples) > n:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return ask(batch)

    return tried


def reads_at_most(n: int, model: Any, patch: pytest.MonkeyPatch) -> list[int]:
    """A model reads up to ``n`` rows from here on; how many it was given each time."""
    right, given = model.base_model.forward, list[int]()

    def forward(*args: Any, **inputs: Any) -> Any:
        given.append(len(inputs["input_ids"]))
        if given[-1] > n:
            raise RuntimeError("CUDA error: out of memory")
        return right(*args, **inputs)

    patch.setattr(model.base_model, "forward", forward)
    return given
