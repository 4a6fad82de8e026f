"""The loop as it is commonly written: live teacher, whole logits of both in memory.

python -m bench.training.founding TASK [--bf16]
"""

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812
from transformers import AutoModelForCausalLM

from bench.training.batches import IGNORED, padded
from bench.training.task import BATCH_SIZE, LR, N_EPOCHS, Clock, load_examples, tell

LAMBDA, TEMPERATURE = 1.0, 1.0


def loss_of(student: Any, teacher: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
    with torch.no_grad():
        theirs = teacher(**inputs).logits[:, :-1]
    ours = student(**inputs).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    task = F.cross_entropy(ours.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    soft = F.kl_div(
        F.log_softmax(ours / TEMPERATURE, -1),
        F.softmax(theirs / TEMPERATURE, -1),
        reduction="none",
    ).sum(-1)
    kept = labels != IGNORED
    return task + LAMBDA * TEMPERATURE**2 * soft[kept].mean()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("task", type=Path)
    parser.add_argument("--bf16", action="store_true")
    given = parser.parse_args()
    teacher, student = (
        AutoModelForCausalLM.from_pretrained(given.task / name, dtype=torch.float32)
        for name in ("teacher", "student")
    )
    teacher.eval()
    student.train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=LR)
    examples = load_examples(given.task)
    batches = [padded(examples[i : i + BATCH_SIZE]) for i in range(0, len(examples), BATCH_SIZE)]
    n_tokens = sum(len(e.ids) - e.first for e in examples)
    clock, losses = Clock(), []
    for _ in range(N_EPOCHS):
        for batch in batches:
            with torch.autocast("cpu", torch.bfloat16) if given.bf16 else nullcontext():
                loss = loss_of(student, teacher, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss))
        clock.epoch_ends()
    tell(n_tokens, clock.seconds, last_loss=losses[-1])


if __name__ == "__main__":
    main()
