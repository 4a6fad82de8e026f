"""Copies per minute of `kdexport write` beside one text at a time.

    python bench/writing.py exported/quickstart-int8 recipes/data/briefs.jsonl --briefs 1000

The same briefs, candidates and draws three ways, in turns over slices of the briefs: in one batch
that texts join and leave; one after another, of each brief the prompt read once; and one after
another, each with its prompt read (what prompts begin with alike is read once in all three).
Writes JSON to stdout: texts a minute of each and the ratio of the first to both, slice by slice.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.record import record  # noqa: E402
from kdexport.content.briefs import load_briefs  # noqa: E402
from kdexport.copywriting.copywriter import Asked, Copywriter, Work, shards  # noqa: E402
from kdexport.runtime.prompt_cache import PromptCache  # noqa: E402
from kdexport.runtime.sample import make_sampler  # noqa: E402
from kdexport.runtime.stream import write_text  # noqa: E402

N_SLICES = 3


def together(writer: Copywriter, work: Sequence[Work]) -> int:
    """Texts written by the writer's own batch."""
    found = [answer for shard in shards(work) for _, answer in writer.answers(shard)]
    return sum(len(answer.candidates) for answer in found)


def each_alone(writer: Copywriter, kept: PromptCache, work: Sequence[Work]) -> int:
    """Texts written one by one, as `kdexport generate` writes them."""
    asked, n_texts = writer.asked, 0
    drawn = make_sampler(temperature=asked.temperature, top_p=asked.top_p, top_k=asked.top_k)
    for one in work:
        request = one.request
        for number in range(request.n):
            for _ in write_text(
                writer.session,
                writer.codec,
                request.prompt_ids,
                drawn if number else make_sampler(temperature=0),
                cache=kept.begin(request.prompt_ids, request.max_new_tokens),
                max_new_tokens=request.max_new_tokens,
                stop=request.stop,
                seed=request.seed + number,
                n_logprobs=0,
            ):
                pass
            n_texts += 1
    return n_texts


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("briefs", type=Path)
    parser.add_argument("--briefs", dest="n_briefs", type=int, default=1000)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--slices", type=int, default=N_SLICES)
    given = parser.parse_args()
    asked = Asked(candidates=given.candidates)
    writers = {
        rows: Copywriter(given.bundle, asked, n_threads=given.threads, max_rows=rows)
        for rows in (32, 1)
    }
    kept = PromptCache(writers[1].session)
    ways: dict[str, Callable[[Sequence[Work]], int]] = {
        "together": lambda work: together(writers[32], work),
        "one after another": lambda work: together(writers[1], work),
        "each alone": lambda work: each_alone(writers[1], kept, work),
    }
    briefs = load_briefs(given.briefs)
    n = min(given.n_briefs, len(briefs))
    chosen = [briefs[at * len(briefs) // n] for at in range(n)]
    work = [writers[1].work(number, brief) for number, brief in enumerate(chosen)]
    longest = writers[1].bundle.manifest.model.max_length
    work = [one for one in work if len(one.request.prompt_ids) < longest]
    slices: list[dict[str, Any]] = []
    for begin in range(given.slices):
        found: dict[str, Any] = {}
        for name, way in ways.items():
            started = time.perf_counter()
            n_texts = way(work[begin :: given.slices])
            found[name] = round(60 * n_texts / (time.perf_counter() - started), 1)
        for name in list(ways)[1:]:
            found[f"times {name}"] = round(found["together"] / found[name], 2)
        slices.append(found)
    facts = {"bundle": writers[1].bundle.manifest_sha256, "n_briefs": len(work), **vars(asked)}
    facts |= {**record(__file__), "texts_a_minute": slices}
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
