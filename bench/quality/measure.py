"""KL(teacher ‖ student) of each test text, the same for every arm.

python -m bench.quality.measure TASK STUDENT

In float32 PyTorch, over the completions' tokens and the task's vocabulary: both distributions are
whole, and renormalised over it. A student with more tokens reads the same texts cut in the same
way.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.training.task import load_examples
from kdexport.errors import InputError
from kdexport.train.data import Encoded, ordered_batches
from kdexport.train.losses import distance
from kdexport.train.model import load_facts, load_model, read_batch
from kdexport.train.teacher import live_targets

BATCH_SIZE = 8


def names_of(student: Path, task: Path) -> torch.Tensor | None:
    """The student's own id of each token of the task's vocabulary; None where they are the same."""
    wanted = load_facts(task / "student").get("kept_ids")
    own = load_facts(student).get("kept_ids")
    if wanted == own:
        return None
    if wanted is None:
        raise InputError("has fewer tokens than the texts are measured in", where=str(student))
    known = {token: number for number, token in enumerate(own)} if own else None
    try:
        ids = [known[token] for token in wanted] if known else wanted
    except KeyError as error:
        raise InputError(
            f"lacks the teacher's token {error.args[0]}, which the texts are measured in",
            where=str(student),
        ) from None
    return torch.as_tensor(ids, dtype=torch.long)


@torch.no_grad()
def kl_by_text(teacher: Any, student: Any, names: torch.Tensor | None, texts: list[Encoded]) -> Any:
    """Nats and tokens of each text, in the texts' order; ``teacher`` has the task's vocabulary."""
    ask = live_targets(teacher, None, 1.0)
    found: dict[str, list[float]] = {}
    for batch in ordered_batches(texts, BATCH_SIZE):
        logits = read_batch(student, batch.renamed(names)).to_logits(student, names).float()
        kl = distance("forward_kl", logits, ask(batch).rows(slice(None)), 1.0).double()
        for example, part in zip(
            batch.examples, kl.split([e.n_targets for e in batch.examples]), strict=True
        ):
            found[example.example_id] = part.tolist()
    return [found[text.example_id] for text in texts]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("task", type=Path)
    parser.add_argument("student", type=Path)
    given = parser.parse_args()
    texts = [
        Encoded(str(number), np.asarray(one.ids, dtype=np.int64), one.first, one.first)
        for number, one in enumerate(load_examples(given.task, "test.jsonl"))
    ]
    student = load_model(given.student)
    teacher = load_model(given.task / "teacher")
    found = kl_by_text(teacher, student, names_of(given.student, given.task), texts)
    result = {
        "nats": [float(f"{sum(values):.6g}") for values in found],
        "tokens": [len(values) for values in found],
        "n_parameters": student.num_parameters(),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
