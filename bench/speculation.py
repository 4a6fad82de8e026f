"""What a student as draft spares its teacher, and what a kept prompt spares the first token.

    python bench/speculation.py TEACHER DRAFT --out bench/results/speculation.json

The prompts are those of the held-out texts in the draft's reference. The teacher alone (opened
exact, and as it is usually opened) and with the draft take turns at each prompt, greedy and drawn;
the times are of whole texts (the draft reads the prompt, too) and of what follows the first token.
Also told: whether the texts are those of the exact teacher, and by how much each teacher's logits
depend on how tokens are grouped into calls, on which that hangs.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench.record import record, save  # noqa: E402
from kdexport.runtime.generate import Step, generate  # noqa: E402
from kdexport.runtime.prompt_cache import PromptCache  # noqa: E402
from kdexport.runtime.quality import load_reference  # noqa: E402
from kdexport.runtime.sample import make_sampler  # noqa: E402
from kdexport.runtime.session import Session, open_session  # noqa: E402
from kdexport.runtime.speculate import (  # noqa: E402
    Speculation,
    Vocabularies,
    grouping_error,
    match_vocabularies,
)
from kdexport.runtime.text import load_text  # noqa: E402

SAMPLING: dict[str, dict[str, float]] = {
    "greedy": {},
    "drawn": {"temperature": 0.8, "top_p": 0.95},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("teacher", type=Path)
    parser.add_argument("draft", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--texts", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--most", type=int, default=8)
    parser.add_argument("--sure", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    usual = open_session(asked.teacher, n_threads=asked.threads)
    teacher = open_session(asked.teacher, n_threads=asked.threads, exact=True)
    draft = open_session(asked.draft, n_threads=asked.threads)
    tokens = match_vocabularies(load_text(asked.teacher), load_text(asked.draft))
    prompts = held_out_prompts(asked.draft, tokens, asked.texts)
    result: dict[str, Any] = {
        **record(__file__),
        "teacher": f"{teacher.manifest.name} {teacher.manifest.scheme}",
        "draft": f"{draft.manifest.name} {draft.manifest.scheme}",
        "asked": {name: n for name, n in vars(asked).items() if not isinstance(n, Path)},
        "grouping_error": grouping_error(teacher, prompts[0]),
        "grouping_error_usual": grouping_error(usual, prompts[0]),
    }
    for name, options in SAMPLING.items():
        sampler = make_sampler(**options)
        guessing = Speculation(teacher, draft, tokens, sampler, most=asked.most, sure=asked.sure)
        result[name] = compare(usual, teacher, guessing, prompts, sampler, asked.new_tokens)
    result["kept_prompts"] = kept_prompts(teacher, prompts)
    print(json.dumps(result, indent=1))
    save(result, asked.out)


def held_out_prompts(draft: Path, tokens: Vocabularies, n: int) -> list[list[int]]:
    """Every so many-th text of the reference up to its first target, in the teacher's tokens."""
    reference = load_reference(draft / "reference.npz")
    target_of = dict(zip(tokens.draft_ids.tolist(), tokens.target_ids.tolist(), strict=True))
    ends = [reference.target[reference.target >= begin].min() for begin in reference.offsets[:-1]]
    texts = [
        [target_of[one] for one in reference.ids[begin:end].tolist()]
        for begin, end in zip(reference.offsets[:-1], ends, strict=True)
    ]
    return texts[:: max(len(texts) // n, 1)][:n]


def compare(
    usual: Session,
    teacher: Session,
    guessing: Speculation,
    prompts: Sequence[list[int]],
    sampler: Any,
    n_new: int,
) -> dict[str, Any]:
    """All in turns at each prompt; ratios of sums, and of each prompt's the quartiles."""
    as_usual: list[tuple[list[int], float, float]] = []
    alone: list[tuple[list[int], float, float]] = []
    with_draft: list[tuple[list[int], float, float]] = []
    for seed, prompt in enumerate(prompts[:1] + list(prompts)):  # the first warms up
        for session, choose, found in (
            (usual, sampler, as_usual),
            (teacher, sampler, alone),
            (guessing, guessing.choose, with_draft),
        ):
            found.append(timed(generate(session, prompt, choose, max_new_tokens=n_new, seed=seed)))
    as_usual, alone, with_draft = as_usual[1:], alone[1:], with_draft[1:]
    whole = [a[1] / b[1] for a, b in zip(alone, with_draft, strict=True)]
    after = [a[2] / b[2] for a, b in zip(alone, with_draft, strict=True) if len(a[0]) > 1]
    guesses = guessing.guesses
    return {
        "n_texts": len(prompts),
        "n_same": sum(a[0] == b[0] for a, b in zip(alone, with_draft, strict=True)),
        "n_tokens": sum(len(a[0]) for a in alone),
        "speed_up_whole": sum(a[1] for a in alone) / sum(b[1] for b in with_draft),
        "speed_up_after_first": sum(a[2] for a in alone) / sum(b[2] for b in with_draft),
        "quartiles_whole": statistics.quantiles(whole, n=4),
        "quartiles_after_first": statistics.quantiles(after, n=4),
        "alone_seconds": sum(a[1] for a in alone),
        "ms_per_token_usual": per_token(as_usual),
        "ms_per_token_exact": per_token(alone),
        "ms_per_token_with_draft": per_token(with_draft),
        "guesses": asdict(guesses),
        "acceptance": guesses.acceptance,
        "tokens_per_call": guesses.tokens_per_call,
    }


def per_token(texts: Sequence[tuple[list[int], float, float]]) -> float:
    """Milliseconds for a token after a text's first."""
    return 1e3 * sum(text[2] for text in texts) / sum(len(text[0]) - 1 for text in texts)


def timed(steps: Iterator[Step]) -> tuple[list[int], float, float]:
    """Tokens, seconds of all, and seconds after the first token."""
    started = time.perf_counter()
    ids = [next(steps).token_id]
    first = time.perf_counter()
    ids += [step.token_id for step in steps]
    ended = time.perf_counter()
    return ids, ended - started, ended - first


def kept_prompts(session: Session, prompts: Sequence[list[int]]) -> dict[str, float]:
    """Median milliseconds to the first token: read at once, in blocks, and with blocks kept."""
    kept = PromptCache(session)
    ways: dict[str, Callable[[list[int]], Any]] = {
        "at_once": lambda prompt: None,
        "in_blocks": lambda prompt: PromptCache(session).begin(prompt, 1),
        "kept": lambda prompt: kept.begin(prompt, 1),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for prompt in prompts:
        kept.begin(prompt)
        for name, begin in ways.items():
            started = time.perf_counter()
            steps = generate(session, prompt, make_sampler(), max_new_tokens=1, cache=begin(prompt))
            next(steps)
            times[name].append(1e3 * (time.perf_counter() - started))
    return {f"first_token_ms_{name}": statistics.median(found) for name, found in times.items()}


if __name__ == "__main__":
    main()
