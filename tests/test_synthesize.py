"""The teacher writes: resumable, counted, and the same whatever the batches."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from kdexport import synthesize as module
from kdexport.bundle import Bundle
from kdexport.content.briefs import Brief
from kdexport.content.channels import load_channels
from kdexport.export.bundles import export_bundle
from kdexport.runtime.generate import Completion
from kdexport.runtime.session import open_session
from kdexport.runtime.text import load_text
from kdexport.synthesize import Sampling, synthesize
from tests.models import make_llama

BRIEFS = [
    Brief(id=f"b{n}", product=f"Tea {n}", channel="ad_headline")
    for n in range(70)  # more than one chunk
]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("synthesize")
    return export_bundle(make_llama(folder / "model"), folder / "bundle", name="x")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of all that the teacher is asked for, as it goes."""
    ids: list[str] = []
    generate_batch: Callable[..., list[Completion]] = module.generate_batch

    def noting(*arguments: Any, row_keys: Sequence[str], **options: Any) -> list[Completion]:
        ids.extend(row_keys)
        return generate_batch(*arguments, row_keys=row_keys, **options)

    monkeypatch.setattr(module, "generate_batch", noting)
    return ids


def write(
    teacher: Bundle,
    drafts: Path,
    *,
    briefs: Sequence[Brief] = BRIEFS,
    fingerprint: str = "f",
    stop: bool = False,
    **options: object,
) -> object:
    def progress(done: int, _total: int) -> None:
        if stop and done:
            raise KeyboardInterrupt

    sampling = Sampling(**{"temperature": 1.0, "batch_size": 16} | options)  # type: ignore[arg-type]
    return synthesize(
        briefs,
        open_session(teacher, n_threads=1),
        load_text(teacher),
        sampling,
        drafts_path=drafts,
        teacher=fingerprint,
        progress=progress,
    )


def test_every_draft_is_kept_or_counted(teacher: Bundle, tmp_path: Path) -> None:
    pairs, dropped = write(teacher, tmp_path / "drafts.jsonl")  # type: ignore[misc]
    assert len(pairs) + sum(dropped.values()) == len(BRIEFS)
    assert set(dropped) <= {"empty", "truncated", "repetitive", "duplicate"}


def test_batches_change_nothing(teacher: Bundle, tmp_path: Path) -> None:
    one = write(teacher, tmp_path / "a.jsonl", batch_size=16)
    other = write(teacher, tmp_path / "b.jsonl", batch_size=5)
    assert one == other


def test_an_interrupted_teacher_goes_on(teacher: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "drafts.jsonl"
    with pytest.raises(KeyboardInterrupt):
        write(teacher, path, stop=True)
    written = path.read_text("utf-8")
    assert len(written.splitlines()) == 64
    path.write_text(written + '{"id": "b6', "utf-8")  # cut off by a kill
    resumed = write(teacher, path)
    assert ids_of(path.read_text("utf-8"))[:64] == ids_of(written)
    assert resumed == write(teacher, tmp_path / "unbroken.jsonl")


def test_of_a_chunk_that_is_cut_off_nothing_is_used(
    teacher: Bundle, tmp_path: Path, asked: list[str]
) -> None:
    """Texts are written in the same company whatever was killed: their last bits depend on it."""
    path = tmp_path / "drafts.jsonl"
    whole = write(teacher, path)
    lines = path.read_text("utf-8").splitlines(keepends=True)
    unbroken = list(asked)
    asked.clear()
    path.write_text("".join(lines[:67]), "utf-8")
    assert write(teacher, path) == whole
    assert asked == unbroken[64:]


def ids_of(lines: str) -> list[str]:
    return [json.loads(line)["id"] for line in lines.splitlines()]


@pytest.mark.parametrize(
    "change",
    [{"fingerprint": "g"}, {"seed": 1}, {"temperature": 0.5}, {"top_p": 0.5}, {"top_k": 3}],
    ids=str,
)
def test_drafts_of_something_else_are_not_used(
    teacher: Bundle, tmp_path: Path, asked: list[str], change: dict[str, object]
) -> None:
    path = tmp_path / "drafts.jsonl"
    write(teacher, path, briefs=BRIEFS[:3])
    write(teacher, path, briefs=BRIEFS[:3])
    assert asked == ["b0", "b1", "b2"]
    write(teacher, path, briefs=BRIEFS[:3], **change)  # type: ignore[arg-type]
    assert asked == ["b0", "b1", "b2"] * 2


def test_only_what_a_brief_asks_anew_is_written_again(
    teacher: Bundle, tmp_path: Path, asked: list[str]
) -> None:
    path = tmp_path / "drafts.jsonl"
    write(teacher, path, briefs=BRIEFS[:5])
    edited = [*BRIEFS[:4], BRIEFS[4].model_copy(update={"facts": ("black",)})]
    asked.clear()
    changed = write(teacher, path, briefs=edited)
    assert asked == ["b4"]
    assert changed == write(teacher, tmp_path / "new.jsonl", briefs=edited)
    asked.clear()
    write(teacher, path, briefs=edited[1:3])  # fewer, and then all of them again
    write(teacher, path, briefs=edited)
    assert asked == []
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert sorted(row["id"] for row in rows) == ["b0", "b1", "b2", "b3", "b4"]
    assert all(isinstance(row["text"], str) for row in rows)


@pytest.mark.parametrize("change", [{"max_new_tokens": 7}, {"one_line": False}, {"label": "ad"}])
def test_a_channel_s_words_and_limits_count(
    teacher: Bundle,
    tmp_path: Path,
    asked: list[str],
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, object],
) -> None:
    path = tmp_path / "drafts.jsonl"
    write(teacher, path, briefs=BRIEFS[:2])
    channel = load_channels()["ad_headline"].model_copy(update=change)
    monkeypatch.setattr(module, "load_channels", lambda: {"ad_headline": channel})
    write(teacher, path, briefs=BRIEFS[:2])
    assert asked == ["b0", "b1"] * 2


def test_what_adds_nothing_to_the_opening_is_empty(
    teacher: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*_: Any, row_keys: Sequence[str], **__: Any) -> list[Completion]:
        spoken = load_text(teacher).encode(" is a fine drink")
        return [Completion(spoken if key == "b2" else [], True) for key in row_keys]

    monkeypatch.setattr(module, "generate_batch", silent)
    long_name = Brief(
        id="b0", product="A tea with quite a long name", channel="ad_headline", tone="plain"
    )
    like_a_label = Brief(id="b2", product="Copy: The Movie", channel="ad_headline", tone="plain")
    pairs, dropped = write(  # type: ignore[misc]
        teacher, tmp_path / "drafts.jsonl", briefs=[long_name, like_a_label]
    )
    assert dict(dropped) == {"empty": 1}
    ((opening, completion),) = [(p.messages[-1]["content"], p.completion) for p in pairs]
    assert (opening, completion) == ("Copy: The Movie", " is a fine drink")


def test_copy_begins_with_the_opening_and_is_one_line(teacher: Bundle, tmp_path: Path) -> None:
    pairs, _ = write(teacher, tmp_path / "drafts.jsonl")  # type: ignore[misc]
    assert pairs
    for pair in pairs:
        assert pair.messages[-1] == {
            "role": "assistant",
            "content": f"Made for you: Tea {pair.id[1:]}:",
        }
        assert not pair.completion.startswith("Tea")
        assert "\n" not in pair.completion.strip()
