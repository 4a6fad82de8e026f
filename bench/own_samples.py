"""Would on-policy samples come sooner from an exported student than from the one that is trained?

    python bench/own_samples.py runs/quickstart/student --out bench/results/own-samples.json

In each round the student writes the same number of tokens from the same prompts, in batches, with
PyTorch (`kdexport.train.on_policy.sample`), and with a bundle exported for the purpose, whose
export is timed: a bundle is of one moment, so each refresh of it costs one. Ends are ignored.
Written: tokens per second of both, and how many tokens a bundle has to write before its export is
paid. As many batches divide the student that samples from the student that is trained.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.record import record, save  # noqa: E402
from kdexport.export.bundles import export_bundle  # noqa: E402
from kdexport.runtime.generate import generate_batch  # noqa: E402
from kdexport.runtime.sample import make_sampler  # noqa: E402
from kdexport.runtime.session import open_session  # noqa: E402
from kdexport.train.model import load_model  # noqa: E402
from kdexport.train.on_policy import sample  # noqa: E402


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(given: argparse.Namespace) -> dict[str, Any]:
    model = load_model(given.student, attention="eager")
    rng = np.random.default_rng(0)
    rows = range(given.batch_size)
    prompts = [rng.integers(3, model.config.vocab_size, size=given.prompt_tokens) for _ in rows]
    rooms = [given.new_tokens] * len(rows)
    draws = rng.random((len(rows), given.new_tokens))
    sampler = make_sampler(temperature=1.0)

    def by_torch() -> None:
        found = sample(model, prompts, rooms, 1.0, (), draws)
        assert sum(map(len, found)) == sum(rooms)

    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        bundle = Path(folder) / "student"
        export_s = [
            seconds(lambda: export_bundle(given.student, bundle, name="student"))
            for _ in range(given.rounds)
        ]
        session = open_session(bundle)

        def by_bundle() -> None:
            found = generate_batch(
                session,
                [prompt.tolist() for prompt in prompts],
                sampler,
                max_new_tokens=rooms,
                batch_size=len(rows),
                ignore_eos=True,
            )
            assert sum(len(one.steps) for one in found) == sum(rooms)

        for warm_up in (by_torch, by_bundle):
            warm_up()
        taken = [(seconds(by_torch), seconds(by_bundle)) for _ in range(given.rounds)]
    n_tokens = sum(rooms)
    saved = [(torch_s - onnx_s) / n_tokens for torch_s, onnx_s in taken]
    even = [round(e / s) if s > 0 else None for e, s in zip(export_s, saved, strict=True)]
    return {
        **record(__file__),
        "student_parameters": model.num_parameters(),
        "threads": torch.get_num_threads(),
        "batch_size": len(rows),
        "prompt_tokens": given.prompt_tokens,
        "new_tokens": given.new_tokens,
        "torch_tokens_per_s": [round(n_tokens / torch_s, 1) for torch_s, _ in taken],
        "bundle_tokens_per_s": [round(n_tokens / onnx_s, 1) for _, onnx_s in taken],
        "export_s": [round(value, 2) for value in export_s],
        "tokens_until_an_export_is_paid": even,
        "batches_until_an_export_is_paid": [n and round(n / n_tokens, 1) for n in even],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("student", type=Path, help="a Hugging Face folder")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=96)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found = measure(given)
    print(json.dumps(found, indent=1))
    save(found, given.out)


if __name__ == "__main__":
    main()
