"""Which requests are asked in a bench, and what is known of them."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kdexport.content.channels import load_channels
from kdexport.copywriting.copywriter import Beside
from kdexport.data.pairs import Pair
from kdexport.measuring.asking import ask_for, asked_once, briefs_of, spread
from kdexport.measuring.scoring import Written
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


def test_briefs_are_those_of_the_pairs(tmp_path: Path) -> None:
    rows = [{"id": name, "product": name, "channel": "sms"} for name in ("a", "b-1")]
    (tmp_path / "briefs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "brand.yaml").write_text("name: Tern\nbanned: [cheap]\n")
    data = {"briefs": str(tmp_path / "briefs.jsonl"), "brand": str(tmp_path / "brand.yaml")}
    recipe = load_recipe_text(tmp_path, data=data)
    pairs = [Pair(name, "test", (), "x") for name in ("a", "b-1", "b-1-0", "unknown")]
    run: Any = SimpleNamespace(recipe=recipe)
    found = briefs_of(run, pairs)
    assert found
    named = {name: brief.id for name, brief in found.briefs.items()}
    assert named == {"a": "a", "b-1": "b-1", "b-1-0": "b-1"}
    assert found.faults("a", Written("A cheap tea")) == ("banned: 'cheap' is banned",)
    assert [found.channel(name) for name in ("a", "unknown")] == [load_channels()["sms"], None]
    (tmp_path / "pairs.jsonl").touch()
    own = load_recipe_text(tmp_path, data={"pairs": str(tmp_path / "pairs.jsonl")})
    run = SimpleNamespace(recipe=own)
    assert briefs_of(run, pairs) is None


def test_the_briefs_of_a_file_are_requests_held_to_their_checks(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "product": "Bread", "facts": ["baked at 5 am"], "channel": "sms"},
        {"id": "b", "product": "Tea", "channel": "email_preheader"},
        {"id": "again", "product": "Tea", "channel": "email_preheader"},  # the same request
    ]
    path = tmp_path / "briefs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "brand.yaml").write_text("name: Tern\nbanned: [cheap]\n")
    found = ask_for(path, Beside(brand=tmp_path / "brand.yaml"), 9)
    assert [pair.id for pair in found.pairs] == ["a", "b"]
    assert "baked at 5 am" in found.pairs[0].messages[1]["content"]
    assert found.briefed is not None
    assert found.briefed.faults("a", Written("A cheap bread")) == ("banned: 'cheap' is banned",)
    assert [pair.id for pair in ask_for(path, Beside(), 1).pairs] == ["a"]


def load_recipe_text(folder: Path, **sections: object) -> Recipe:
    """A recipe of these sections."""
    content = {"name": "x", "teacher": "teacher", "train": {"epochs": 1}, **sections}
    (folder / "recipe.yaml").write_text(json.dumps(content, indent=1))  # JSON is YAML, too
    return load_recipe(folder / "recipe.yaml")
