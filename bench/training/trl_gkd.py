"""TRL's GKDTrainer off-policy (lmbda 0), its defaults otherwise; in an environment of its own.

python -m bench.training.trl_gkd TASK [--fp32]
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl.experimental.gkd import GKDConfig, GKDTrainer

from bench.training.task import BATCH_SIZE, LR, N_EPOCHS, Clock, load_examples, tell

IGNORED = -100


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """What TRL's own collator makes of a conversation, from token ids."""
    length, longest = max(len(r["ids"]) for r in rows), max(r["first"] for r in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    prompts = torch.zeros(len(rows), longest, dtype=torch.long)
    prompt_mask = torch.zeros_like(prompts)
    for i, row in enumerate(rows):
        whole = torch.tensor(row["ids"])
        ids[i, : len(whole)] = whole
        mask[i, : len(whole)] = 1
        labels[i, row["first"] : len(whole)] = whole[row["first"] :]
        prompts[i, longest - row["first"] :] = whole[: row["first"]]
        prompt_mask[i, longest - row["first"] :] = 1
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "prompts": prompts,
        "prompt_attention_mask": prompt_mask,
    }


class Epochs(TrainerCallback):  # type: ignore[misc]
    def __init__(self) -> None:
        self.clock = Clock()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.clock = Clock()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self.clock.epoch_ends()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("task", type=Path)
    parser.add_argument("--fp32", action="store_true")
    given = parser.parse_args()
    teacher, student = (
        AutoModelForCausalLM.from_pretrained(given.task / name, dtype=torch.float32)
        for name in ("teacher", "student")
    )
    tokenizer = AutoTokenizer.from_pretrained(given.task / "teacher")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    examples = load_examples(given.task)
    rows = Dataset.from_list([{"ids": list(e.ids), "first": e.first} for e in examples])
    epochs = Epochs()
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        settings = GKDConfig(
            output_dir=folder,
            lmbda=0.0,
            learning_rate=LR,
            per_device_train_batch_size=BATCH_SIZE,
            num_train_epochs=N_EPOCHS,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **({"bf16": False} if given.fp32 else {}),
        )
        trainer = GKDTrainer(
            model=student,
            teacher_model=teacher,
            args=settings,
            data_collator=collate,
            train_dataset=rows,
            processing_class=tokenizer,
            callbacks=[epochs],
        )
        trainer.train()
    n_tokens = sum(len(e.ids) - e.first for e in examples)
    facts = {
        "bf16": settings.bf16,
        "gradient_checkpointing": settings.gradient_checkpointing,
        "beta": settings.beta,
        "temperature": settings.temperature,
    }
    tell(n_tokens, epochs.clock.seconds, **facts)


if __name__ == "__main__":
    main()
