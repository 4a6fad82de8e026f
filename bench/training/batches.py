"""Texts as padded tensors, as the common loop and TRL want them; runs inside both environments."""

from collections.abc import Sequence

import torch

from bench.training.task import Example

IGNORED = -100  # the label of what no loss is to see


def padded(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """Right-padded ids and mask, int64 [B, L], and labels that leave prompts and padding out."""
    length = max(len(e.ids) for e in examples)
    ids = torch.zeros(len(examples), length, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for row, e in enumerate(examples):
        ids[row, : len(e.ids)] = torch.tensor(e.ids)
        mask[row, : len(e.ids)] = 1
        labels[row, e.first : len(e.ids)] = ids[row, e.first : len(e.ids)]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
