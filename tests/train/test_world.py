"""Two processes train as one does: the same losses, whatever happens in one of them alone."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdexport.errors import KdexportError
from kdexport.pipeline.rounding import kernel_of
from kdexport.system.interrupts import Interrupted
from kdexport.train.data import Batch, Encoded, collate
from kdexport.train.feed import Epochs
from kdexport.train.model import load_model
from kdexport.train.on_policy import OnPolicy
from kdexport.train.rounding import Rounding
from kdexport.train.schedule import Budget, Schedule
from kdexport.train.teacher import TargetFn, live_targets
from kdexport.train.trainer import Hooks, Material, TrainSettings, distill
from kdexport.train.world import ALONE, World, joined, leave
from tests.processes import in_two

STEPS = 10
CLOSE = 1e-4  # of losses of a few nats: two processes add up in another order
OWN = OnPolicy(Schedule(0.0, 1.0), 1.0, 12, 48, frozenset({2}), seed=0)
Ask = Callable[[TargetFn], TargetFn]


def ragged(n_examples: int) -> list[Encoded]:
    """Texts of 6 to 40 tokens, of which 1 to all but one are targets."""
    rng = np.random.default_rng(3)
    found = []
    for number, size in enumerate(rng.integers(6, 40, size=n_examples)):
        first = int(rng.integers(1, size))
        found.append(Encoded(f"e{number}", rng.integers(3, 300, size=int(size)), first, first))
    return found


def train(model: Path, folder: Path, world: World, **changes: Any) -> dict[str, Any]:
    """A short run: losses and norms by step, validation KL, and the weights' hash."""
    torch.manual_seed(0)
    teacher, student = load_model(model), load_model(model)
    torch.nn.init.normal_(student.base_model.get_input_embeddings().weight, std=0.05)
    targets = changes.get("ask", lambda targets: targets)(live_targets(teacher, None, 1.0))
    held_out = live_targets(teacher, None, 1.0)
    # 21 examples in batches of 4: the last batch of an epoch has one, and so none for the second.
    texts = ragged(30)
    told: dict[str, Any] = {"loss": [], "norm": [], "kl": []}

    def report(event: Any) -> None:
        told["loss"].append(event.loss)
        told["norm"].append(event.norm)
        told["skipped"] = event.skipped

    hooks = Hooks(
        report=report,
        evaluated=lambda at, found: told["kl"].append(found.kl),
        interrupted=changes.get("interrupted", lambda: False),
    )
    settings = TrainSettings(
        Budget(max_steps=STEPS), lr=1e-3, batch_size=4, accumulate=2, evaluate_steps=4
    )
    if "kernel" in changes:
        kernel = kernel_of(changes["kernel"])
        hooks = replace(hooks, rounding=Rounding(student, kernel, kernel, texts[:8]))
        settings = replace(settings, rounded_from=0.0)
    feed = Epochs(texts[:21], 4, 0)
    material = Material(feed, targets, texts[21:], held_out, changes.get("own"))
    try:
        distill(
            student,
            material,
            settings,
            hooks,
            checkpoints=folder / changes["name"],
            fingerprint="f",
            world=world,
        )
    except Interrupted:
        told["interrupted"] = True
    weights = b"".join(p.detach().numpy().tobytes() for p in student.parameters())
    return told | {"sha256": sha256(weights).hexdigest()}


def only_in(world: World, rank: int, change: Ask) -> Ask:
    return change if world.rank == rank or world.size == 1 else lambda targets: targets


def strays_at(example_id: str) -> Ask:
    """Targets that are no numbers for one example."""

    def changed(targets: TargetFn) -> TargetFn:
        def ask(batch: Batch) -> Any:
            found = targets(batch).rows(slice(None))
            if example_id in [example.example_id for example in batch.examples]:
                return replace(found, logprobs=found.logprobs * math.nan)
            return found

        return ask

    return changed


def short_of_memory(most: int) -> Ask:
    """Memory ends where there are more than so many examples in a batch."""

    def changed(targets: TargetFn) -> TargetFn:
        def ask(batch: Batch) -> Any:
            if len(batch.examples) > most:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            return targets(batch)

        return ask

    return changed


def stop_at_call(number: int) -> Callable[[], bool]:
    calls = iter(range(1, 10**6))
    return lambda: next(calls) >= number


def scenarios(rank: int, folder: Path) -> None:
    """What one of two processes does; each writes what it has seen."""
    llama, gpt2 = folder / "llama", folder / "gpt2"
    seen: dict[str, Any] = {}
    with joined() as world:
        seen["plain"] = train(llama, folder, world, name="plain")
        seen["own"] = train(llama, folder, world, name="own", own=OWN)
        # An example is read in one process only, now in this one, now in the other.
        seen["strays"] = train(llama, folder, world, name="strays", ask=strays_at("e7"))
        short = only_in(world, 1, short_of_memory(1))
        seen["short"] = train(llama, folder, world, name="short", ask=short)
        seen["rounded"] = train(llama, folder, world, name="rounded", kernel="block4")
        seen["whole"] = train(gpt2, folder, world, name="whole")
        for name, model in (("stopped", gpt2), ("handed", llama)):
            # The fifth call is inside of the evaluation after step 4.
            stop = stop_at_call(5) if rank == 1 else lambda: False
            seen[name] = train(model, folder, world, name=name, interrupted=stop)
        seen["resumed"] = train(gpt2, folder, world, name="stopped")
        never = only_in(world, 1, short_of_memory(0))
        try:
            train(llama, folder, world, name="never", ask=never)
        except KdexportError as error:
            seen["never"] = str(error)
            leave()
    (folder / f"seen-{rank}.json").write_text(json.dumps(seen))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.models import make_gpt2, make_llama

    folder = tmp_path_factory.mktemp("world")
    make_llama(folder / "llama")
    make_gpt2(folder / "gpt2")  # whose dropout draws random numbers
    return folder


@pytest.fixture(scope="module")
def seen(folder: Path) -> list[dict[str, Any]]:
    in_two(scenarios, folder)
    return [json.loads((folder / f"seen-{rank}.json").read_text()) for rank in (0, 1)]


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, Any]:
    return train(folder / "llama", folder, ALONE, name="alone")


def assert_close(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name in ("loss", "norm", "kl"):
        assert found[name] == pytest.approx(wanted[name], abs=CLOSE, nan_ok=True), name


def test_two_processes_have_the_losses_of_one(
    seen: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    assert len(alone["loss"]) == STEPS
    assert alone["loss"][-1] < alone["loss"][0] - 0.1
    assert_close(seen[0]["plain"], alone)
    assert seen[0]["plain"]["sha256"] == seen[1]["plain"]["sha256"]


def test_two_processes_round_alike_and_train_one_s_scales(
    seen: list[dict[str, Any]], folder: Path
) -> None:
    alone = train(folder / "llama", folder, ALONE, name="alone-rounded", kernel="block4")
    assert_close(seen[0]["rounded"], alone)
    assert seen[0]["rounded"]["sha256"] == seen[1]["rounded"]["sha256"]


def test_two_processes_write_the_samples_of_one(
    seen: list[dict[str, Any]], alone: dict[str, Any], folder: Path
) -> None:
    wanted = train(folder / "llama", folder, ALONE, name="own-1", own=OWN)
    assert max(abs(a - b) for a, b in zip(wanted["loss"], alone["loss"], strict=True)) > 0.1
    assert_close(seen[0]["own"], wanted)
    assert seen[0]["own"]["sha256"] == seen[1]["own"]["sha256"]


def test_numbers_that_are_not_finite_in_one_are_skipped_by_both(
    seen: list[dict[str, Any]], folder: Path
) -> None:
    both, other = seen[0]["strays"], seen[1]["strays"]
    wanted = train(folder / "llama", folder, ALONE, name="strays-1", ask=strays_at("e7"))
    assert wanted["skipped"] == both["skipped"] == other["skipped"] > 0
    assert both["sha256"] == other["sha256"]
    assert both["kl"] == pytest.approx(wanted["kl"], abs=CLOSE)


def test_where_memory_ends_in_one_the_other_waits(
    seen: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    assert_close(seen[0]["short"], alone)
    assert seen[0]["short"]["sha256"] == seen[1]["short"]["sha256"]


def test_a_wish_to_stop_in_one_stops_both_and_both_go_on(seen: list[dict[str, Any]]) -> None:
    """Bit for bit, with dropout, though the first process alone has saved its random state."""
    for one in seen:
        assert one["stopped"]["interrupted"]
        assert len(one["stopped"]["loss"]) == 4 and not one["stopped"]["kl"]
        assert one["stopped"]["loss"] + one["resumed"]["loss"] == one["whole"]["loss"]
        assert one["resumed"]["sha256"] == one["whole"]["sha256"]


def test_where_one_ends_the_other_says_so(seen: list[dict[str, Any]]) -> None:
    assert "not memory enough for 1 examples" in seen[1]["never"]
    assert "the other processes cannot be reached" in seen[0]["never"]


def test_what_two_have_begun_one_can_end(
    seen: list[dict[str, Any]], alone: dict[str, Any], folder: Path
) -> None:
    """A checkpoint knows no processes."""
    assert seen[0]["handed"]["interrupted"]
    rest = train(folder / "llama", folder, ALONE, name="handed")
    assert len(rest["loss"]) == STEPS - 4
    assert rest["loss"] == pytest.approx(alone["loss"][4:], abs=CLOSE)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_shares_of_a_batch_are_the_batch(size: int) -> None:
    texts = ragged(5)
    shares = [collate(texts).share(World(rank, size)) for rank in range(size)]
    found = [e.example_id for share in shares if share for e in share.examples]
    assert sorted(found) == sorted(e.example_id for e in texts)
    assert sum(share.n_targets for share in shares if share) == collate(texts).n_targets
