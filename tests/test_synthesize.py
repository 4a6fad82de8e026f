"""The teacher writes: resumable, counted, and the same whatever the batches."""

from pathlib import Path

import pytest

from kdexport.bundle import Bundle
from kdexport.content.briefs import Brief
from kdexport.export.bundles import export_bundle
from kdexport.runtime.session import open_session
from kdexport.runtime.text import load_text
from kdexport.synthesize import Sampling, synthesize
from tests.models import make_llama

BRIEFS = [
    Brief(id=f"b{n}", product=f"Tea {n}", facts=("green",), channel="ad_headline")
    for n in range(70)  # more than one chunk
]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("synthesize")
    return export_bundle(make_llama(folder / "model"), folder / "bundle", name="x")


def write(
    teacher: Bundle, drafts: Path, *, fingerprint: str = "f", stop: bool = False, **options: object
) -> object:
    def progress(done: int, _total: int) -> None:
        if stop and done:
            raise KeyboardInterrupt

    sampling = Sampling(**{"temperature": 1.0, "batch_size": 16} | options)  # type: ignore[arg-type]
    return synthesize(
        BRIEFS,
        open_session(teacher, n_threads=1),
        load_text(teacher),
        sampling,
        drafts_path=drafts,
        fingerprint=fingerprint,
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
    assert len(written.splitlines()) - 1 == 64
    path.write_text(written + '{"id": "b6', "utf-8")  # cut off by a kill
    resumed = write(teacher, path)
    assert path.read_text("utf-8").startswith(written)
    assert resumed == write(teacher, tmp_path / "unbroken.jsonl")


def test_drafts_of_something_else_are_not_used(teacher: Bundle, tmp_path: Path) -> None:
    write(teacher, tmp_path / "drafts.jsonl", fingerprint="f")
    before = (tmp_path / "drafts.jsonl").read_text("utf-8")
    write(teacher, tmp_path / "drafts.jsonl", fingerprint="g", seed=1)
    assert (tmp_path / "drafts.jsonl").read_text("utf-8") != before


def test_copy_begins_with_the_opening_and_is_one_line(teacher: Bundle, tmp_path: Path) -> None:
    pairs, _ = write(teacher, tmp_path / "drafts.jsonl")  # type: ignore[misc]
    assert pairs
    for pair in pairs:
        assert pair.messages[-1] == {"role": "assistant", "content": f"Tea {pair.id[1:]}"}
        assert not pair.completion.startswith("Tea")
        assert "\n" not in pair.completion.strip()
