"""What was asked is on disk once, whatever ends the asking, and stays there when it is read."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from kdexport.errors import InputError, KdexportError
from kdexport.train import cache
from kdexport.train.cache import (
    Columns,
    TargetCache,
    fill_cache,
    fingerprint_examples,
    prune,
    seconds_asked,
)
from kdexport.train.data import Batch, Encoded, collate
from tests.train.shortage import for_at_most


@pytest.fixture
def examples() -> list[Encoded]:
    rng = np.random.default_rng(0)
    sizes = rng.integers(6, 20, size=150)
    return [
        Encoded(f"e{n}", rng.integers(3, 300, size=size), int(size) // 2, int(size) // 2)
        for n, size in enumerate(sizes)
    ]


class Teacher:
    """Says of a token its id and the lengths of the texts that it was asked with."""

    def __init__(self, stops_at: int | None = None) -> None:
        self.n_asked = 0
        self.stops_at = stops_at

    def __call__(self, batch: Batch) -> Columns:
        self.n_asked += 1
        if self.n_asked == self.stops_at:
            raise KeyboardInterrupt
        length = torch.full((batch.n_targets, 2), batch.ids.shape[1])
        return {"ids": batch.labels.to(torch.uint16), "length": length.half()}


def columns(folder: Path, examples: list[Encoded]) -> Columns:
    return TargetCache(folder).columns(collate(examples))


def test_each_example_has_its_own_rows(examples: list[Encoded], tmp_path: Path) -> None:
    fill_cache(tmp_path, examples, Teacher(), batch_size=16)
    asked = examples[40:3:-7]
    found = columns(tmp_path, asked)
    assert found["ids"].dtype == torch.uint16
    assert torch.equal(found["ids"].long(), collate(asked).labels)
    assert found["length"].shape == (len(found["ids"]), 2)


def test_where_memory_ends_fewer_are_asked_at_once(
    examples: list[Encoded], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows are each text's own all the same; of what was asked before, they are the same bits."""
    teacher = Teacher()

    def short(batch: Batch) -> Columns:
        if len(batch.examples) > 5 and batch.ids.shape[1] > 12:  # of the longer texts
            raise torch.OutOfMemoryError("CUDA out of memory")
        return teacher(batch)

    fill_cache(tmp_path / "whole", examples, Teacher(), batch_size=16)
    fill_cache(tmp_path / "short", examples, short, batch_size=16)
    one, other = columns(tmp_path / "whole", examples), columns(tmp_path / "short", examples)
    assert torch.equal(one["ids"], other["ids"]) and one["ids"].dtype == other["ids"].dtype
    before = one["length"] <= 12
    assert before.any() and torch.equal(one["length"][before], other["length"][before])
    assert not torch.equal(one["length"], other["length"])  # fewer were asked together
    assert capsys.readouterr().err.count("out of memory") == 2
    assert len(list((tmp_path / "short").iterdir())) == 1


def test_processes_that_ask_in_step_ask_for_no_fewer(
    examples: list[Encoded], tmp_path: Path
) -> None:
    """The others would wait for an answer that has no question."""
    short = for_at_most(3, Teacher())
    with pytest.raises(KdexportError, match="not memory enough for 16 examples"):
        fill_cache(tmp_path, examples, short, batch_size=16, in_step=True)


@pytest.mark.parametrize("stops_at", range(1, 11))
def test_an_interrupt_loses_nothing_and_changes_nothing(
    examples: list[Encoded], tmp_path: Path, stops_at: int
) -> None:
    fill_cache(tmp_path / "whole", examples, Teacher(), batch_size=16)
    with pytest.raises(KeyboardInterrupt):
        fill_cache(tmp_path / "broken", examples, Teacher(stops_at), batch_size=16)
    again = Teacher()
    fill_cache(tmp_path / "broken", examples, again, batch_size=16)
    assert again.n_asked == 10 - (stops_at - 1)
    one, other = columns(tmp_path / "whole", examples), columns(tmp_path / "broken", examples)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_kill_loses_the_last_seconds_alone(
    examples: list[Encoded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the writing of the third shard: its beginning lies there under another name."""
    write, n_written = cache.save_file, 0

    def killed(tensors: Any, path: Path, facts: Any) -> None:
        nonlocal n_written
        n_written += 1
        write(tensors, path, facts)
        if n_written == 3:
            path.write_bytes(path.read_bytes()[:40])
            raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(cache, "save_file", killed)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # nobody tidies up after a kill
        fill_cache(tmp_path, examples, Teacher(), batch_size=16, shard_seconds=0.0)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    again = Teacher()
    fill_cache(tmp_path, examples, again, batch_size=16)
    assert again.n_asked == 8
    assert not list(tmp_path.glob("*.partial"))
    assert torch.equal(columns(tmp_path, examples)["ids"].long(), collate(examples).labels)


def test_a_full_shard_is_written_at_once(
    examples: list[Encoded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "SHARD_BYTES", 1)
    fill_cache(tmp_path, examples, Teacher(), batch_size=16)
    assert len(list(tmp_path.glob("*.safetensors"))) == 10


@pytest.mark.parametrize("n_bytes", [0, 5, 200, -1])
def test_a_damaged_shard_is_asked_again(
    examples: list[Encoded], tmp_path: Path, n_bytes: int
) -> None:
    fill_cache(tmp_path, examples, Teacher(), batch_size=16, shard_seconds=0.0)
    shard = sorted(tmp_path.glob("*.safetensors"))[3]
    shard.write_bytes(shard.read_bytes()[:n_bytes])
    again = Teacher()
    fill_cache(tmp_path, examples, again, batch_size=16)
    assert again.n_asked == 1
    assert torch.equal(columns(tmp_path, examples)["ids"].long(), collate(examples).labels)


def test_a_full_disk_is_one_line(
    examples: list[Encoded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "save_file", full)
    with pytest.raises(InputError, match="cannot be written"):
        fill_cache(tmp_path, examples, Teacher(), batch_size=16)


def test_a_cache_knows_how_long_the_teacher_took(
    examples: list[Encoded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0

    class Slow(Teacher):
        def __call__(self, batch: Batch) -> Columns:
            nonlocal now
            now += 10.0
            return super().__call__(batch)

    monkeypatch.setattr(cache, "time", SimpleNamespace(monotonic=lambda: now))
    assert seconds_asked(tmp_path) == 0
    fill_cache(tmp_path, examples, Slow(), batch_size=16, shard_seconds=30.0)
    assert len(list(tmp_path.iterdir())) == 4  # ten batches
    assert seconds_asked(tmp_path) == 100
    fill_cache(tmp_path, examples, Slow(), batch_size=16)  # nothing is asked, nothing added
    assert seconds_asked(tmp_path) == 100


def test_what_is_read_does_not_lie_in_memory(tmp_path: Path) -> None:
    """64 MB on disk; reading all of it takes under half as much of a process's own memory."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("this system does not tell what a process holds")

    def own_kb() -> int:
        lines = status.read_text("ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    texts = [Encoded(f"e{n}", np.arange(3, 1028), 1, 1) for n in range(32)]
    wide = 1024

    def ask(batch: Batch) -> Columns:
        return {"hidden": torch.ones(batch.n_targets, wide, dtype=torch.half)}

    fill_cache(tmp_path, texts, ask, batch_size=1, shard_seconds=0.0)
    assert sum(shard.stat().st_size for shard in tmp_path.iterdir()) > 2 * 1024 * wide * 32
    before = own_kb()
    held = TargetCache(tmp_path)
    total = sum(float(held.columns(collate([text]))["hidden"][:, 0].sum()) for text in texts)
    assert total == 32 * 1024
    assert own_kb() - before < 32 * 1024


def test_a_missing_example_is_named(examples: list[Encoded], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no cached targets for example 'e0'"):
        columns(tmp_path, examples[:1])
    fill_cache(tmp_path, examples[:3], Teacher(), batch_size=16)
    one = examples[1]
    other = Encoded(one.example_id, one.ids, one.first_target - 1, one.first_completion)
    with pytest.raises(InputError, match="no cached targets for example 'e1'"):
        columns(tmp_path, [examples[0], other])


def test_the_fingerprint_sees_ids_and_targets(examples: list[Encoded]) -> None:
    one = examples[0]
    for others in ((1, one.first_completion), (one.first_target, one.first_completion + 1)):
        assert fingerprint_examples([one]) != fingerprint_examples(
            [Encoded(one.example_id, one.ids, *others)]
        )
    assert fingerprint_examples(examples) != fingerprint_examples(examples[::-1])


def test_the_longest_unused_caches_go_and_those_in_use_stay(tmp_path: Path) -> None:
    for age, name in enumerate(["new", "used", "middle", "old"]):
        (tmp_path / name).mkdir()
        (tmp_path / name / "00000.safetensors").write_bytes(b"x" * 100)
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    assert prune(tmp_path, ["used"], room=300) == []
    assert (tmp_path / "used").stat().st_mtime > 1000  # from now on the youngest
    assert prune(tmp_path, ["used"], room=299) == ["old"]
    assert prune(tmp_path, ["used", "new"], room=0) == ["middle"]
    assert prune(tmp_path, [], room=100) == ["new"]
    assert [folder.name for folder in tmp_path.iterdir()] == ["used"]
    assert prune(tmp_path / "none", [], room=0) == []
