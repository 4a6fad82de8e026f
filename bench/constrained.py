"""What keeping to a form costs a token: the sampler's CPU time with and without it, in turns.

    python bench/constrained.py exported/quickstart-int8

No model runs: logits are random numbers of the vocabulary's size, the same for both. Writes JSON
to stdout: CPU milliseconds a token of each form, plain sampling beside it and their difference,
medians over texts; and how long the grammars of a vocabulary, and a form's own, take to make.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.record import record  # noqa: E402
from kdexport.bundle import open_bundle  # noqa: E402
from kdexport.runtime.constrain import Grammars, TextForm  # noqa: E402
from kdexport.runtime.sample import Sampler, make_sampler, new_row  # noqa: E402
from kdexport.runtime.text import load_text  # noqa: E402

SCHEMA = {
    "type": "object",
    "properties": {
        "subject": {"type": "string", "maxLength": 60},
        "body": {"type": "string", "maxLength": 160},
        "tone": {"enum": ["warm", "dry"]},
    },
    "required": ["subject", "body", "tone"],
    "additionalProperties": False,
}
FORMS = {
    "json": TextForm("json", SCHEMA),
    "regex": TextForm("regex", r"[A-Z][a-z]+( [a-z]+){7,15}[.!]"),
    "choice": TextForm("choice", [f"Fresh bread and tea number {n} today" for n in range(100)]),
}
MOST_TOKENS = 200
Array = np.ndarray[Any, Any]


def write(sampler: Sampler, noise: Array, seed: int, ends: set[int], n_most: int) -> int:
    """One text; how many tokens it has."""
    row = new_row(seed)
    while len(row.ids) < n_most:
        logits = noise[(seed + len(row.ids)) % len(noise)][None]
        row.ids.append(int(sampler(logits, [row])[0]))
        if row.ids[-1] in ends:
            break
    return len(row.ids)


def measure(bundle: Path, n_texts: int) -> dict[str, Any]:
    """The figures of a bundle's vocabulary."""
    opened = open_bundle(bundle)
    codec, size = load_text(opened), opened.manifest.model.vocab_size
    ends = set(codec.facts.eos_token_ids)
    noise = np.random.default_rng(0).normal(0, 3, (32, size)).astype(np.float32)
    begun = time.process_time()
    grammars = Grammars(codec, size)
    found: dict[str, Any] = {"grammars_ms": round(1000 * (time.process_time() - begun), 1)}
    plain = make_sampler(temperature=0.8, top_k=50, top_p=0.95)
    for name, form in FORMS.items():
        begun = time.process_time()
        kept = grammars.keep_to(plain, form)
        made = 1000 * (time.process_time() - begun)
        with_form, without, n_tokens = [], [], 0
        for seed in range(n_texts):
            begun = time.process_time()
            n = write(kept, noise, seed, ends, MOST_TOKENS)
            between = time.process_time()
            write(plain, noise, seed, set(), n)
            with_form.append(1000 * (between - begun) / n)
            without.append(1000 * (time.process_time() - between) / n)
            n_tokens += n
        both = [statistics.median(one) for one in (with_form, without)]
        found[name] = {
            "form_ms": round(made, 2),
            "tokens": n_tokens,
            "with_ms": round(both[0], 4),
            "without_ms": round(both[1], 4),
            "more_ms": round(both[0] - both[1], 4),
        }
    return {"vocabulary": size, **found}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path, nargs="+")
    parser.add_argument("--texts", type=int, default=30)
    given = parser.parse_args()
    found = [measure(bundle, given.texts) for bundle in given.bundle]
    print(json.dumps({**record(__file__), "vocabularies": found}, indent=1))


if __name__ == "__main__":
    main()
