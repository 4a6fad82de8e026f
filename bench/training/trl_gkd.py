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

from bench.training.batches import padded
from bench.training.task import BATCH_SIZE, LR, N_EPOCHS, Clock, Example, load_examples, tell


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """What TRL's own collator makes of a conversation, from token ids."""
    examples = [Example(**row) for row in rows]
    longest = max(e.first for e in examples)
    prompts = torch.zeros(len(examples), longest, dtype=torch.long)
    mask = torch.zeros_like(prompts)
    for row, e in enumerate(examples):
        prompts[row, longest - e.first :] = torch.tensor(e.ids[: e.first])
        mask[row, longest - e.first :] = 1
    return {**padded(examples), "prompts": prompts, "prompt_attention_mask": mask}


class Epochs(TrainerCallback):  # type: ignore[misc]
    def __init__(self) -> None:
        self.clock = Clock()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.clock = Clock()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self.clock.epoch_ends()


def make_trainer(
    kind: type[Any], task: Path, tokenizer_of: str, callback: TrainerCallback, **settings: Any
) -> Any:
    """A GKDTrainer on a task's models and texts, on the CPU, silent, keeping nothing.

    ``settings``: of GKDConfig, ``output_dir`` among them.
    """
    teacher, student = (
        AutoModelForCausalLM.from_pretrained(task / name, dtype=torch.float32)
        for name in ("teacher", "student")
    )
    tokenizer = AutoTokenizer.from_pretrained(task / tokenizer_of)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    rows = [{"ids": list(e.ids), "first": e.first} for e in load_examples(task)]
    quiet = {"use_cpu": True, "save_strategy": "no", "report_to": "none", "disable_tqdm": True}
    return kind(
        model=student,
        teacher_model=teacher,
        args=GKDConfig(**quiet, **settings),
        data_collator=collate,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[callback],
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("task", type=Path)
    parser.add_argument("--fp32", action="store_true")
    given = parser.parse_args()
    epochs = Epochs()
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        trainer = make_trainer(
            GKDTrainer,
            given.task,
            "teacher",
            epochs,
            output_dir=folder,
            lmbda=0.0,
            learning_rate=LR,
            per_device_train_batch_size=BATCH_SIZE,
            num_train_epochs=N_EPOCHS,
            **({"bf16": False} if given.fp32 else {}),
        )
        trainer.train()
    n_tokens = sum(len(e.ids) - e.first for e in load_examples(given.task))
    told = ("bf16", "gradient_checkpointing", "beta", "temperature")
    facts = {name: getattr(trainer.args, name) for name in told}
    tell(n_tokens, epochs.clock.seconds, **facts)


if __name__ == "__main__":
    main()
