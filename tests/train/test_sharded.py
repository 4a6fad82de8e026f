"""A teacher in two processes, half of each layer in each, says what it says in one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdexport.errors import KdexportError
from kdexport.train.ahead import ahead
from kdexport.train.cache import TargetCache, fill_cache
from kdexport.train.columns import hidden_form
from kdexport.train.data import Batch, Encoded, collate
from kdexport.train.feed import Epochs
from kdexport.train.model import load_model
from kdexport.train.on_policy import OnPolicy
from kdexport.train.schedule import Budget, Schedule
from kdexport.train.sharded import in_shards
from kdexport.train.teacher import live_targets
from kdexport.train.trainer import Hooks, Material, TrainSettings, distill
from kdexport.train.world import ALONE, World, joined
from tests.processes import in_two
from tests.train.shortage import for_at_most

CLOSE = 1e-5  # the same products of the same numbers
FAMILIES = ("llama", "gpt2")


def texts(seed: int, n: int) -> list[Encoded]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(5, 30, size=n)
    return [Encoded(f"e{i}", rng.integers(3, 300, size=int(s)), 2, 2) for i, s in enumerate(sizes)]


def in_one_of_two(rank: int, folder: Path) -> None:
    """What each process does and writes: how far it is from the whole, and what it holds."""
    seen: dict[str, Any] = {}
    with joined() as world:
        for name in FAMILIES:
            whole = load_model(folder / name)
            mine = in_shards(lambda path=folder / name: load_model(path), "cpu", world)
            batch = collate(texts(rank, 3 + rank))  # other texts, and more of them
            found, expected = (
                live_targets(model, None, 1.0)(batch).rows(slice(None)).logprobs
                for model in (mine, whole)
            )
            layers = [p for p in mine.parameters() if hasattr(p, "to_local")]
            seen[name] = {
                "apart": float((found - expected).abs().max()),
                "held": sum(p.to_local().numel() for p in layers),
                "whole": sum(p.numel() for p in layers),
            }
            # Seven batches of two; some are there already, and of the last one process has none.
            form, place = hidden_form(mine, None, 1.0, "float32"), folder / f"{name}-kept"
            for n in (5, 14):
                fill_cache(
                    place, texts(9, 14)[:n], form.ask, batch_size=2, world=world, in_step=True
                )
        mine = in_shards(lambda: load_model(folder / "llama"), "cpu", world)
        seen["learnt"] = learnt(folder / "llama", mine, folder / "checkpoints", world)
    (folder / f"{rank}.json").write_text(json.dumps(seen))


def learnt(path: Path, teacher: Any, checkpoints: Path, world: World) -> list[float]:
    """Losses of a student that asks this teacher live, of given texts and of its own.

    Nine texts in batches of four: of the last batch one process has nothing. Where this is the
    second of two, memory ends at two texts.
    """
    torch.manual_seed(0)
    student, losses = load_model(path), list[float]()
    torch.nn.init.normal_(student.get_input_embeddings().weight, std=0.05)
    if world.rank:
        read = student.base_model.forward

        def forward(input_ids: Any, **inputs: Any) -> Any:
            if torch.is_grad_enabled() and len(input_ids) > 1:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            return read(input_ids=input_ids, **inputs)

        student.base_model.forward = forward
    half = OnPolicy(Schedule(0.5, 0.5), 1.0, 6, 40, frozenset({2}), seed=0)
    material = Material(
        *(Epochs(texts(9, 9), 4, 0), live_targets(teacher, None, 1.0), [], None, half),
        in_step=world.size > 1,
    )
    settings = TrainSettings(Budget(max_steps=6), batch_size=4, accumulate=2, evaluate_steps=100)
    hooks = Hooks(report=lambda event: losses.append(event.loss))
    where: Any = {"checkpoints": checkpoints, "fingerprint": "f", "world": world}
    distill(student, material, settings, hooks, **where)
    return losses


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, llama: Path, gpt2: Path) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("sharded")
    for name, path in zip(FAMILIES, (llama, gpt2), strict=True):
        (folder / name).symlink_to(path)
    in_two(in_one_of_two, folder)
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", FAMILIES)
def test_each_process_gets_what_the_whole_teacher_says(seen: tuple[Path, Any], name: str) -> None:
    for rank in (0, 1):
        assert seen[1][rank][name]["apart"] < CLOSE


@pytest.mark.parametrize("name", FAMILIES)
def test_each_holds_its_part_of_the_layers_alone(seen: tuple[Path, Any], name: str) -> None:
    """Also after it was asked."""
    held = [of[name]["held"] for of in seen[1]]
    assert sum(held) == seen[1][0][name]["whole"] > 0
    assert max(held) < 0.6 * sum(held)


@pytest.mark.parametrize("name", FAMILIES)
def test_kept_targets_are_those_of_one_process(
    seen: tuple[Path, Any], name: str, tmp_path: Path
) -> None:
    form = hidden_form(load_model(seen[0] / name), None, 1.0, "float32")
    fill_cache(tmp_path, texts(9, 14), form.ask, batch_size=2)
    batch = collate(texts(9, 14))
    one, two = (TargetCache(of).columns(batch) for of in (tmp_path, seen[0] / f"{name}-kept"))
    torch.testing.assert_close(two["hidden"], one["hidden"], rtol=1e-3, atol=1e-5)  # in half


def test_a_student_learns_live_of_a_teacher_in_parts_as_of_a_whole_one(
    seen: tuple[Path, Any], tmp_path: Path
) -> None:
    """Also where one process works in smaller batches than the other, and has fewer of them."""
    path = seen[0] / "llama"
    alone = learnt(path, load_model(path), tmp_path, ALONE)
    assert len(alone) == 6 and alone[-1] < alone[0]
    for rank in (0, 1):
        assert seen[1][rank]["learnt"] == pytest.approx(alone, abs=1e-4)


def test_what_was_asked_before_serves_parts_of_a_batch(llama: Path) -> None:
    ask = live_targets(load_model(llama), None, 2.0)
    first, second = collate(texts(1, 4)), collate(texts(2, 3))
    asked: list[int] = []

    def counted(batch: Batch) -> Any:
        asked.append(len(batch.examples))
        return ask(batch)

    given = ahead(counted, [first, second], [first, second, first])
    assert asked == [4, 3, 1]  # once more than it has batches, of one text
    for part in (first, second, second.of(second.examples[1:]), first.of(first.examples[1:3])):
        found, expected = (of(part).rows(slice(None)).logprobs for of in (given, ask))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert asked == [4, 3, 1]


def test_a_batch_that_is_too_much_for_the_teacher_is_one_line(llama: Path) -> None:
    ask = for_at_most(2, live_targets(load_model(llama), None, 1.0))
    batch = collate(texts(1, 4))
    with pytest.raises(KdexportError, match="not memory enough for 4 examples at once"):
        ahead(ask, [batch], [batch])
