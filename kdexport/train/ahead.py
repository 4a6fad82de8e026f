"""Targets of a step that are asked for before it begins, as often in every process.

A teacher in parts (`sharded`) reads only where all processes have it read. In a step each works on
as many batches as it has, in as small parts as its memory wants; here each asks once for every
batch that the step has, with a stand-in for those of which it has nothing.
"""

from collections.abc import Sequence

import torch

from kdexport.train.data import Batch
from kdexport.train.memory import Memory
from kdexport.train.targets import TargetRows, in_order
from kdexport.train.teacher import TargetFn


def ahead(ask: TargetFn, own: Sequence[Batch], group: Sequence[Batch]) -> TargetFn:
    """The targets of ``own``, this process's share of a step's ``group``, and of parts of them.

    They stay in memory until they are let go. Raises KdexportError where a batch is too much for
    the teacher: fewer texts at once would be read by this process alone.
    """

    def asked(batch: Batch) -> TargetRows:
        (found,) = batch.in_parts(Memory(at_least=len(batch.examples)), ask)
        return found

    given: dict[int, tuple[TargetRows, int]] = {}  # by the example: whose rows, and the first
    for batch in own:
        found, first = asked(batch), 0
        for example in batch.examples:
            given[id(example)] = found, first
            first += example.n_targets
    for _ in range(len(group) - len(own)):
        asked(group[0].of(group[0].examples[:1]))

    def told(part: Batch) -> TargetRows:
        found, _ = given[id(part.examples[0])]
        firsts = (given[id(example)][1] for example in part.examples)
        rows = [
            torch.arange(first, first + example.n_targets)
            for first, example in zip(firsts, part.examples, strict=True)
        ]
        return in_order(found, torch.cat(rows))

    return told
