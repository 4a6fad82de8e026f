"""What a model in training writes: greedily, a text at a time. It draws nothing."""

from collections.abc import Collection
from typing import Any

import torch


@torch.no_grad()
def write_greedily(
    model: Any, prompt: torch.Tensor, n_most: int, end_ids: Collection[int]
) -> list[int]:
    """The likeliest token after a prompt, int64 [n], again and again: at most ``n_most`` ids.

    Ends before a token of ``end_ids``. The model is in training mode afterwards if it was before.
    """
    was_training = model.training
    model.eval()
    written: list[int] = []
    ids, cache = prompt[None].to(model.device), None
    try:
        for _ in range(n_most):
            read = model(input_ids=ids, past_key_values=cache, use_cache=True)
            token = int(read.logits[0, -1].argmax())
            if token in end_ids:
                break
            written.append(token)
            ids, cache = torch.tensor([[token]], device=model.device), read.past_key_values
    finally:
        model.train(was_training)
    return written
