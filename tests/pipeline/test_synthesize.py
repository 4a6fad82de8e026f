"""The teacher writes: resumable, counted, and the same whatever the batches."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from kdexport.bundle import Bundle
from kdexport.content.briefs import Brief
from kdexport.content.channels import load_channels
from kdexport.export.bundles import export_bundle
from kdexport.pipeline import synthesize as module
from kdexport.pipeline.choosing import Written
from kdexport.pipeline.synthesize import Sampling, synthesize
from kdexport.runtime.generate import Completion, Step
from kdexport.runtime.session import open_session
from kdexport.runtime.text import load_text
from kdexport.train.model import load_model
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
) -> Written:
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
    found = write(teacher, tmp_path / "drafts.jsonl")
    assert len(found.pairs) + sum(map(len, found.dropped.values())) == len(BRIEFS)
    assert set(found.dropped) <= {"empty", "truncated", "repetitive", "duplicate"}


def test_batches_change_nothing(teacher: Bundle, tmp_path: Path) -> None:
    one = write(teacher, tmp_path / "a.jsonl", batch_size=16)
    other = write(teacher, tmp_path / "b.jsonl", batch_size=5)
    assert one == other


@pytest.mark.parametrize("review", [None, "drop", "keep"])
def test_an_interrupted_teacher_goes_on(
    teacher: Bundle, tmp_path: Path, review: str | None
) -> None:
    path = tmp_path / "drafts.jsonl"
    with pytest.raises(KeyboardInterrupt):
        write(teacher, path, stop=True, review=review)
    written = path.read_text("utf-8")
    assert len(written.splitlines()) == 64
    path.write_text(written + '{"id": "b6', "utf-8")  # cut off by a kill
    resumed = write(teacher, path, review=review)
    assert ids_of(path.read_text("utf-8"))[:64] == ids_of(written)
    assert resumed == write(teacher, tmp_path / "unbroken.jsonl", review=review)


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
    found = write(teacher, tmp_path / "drafts.jsonl", briefs=[long_name, like_a_label])
    assert found.dropped == {"empty": ["b0"]}
    ((opening, completion),) = [(p.messages[-1]["content"], p.completion) for p in found.pairs]
    assert (opening, completion) == ("Copy: The Movie", " is a fine drink")


def test_copy_begins_with_the_opening_and_is_one_line(teacher: Bundle, tmp_path: Path) -> None:
    pairs = write(teacher, tmp_path / "drafts.jsonl").pairs
    assert pairs
    for pair in pairs:
        assert pair.messages[-1] == {
            "role": "assistant",
            "content": f"Made for you: Tea {pair.id[1:]}:",
        }
        assert not pair.completion.startswith("Tea")
        assert "\n" not in pair.completion.strip()


FACTS = ("one litre", "holds its heat")
SPOKEN = {
    "b0#0": (" Its one litre holds heat, and holds it well", True, -2.0),
    "b0#1": (" Anything at all, and of anything", True, -1.0),  # strays, where there are facts
    "b0#2": (" Its one litre of heat", False, -0.5),  # truncated
    "b0#3": ("", True, -0.1),
}
"""What a teacher says, whether it came to an end, and its mean log-probability."""


@pytest.mark.parametrize(
    ("scorer", "facts", "n", "chosen", "n_passing"),
    [
        ("likelihood", (), 2, "b0#1", 2),
        ("checks", (), 4, "b0#1", 2),  # the likelier of those that pass
        ("checks", FACTS, 4, "b0#0", 1),
    ],
)
def test_the_best_candidate_is_kept(
    teacher: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scorer: str,
    facts: tuple[str, ...],
    n: int,
    chosen: str,
    n_passing: int,
) -> None:
    codec = load_text(teacher)

    def say(*_: Any, row_keys: Sequence[str], n_logprobs: int | None, **__: Any) -> Any:
        assert n_logprobs == 0
        for text, finished, logprob in (SPOKEN[key] for key in row_keys):
            ids = [*codec.encode(text), 2]
            yield Completion(ids[:-1], finished, [Step(i, logprob) for i in ids])

    monkeypatch.setattr(module, "generate_batch", say)
    brief = Brief(id="b0", product="Kettle", facts=facts, channel="ad_headline")
    found = write(teacher, tmp_path / "drafts.jsonl", briefs=[brief], best_of=n, scorer=scorer)
    assert [(pair.id, pair.completion) for pair in found.pairs] == [("b0", SPOKEN[chosen][0])]
    assert not found.dropped
    not_first = int(chosen != "b0#0")
    assert found.candidates == {"written": n, "passing": n_passing, "not the first": not_first}


def test_likelihood_is_the_teacher_s_mean_over_what_it_wrote(
    teacher: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against PyTorch, which reads prompt and text anew."""
    written: list[tuple[list[int], list[int]]] = []
    generate_batch = module.generate_batch

    def noting(session: Any, prompts: Any, *arguments: Any, **options: Any) -> Any:
        found = generate_batch(session, prompts, *arguments, **options)
        tokens = [[step.token_id for step in one.steps] for one in found]
        written.extend(zip(prompts, tokens, strict=True))
        return found

    monkeypatch.setattr(module, "generate_batch", noting)
    path = tmp_path / "drafts.jsonl"
    write(teacher, path, briefs=BRIEFS[:1], best_of=3)
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    model = load_model(teacher.path.parent / "model")
    for row, (prompt, ids) in zip(rows, written, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        expected = torch.log_softmax(logits, -1)[range(len(ids)), ids].mean()
        assert row["logprob"] == pytest.approx(float(expected), abs=1e-3)  # another engine
    assert len({row["text"] for row in rows}) > 1


def test_one_candidate_leaves_drafts_as_they_were_and_more_are_added_to_some(
    teacher: Bundle, tmp_path: Path, asked: list[str]
) -> None:
    path = tmp_path / "drafts.jsonl"
    write(teacher, path, briefs=BRIEFS[:2])
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert {key for row in rows for key in row} == {"id", "text", "finished", "key", "n_following"}
    asked.clear()
    write(teacher, path, briefs=BRIEFS[:2], best_of=2)
    assert sorted(asked) == ["b0#0", "b0#1", "b1#0", "b1#1"]
    asked.clear()
    more = write(teacher, path, briefs=BRIEFS[:2], best_of=3)
    assert sorted(asked) == ["b0#2", "b1#2"]
    assert more == write(teacher, tmp_path / "new.jsonl", briefs=BRIEFS[:2], best_of=3)


def test_a_review_asks_the_teacher_nothing_anew(
    teacher: Bundle, tmp_path: Path, asked: list[str]
) -> None:
    path = tmp_path / "drafts.jsonl"
    raw = write(teacher, path, best_of=2)
    asked.clear()
    kept = write(teacher, path, best_of=2, review="keep")
    dropped = write(teacher, path, best_of=2, review="drop")
    assert asked == []
    assert len(dropped.pairs) + sum(map(len, dropped.dropped.values())) == len(BRIEFS)
    assert dropped.candidates["written"] == 2 * len(BRIEFS)
    assert {pair.id for pair in dropped.pairs} <= {pair.id for pair in kept.pairs}
    assert not (raw.kept or raw.faults or dropped.kept)
