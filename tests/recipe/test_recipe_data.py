"""The data beside the recipes: real, varied, and without a product in two splits."""

import json
import runpy
from pathlib import Path

import pytest

from kdexport.content.briefs import load_briefs
from kdexport.data.pairs import load_pairs

DATA = Path(__file__).parents[2] / "recipes" / "data"


def test_the_briefs_are_what_their_script_makes() -> None:
    script = runpy.run_path(str(DATA / "make_briefs.py"))
    assert (DATA / "briefs.jsonl").read_text("utf-8") == script["render"](script["make_briefs"]())


def test_the_briefs_are_many_and_varied() -> None:
    briefs = load_briefs(DATA / "briefs.jsonl")
    assert len(briefs) >= 1000
    assert len({brief.product for brief in briefs}) >= 150
    assert len({fact for brief in briefs for fact in brief.facts}) >= 500
    assert len({brief.channel for brief in briefs}) == 7
    assert len({brief.campaign for brief in briefs}) >= 6
    wishes = [json.dumps(b.model_dump(exclude={"id"}), sort_keys=True) for b in briefs]
    assert len(set(wishes)) == len(wishes)


@pytest.mark.parametrize(
    "name",
    ["briefs.jsonl", *(path.name for path in sorted(DATA.glob("*-briefs.csv")))],
)
def test_no_product_is_in_two_splits(name: str) -> None:
    splits: dict[str, set[str]] = {}
    for brief in load_briefs(DATA / name):
        splits.setdefault(brief.product, set()).add(brief.split)
    assert all(len(found) == 1 for found in splits.values())
    assert set.union(*splits.values()) == {"train", "validation", "test"}


def test_the_marketing_pairs_are_pairs() -> None:
    pairs = load_pairs(DATA / "marketing-pairs.jsonl")
    assert len(pairs) >= 50
    assert all(pair.messages for pair in pairs)
    assert len({pair.completion for pair in pairs}) == len(pairs)
