"""Distances between layers of student and teacher below the last one.

Knows how to look into a model of any family while it reads, and nothing of vocabularies.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from kdexport.train.data import Batch

States = Mapping[str, torch.Tensor]


@contextmanager
def watched(
    model: Any, batch: Batch, wanted: Mapping[str, float]
) -> Iterator[dict[str, torch.Tensor]]:
    """What ``wanted`` distances need of a model that reads ``batch`` within the block."""
    yield {}


INSIDE: Mapping[str, Callable[[Any, States, States], torch.Tensor]] = {}
