"""A teacher in two processes, half of each layer in each, says what it says in one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdexport.train.cache import TargetCache, fill_cache
from kdexport.train.columns import hidden_form
from kdexport.train.data import Encoded, collate
from kdexport.train.model import load_model
from kdexport.train.sharded import in_shards
from kdexport.train.teacher import live_targets
from kdexport.train.world import joined
from tests.processes import in_two

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
    (folder / f"{rank}.json").write_text(json.dumps(seen))


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
