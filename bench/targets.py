"""Ways to keep a teacher's targets: bytes a token, and what of the whole distribution is left.

    python bench/targets.py --out bench/results/targets.json

The quickstart's teacher and an untrained student cut from it as the quickstart does, on the pairs
of recipes/data. Sizes, divergences and angles, no times: a busy machine changes nothing.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.record import record, save  # noqa: E402
from kdexport.pipeline.run import open_run  # noqa: E402
from kdexport.pipeline.splits import encode_splits  # noqa: E402
from kdexport.pipeline.stages import make_pairs, make_student  # noqa: E402
from kdexport.recipe import load_recipe  # noqa: E402
from kdexport.system.console import say  # noqa: E402
from kdexport.train.columns import Form, hidden_form, sampled_form, top_k_form  # noqa: E402
from kdexport.train.data import Batch, Encoded, ordered_batches  # noqa: E402
from kdexport.train.fidelity import compare_targets  # noqa: E402
from kdexport.train.model import load_facts, load_model, load_tokenizer  # noqa: E402
from kdexport.train.objective import Objective  # noqa: E402
from kdexport.train.targets import TargetRows, Targets, runs  # noqa: E402
from kdexport.train.teacher import TargetFn, live_targets  # noqa: E402

PAIRS = ROOT / "recipes" / "data" / "marketing-pairs.jsonl"
BATCH_SIZE = 8
OTHERS = {"DistillKit, recommended": 300, "DistillKit, budget": 114}
"""Bytes a token that DistillKit's README gives for its two configurations."""


def prepare(folder: Path, n_texts: int) -> tuple[Any, Any, Sequence[int], list[Encoded]]:
    """Teacher, untrained student, the teacher's id of each of its tokens, and texts."""
    sets = [
        f"output.runs={folder}",
        "data.briefs=null",
        f"data.pairs={PAIRS}",
        "data.validation_fraction=0",
        "data.test_fraction=0",
        f"data.max_train={n_texts}",
    ]
    run = open_run(load_recipe(ROOT / "recipes" / "quickstart.yaml", sets))
    run.folder.mkdir(parents=True)
    make_pairs(run)
    make_student(run)
    student = load_model(run.student_init, attention="eager")
    texts = encode_splits(run, load_tokenizer(run.student_init), student).train
    learnt = [replace(text, first_target=text.first_completion) for text in texts]
    teacher = load_model(run.teacher.path, attention="eager")
    return teacher, student, load_facts(run.student_init)["kept_ids"], learnt


def remembered(ask: TargetFn) -> TargetFn:
    """The same, asking once for each batch."""
    known: dict[bytes, TargetRows] = {}

    def answer(batch: Batch) -> TargetRows:
        key = batch.ids.numpy().tobytes()
        if key not in known:
            known[key] = ask(batch)
        return known[key]

    return answer


def whole(kept: Targets, vocab_size: int) -> torch.Tensor:
    """The distributions that kept targets stand for, [N, V]: a tail is spread evenly."""
    if kept.ids is None:
        return kept.logprobs.exp()
    shares = kept.logprobs.exp()
    if kept.stands_for is not None:
        shares = shares * kept.stands_for
    elif kept.n_drawn:
        shares = torch.full_like(shares, 1 / kept.n_drawn)
    found = torch.zeros(len(shares), vocab_size)
    if kept.tail is not None and not kept.n_drawn:
        left = kept.tail.exp() / (vocab_size - kept.ids.shape[-1])
        found += left[:, None]
        return found.scatter(1, kept.ids, shares)
    return found.scatter_add(1, kept.ids, shares)


@torch.no_grad()
def apart(kept: TargetFn, live: TargetFn, texts: Sequence[Encoded]) -> tuple[float, float]:
    """Mean KL(teacher ‖ kept) in nats, infinite where tokens are missing, and total variation."""
    kl = variation = n_tokens = 0.0
    for batch in ordered_batches(texts, BATCH_SIZE):
        ours, theirs = kept(batch), live(batch)
        for rows in runs(batch.n_targets):
            p = theirs.rows(rows).logprobs.exp()
            q = whole(ours.rows(rows), p.shape[-1])
            kl += float(torch.xlogy(p, p / q).sum())
            variation += float((p - q).abs().sum()) / 2
            n_tokens += len(p)
    return kl / n_tokens, variation / n_tokens


def measure(
    form: Form, live: TargetFn, student: Any, texts: Sequence[Encoded], n_gradient: int
) -> dict[str, Any]:
    """One way to keep targets, through its half precision."""

    def kept(batch: Batch) -> TargetRows:
        return form.read(form.ask(batch))

    kl, variation = apart(kept, live, texts)
    found = compare_targets(
        student, texts[:n_gradient], kept, live, Objective(), batch_size=BATCH_SIZE
    )
    return {
        "bytes_per_token": form.bytes_per_token,
        "kl": round(kl, 6) if kl < float("inf") else None,
        "total_variation": round(variation, 5),
        "loss_bias": round(found.bias, 5),
        "gradient_cosine": round(found.cosine, 6),
        "gradient_length": round(found.length, 5),
    }


def ways(teacher: Any, kept_ids: Sequence[int], live: TargetFn) -> Mapping[str, Callable[[], Form]]:
    """The rows of the table."""
    size = len(kept_ids)
    rows: dict[str, Callable[[], Form]] = {
        f"top {k}": lambda k=k: top_k_form(live, size, k) for k in (16, 64, 128)
    }
    rows |= {f"sampled {n}": lambda n=n: sampled_form(live, size, n) for n in (8, 12, 32)}
    rows["12 draws with replacement"] = lambda: top_k_form(live, size, 0, 12)
    rows["hidden states"] = lambda: hidden_form(teacher, kept_ids, 1.0, "float32")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--gradient-texts", type=int, default=16)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        teacher, student, kept_ids, texts = prepare(Path(folder) / "runs", asked.texts)
    live = remembered(live_targets(teacher, kept_ids, 1.0))
    rows = {}
    for name, form in ways(teacher, kept_ids, live).items():
        rows[name] = measure(form(), live, student, texts, asked.gradient_texts)
        say(f"{name}: {json.dumps(rows[name])}")
    found = {
        **record(__file__),
        "teacher": "the quickstart's",
        "n_texts": len(texts),
        "n_tokens": sum(text.n_targets for text in texts),
        "n_gradient_tokens": sum(text.n_targets for text in texts[: asked.gradient_texts]),
        "vocabulary": len(kept_ids),
        "rows": rows,
        "bytes_per_token_of_others": OTHERS,
    }
    save(found, asked.out)


if __name__ == "__main__":
    main()
