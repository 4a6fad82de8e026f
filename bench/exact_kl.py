"""A bundle's KL as the bench has it, from a reference, beside PyTorch's of whole distributions.

    python bench/exact_kl.py runs/quickstart exported/quickstart --out bench/results/exact-kl.json

RUN is a run's folder, BUNDLE its float32 bundle. The reference keeps of the teacher what is
likeliest and draws the rest; here teacher and student in PyTorch say all of it, for the same
tokens. Beside the difference stands what the draws alone make of it, a standard error over texts.
"""

import argparse
import itertools
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.record import record, save  # noqa: E402
from kdexport.runtime.quality import Reference, load_reference, measure_quality  # noqa: E402
from kdexport.runtime.session import open_session  # noqa: E402
from kdexport.sources import resolve_teacher  # noqa: E402
from kdexport.system.console import Tracker, tracked  # noqa: E402
from kdexport.train.model import load_model  # noqa: E402

BAR = 1e-4  # nats


@torch.inference_mode()
def exact_kl(teacher: Any, student: Any, reference: Reference, progress: Tracker) -> list[float]:
    """KL(teacher ‖ student) of each text, summed over its target tokens, in nats."""
    kept = torch.from_numpy(reference.kept_ids.astype(np.int64))
    found = []
    for begin, end in itertools.pairwise(reference.offsets):
        inside = (reference.target >= begin) & (reference.target < end)
        if not inside.any():
            continue
        progress(len(found), len(reference.offsets) - 1)
        ids = torch.from_numpy(reference.ids[begin:end].astype(np.int64))[None]
        places = torch.from_numpy(reference.target[inside] - begin - 1)
        p, q = (
            torch.log_softmax(logits[0].double(), -1)
            for logits in (
                teacher(input_ids=kept[ids], logits_to_keep=places).logits[..., kept],
                student(input_ids=ids, logits_to_keep=places).logits,
            )
        )
        found.append(float((p.exp() * (p - q)).sum()))
    return found


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """What came out, and the bar."""
    n_tokens, n_texts = int(sum(found["tokens"])), len(found["tokens"])
    of_bench, exact = (sum(found[way]) / n_tokens for way in ("bench", "exact"))
    apart = np.subtract(found["bench"], found["exact"])
    error = math.sqrt(n_texts) * apart.std(ddof=1) / n_tokens
    yield "| KL, nats a token | |"
    yield "|---|---:|"
    yield f"| of the bench, from the reference | {of_bench:.5f} |"
    yield f"| of PyTorch, whole | {exact:.5f} |"
    yield ""
    difference = of_bench - exact
    met = "met" if abs(difference) <= BAR else "NOT met"
    yield (
        f"- {difference:+.5f} over {n_tokens:,} tokens, bar ± {BAR:g}: {met}; "
        f"the draws' standard error is {error:.5f}"
    )


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path, metavar="FILE.json")
    given = parser.parse_args(words)
    recipe = json.loads((given.run / "recipe.json").read_text("utf-8"))
    reference = load_reference(given.run / "reference.npz")
    quality = measure_quality(open_session(given.bundle), reference, teacher_vocabulary=False)
    teacher = load_model(resolve_teacher(recipe["teacher"]["source"]).path)
    with tracked("exact", "texts") as progress:
        exact = exact_kl(teacher, load_model(given.run / "student"), reference, progress)
    found = {
        **record(__file__, words),
        "tokens": quality.texts["tokens"],
        "bench": quality.texts["kl"],
        "exact": exact,
    }
    print("\n".join(lines(found)))
    save(found, given.out)


if __name__ == "__main__":
    main()
