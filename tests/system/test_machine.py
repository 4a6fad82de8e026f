"""What is asked of the machine before long work begins."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from kdexport.errors import InputError
from kdexport.pipeline.run import open_run, run_stages
from kdexport.recipe import load_recipe
from kdexport.system import machine
from kdexport.system.machine import cpu_quota, machine_facts, need_room, physical_cores
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


def groups(root: Path, lines: str, files: dict[str, str]) -> float | None:
    """The quota of a process that is in these groups, of which these files tell."""
    (root / "cgroup").write_text(lines)
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return cpu_quota(root, root / "cgroup")


@pytest.mark.parametrize(
    ("lines", "files", "quota"),
    [
        ("0::/", {"cpu.max": "200000 100000"}, 2.0),
        ("0::/", {"cpu.max": "max 100000"}, None),
        ("0::/", {}, None),
        ("0::/", {"cpu.max": "what is this"}, None),
        ("", {"cpu.max": "200000 100000"}, None),
        # The least of a group and those around it; one that cannot be seen from here is passed by.
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, 1.5),
        ("0::/a/b", {"a/b/cpu.max": "50000 100000", "a/cpu.max": "150000 100000"}, 0.5),
        ("0::/docker/1f", {"cpu.max": "300000 100000"}, 3.0),
        # Version 1, with a controller of another kind beside it; -1 is no limit.
        (
            "5:memory:/m\n1:cpu,cpuacct:/k",
            {"cpu/k/cpu.cfs_quota_us": "250000\n", "cpu/k/cpu.cfs_period_us": "100000\n"},
            2.5,
        ),
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("1:cpu:/", {"cpu/cpu.cfs_quota_us": "5", "cpu/cpu.cfs_period_us": "0"}, None),
        ("1:cpuset:/", {"cpu/cpu.cfs_quota_us": "5", "cpu/cpu.cfs_period_us": "9"}, None),
    ],
)
def test_the_share_of_a_container(
    tmp_path: Path, lines: str, files: dict[str, str], quota: float | None
) -> None:
    assert groups(tmp_path, lines, files) == quota


def test_there_are_no_control_groups_everywhere(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path, tmp_path / "none") is None


@pytest.mark.parametrize(
    ("quota", "n_threads"), [(None, 64), (100.0, 64), (2.0, 2), (1.5, 2), (1.4, 1), (0.2, 1)]
)
def test_threads_are_no_more_than_a_container_may_use(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, n_threads: int
) -> None:
    """A host of 64 CPUs that this machine cannot tell apart as siblings."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(1000, 1064)), raising=False)
    monkeypatch.setattr(machine, "cpu_quota", lambda: quota)
    assert physical_cores() == n_threads
    assert machine_facts().cpu_quota == quota
