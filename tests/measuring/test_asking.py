"""Which requests are asked in a bench, and what is known of them."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kdexport.data.pairs import Pair
from kdexport.measuring.asking import asked_once, facts_of, spread
from kdexport.recipe import Recipe, load_recipe


def test_samples_are_spread_over_the_pairs() -> None:
    pairs = [Pair(f"p{n}", "test", (), "x") for n in range(9)]
    assert [pair.id for pair in spread(pairs, 3)] == ["p0", "p3", "p6"]
    assert spread(pairs[:2], 3) == pairs[:2]
    assert spread([], 3) == []


def test_a_request_is_asked_once_whatever_its_variants() -> None:
    bread = ({"role": "user", "content": "bread"},)
    tea = ({"role": "user", "content": "tea"},)
    pairs = [
        Pair("bread-0", "test", bread, "x"),
        Pair("bread-1", "test", bread, "y"),
        Pair("text", "test", (), "z"),
        Pair("tea-0", "test", tea, "x"),
    ]
    assert [pair.id for pair in asked_once(pairs)] == ["bread-0", "tea-0"]


def test_facts_are_those_of_a_pair_s_brief(tmp_path: Path) -> None:
    rows = [{"id": name, "product": name, "facts": [f"{name}-fact"]} for name in ("a", "b-1")]
    (tmp_path / "briefs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = load_recipe_text(tmp_path, data={"briefs": str(tmp_path / "briefs.jsonl")})
    pairs = [Pair(name, "test", (), "x") for name in ("a", "b-1", "b-1-0", "unknown")]
    run: Any = SimpleNamespace(recipe=recipe)
    assert facts_of(run, pairs) == {
        "a": ("a-fact",),
        "b-1": ("b-1-fact",),
        "b-1-0": ("b-1-fact",),
    }
    (tmp_path / "pairs.jsonl").touch()
    own = load_recipe_text(tmp_path, data={"pairs": str(tmp_path / "pairs.jsonl")})
    run = SimpleNamespace(recipe=own)
    assert facts_of(run, pairs) == {}


def load_recipe_text(folder: Path, **sections: object) -> Recipe:
    """A recipe of these sections."""
    content = {"name": "x", "teacher": "teacher", "train": {"epochs": 1}, **sections}
    (folder / "recipe.yaml").write_text(json.dumps(content, indent=1))  # JSON is YAML, too
    return load_recipe(folder / "recipe.yaml")
