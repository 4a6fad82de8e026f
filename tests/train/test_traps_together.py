"""Every loss and way of asking, and every loss between layers, in two processes: a step has the
gradient that one process gives it, however its texts are shared out.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdexport.recipe.train import PARTS
from kdexport.train.case import WAYS, Case
from kdexport.train.data import Batch, Encoded, collate
from kdexport.train.inside import INSIDE, InnerTerm, Inside
from kdexport.train.losses import LOSSES
from kdexport.train.model import load_model
from kdexport.train.objective import Objective, Term
from kdexport.train.proofs import relative_norm, step_gradient
from kdexport.train.schedule import Schedule
from kdexport.train.sizes import StudentSpec
from kdexport.train.student import Origin, prune
from kdexport.train.world import ALONE, World, joined
from tests.models import make_llama
from tests.processes import in_two

CLOSE = 1e-4  # relative: two processes add up in another order
KEPT = list(range(0, 320, 2))
ROW_LENGTH = 40
PATHS = [
    *((name, way) for name in LOSSES for way in WAYS if not (LOSSES[name].whole and way in PARTS)),
    *((name, "inside") for name in INSIDE),
    ("forward_kl", "packed"),
]


def case_of(folder: Path, place: Path) -> Case:
    """A teacher, a student of half of its tokens, and texts of which most are their prompts."""
    torch.manual_seed(0)
    teacher = load_model(folder / "teacher", attention="eager")
    student = prune(Origin(teacher, KEPT, [torch.arange(40)[None]]), StudentSpec(n_layers=2)).model
    rng = np.random.default_rng(1)
    sizes, firsts = (30, 6, 18, 9, 24, 7, 12), (2, 5, 16, 3, 23, 1, 4)
    return Case(
        teacher=teacher,
        student=student,
        kept_ids=KEPT,
        examples=[
            Encoded(f"e{n}", rng.integers(2, 160, size=size), 1, first, 1.0 + n % 3)
            for n, (size, first) in enumerate(zip(sizes, firsts, strict=True))
        ],
        objective=Objective(kd_weight=Schedule(1.0, 5.0), temperature=2.0, prompt_weight=0.5),
        folder=place,
        top_k=64,
        teacher_tokens={},
        student_tokens={},
        tokenizer_from=folder / "teacher",
    )


def cases(folder: Path, place: Path) -> Iterator[tuple[str, Case, int | None]]:
    plain = case_of(folder, place)
    for name, way in PATHS:
        wish, case = plain.objective, plain
        if way == "inside":
            inside = Inside([InnerTerm(name)], plain.student, plain.teacher)
            wish = replace(wish, inside=inside)
        else:
            wish = replace(wish, terms=(Term(name),))
            case = replace(case, way="live" if way == "packed" else way)
        row_length = ROW_LENGTH if way == "packed" else None
        yield f"{name} {way}", replace(case, objective=wish), row_length


def gradient(case: Case, world: World, row_length: int | None) -> torch.Tensor:
    """Of an accumulated step, batches of 4, of 2 and of 1: of the last a process has nothing."""
    every = (case.examples[:4], case.examples[4:6], case.examples[6:])
    shares = (collate(examples, row_length).share(world) for examples in every)
    group: list[Batch] = [share for share in shares if share is not None]
    return step_gradient(case, group, world=world)


def scenario(rank: int, folder: Path) -> None:
    """How far the gradient of both is from the one of a process alone, in each."""
    seen: dict[str, Any] = {}
    with joined() as world:
        for name, case, row_length in cases(folder, folder / f"kept-{rank}"):
            whole = gradient(case, ALONE, row_length)
            seen[name] = relative_norm(gradient(case, world, row_length), whole)
        # As other trainers do: each divides by tokens of its own, and the mean is taken.
        own = World.summed
        World.summed = lambda of, values: [of.size * v for v in values]  # type: ignore[method-assign, assignment]
        counted = gradient(case, world, row_length)
        World.summed = own  # type: ignore[method-assign]
        seen["by own tokens"] = relative_norm(counted, whole)
    (folder / f"seen-{rank}.json").write_text(json.dumps(seen))


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    folder = tmp_path_factory.mktemp("together")
    make_llama(folder / "teacher", n_layers=4)
    in_two(scenario, folder)
    return [json.loads((folder / f"seen-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize(("name", "way"), PATHS)
def test_two_processes_have_the_gradient_of_one(
    seen: list[dict[str, float]], name: str, way: str
) -> None:
    assert max(found[f"{name} {way}"] for found in seen) < CLOSE


def test_a_mean_over_processes_would_be_seen(seen: list[dict[str, float]]) -> None:
    assert min(found["by own tokens"] for found in seen) > 100 * CLOSE
