"""What is asked of the machine before long work begins."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from kdexport.errors import InputError
from kdexport.machine import machine_facts, need_room
from kdexport.pipeline import open_run, run_stages
from kdexport.recipe import load_recipe
from tests.models import make_llama

Usage = namedtuple("Usage", "total used free")
RECIPE = """\
name: full
teacher: {source: teacher}
data: {briefs: briefs.jsonl}
train: {max_steps: 1}
"""


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_room(tmp_path, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10, 9, 1_000_000_000))
    with pytest.raises(InputError, match=r"1.0 GB are free, 2.5 GB may be needed"):
        need_room(tmp_path, 2_500_000_000)


def test_a_run_looks_at_the_disk_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_llama(tmp_path / "teacher")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "briefs.jsonl").write_text('{"product": "Tea"}\n')
    run = open_run(load_recipe(tmp_path / "recipe.yaml"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10, 9, 1))
    with pytest.raises(InputError, match="GB are free"):
        run_stages(run)
    assert list((tmp_path / "exported").iterdir()) == []


def test_the_machine_is_described() -> None:
    facts = machine_facts()
    assert facts.cpu
    assert facts.n_cores >= 1
    assert "numpy" in facts.versions
