"""Prompts that stand alone are answered by the teacher; what is answered already stays as it is."""

import json
from pathlib import Path
from typing import Any

import pytest

from kdexport.bundle import Bundle
from kdexport.data.pairs import Pair, load_pairs
from kdexport.errors import InputError
from kdexport.export.bundles import export_bundle
from kdexport.pipeline import answering, synthesize
from kdexport.pipeline.answering import Answered, answer
from kdexport.pipeline.choosing import Draft
from kdexport.pipeline.dataset import make_pairs
from kdexport.pipeline.doctor import _texts
from kdexport.pipeline.plan import sizes_of
from kdexport.pipeline.preflight import check_data
from kdexport.pipeline.run import Run
from kdexport.pipeline.stages import _data_asked
from kdexport.pipeline.synthesize import Sampling
from kdexport.recipe import load_recipe
from kdexport.runtime.session import open_session
from kdexport.runtime.text import load_text
from kdexport.sources import ResolvedModel
from tests.models import make_llama

LONGEST = 200  # tokens: of the tiny teacher's answers about half are over by then
ALONE = [
    Pair(f"p{n}", "train", ({"role": "user", "content": f"What of tea {n}?"},), "")
    for n in range(16)
]
GIVEN = Pair("given", "train", ({"role": "user", "content": "And of cake?"},), "Cake for all.")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("answering") / "model")


@pytest.fixture(scope="module")
def teacher(llama: Path) -> Bundle:
    return export_bundle(llama, llama.parent / "bundle", name="x")


def asked_of(
    teacher: Bundle, drafts: Path, pairs: list[Pair], fingerprint: str = "f", **options: Any
) -> Answered:
    return answer(
        pairs,
        open_session(teacher, n_threads=1),
        load_text(teacher),
        Sampling(**{"temperature": 1.0, "seed": 3} | options),
        max_new_tokens=LONGEST,
        drafts_path=drafts,
        teacher=fingerprint,
        progress=lambda done, total: None,
    )


def test_the_teacher_answers_what_has_no_answer(teacher: Bundle, tmp_path: Path) -> None:
    found = asked_of(teacher, tmp_path / "drafts.jsonl", [GIVEN, *ALONE])
    assert found.pairs[0] == GIVEN
    written = {pair.id: pair for pair in found.pairs[1:]}
    dropped = [name for names in found.dropped.values() for name in names]
    assert sorted([*written, *dropped]) == sorted(pair.id for pair in ALONE)
    assert len(written) >= 2 and found.dropped["truncated"]
    drafts = {}
    for line in (tmp_path / "drafts.jsonl").read_text("utf-8").splitlines():
        draft = json.loads(line)
        drafts[draft["id"]] = draft
    for pair in written.values():
        assert pair.completion == drafts[pair.id]["text"].strip()
        assert drafts[pair.id]["finished"]
        assert pair.messages == ALONE[int(pair.id[1:])].messages


def test_batches_and_company_change_no_answer(teacher: Bundle, tmp_path: Path) -> None:
    together = asked_of(teacher, tmp_path / "all.jsonl", ALONE, batch_size=16)
    alone = asked_of(teacher, tmp_path / "one.jsonl", ALONE[:5], batch_size=1)
    assert [pair for pair in together.pairs if pair.id in {p.id for p in ALONE[:5]}] == alone.pairs


def test_what_was_answered_is_not_asked_again(
    teacher: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafts = tmp_path / "drafts.jsonl"
    first = asked_of(teacher, drafts, ALONE)
    asked: list[str] = []
    right = synthesize.generate_batch

    def noting(*arguments: Any, row_keys: Any, **options: Any) -> Any:
        asked.extend(row_keys)
        return right(*arguments, row_keys=row_keys, **options)

    monkeypatch.setattr(synthesize, "generate_batch", noting)
    assert asked_of(teacher, drafts, ALONE) == first
    assert not asked
    asked_of(teacher, drafts, ALONE[:3], fingerprint="another teacher")
    assert sorted(asked) == ["p0", "p1", "p2"]


def test_the_likeliest_candidate_that_is_of_use_is_taken(
    teacher: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [
        ("Short.", True, -3.0),
        ("Broken", False, -1.0),
        ("Better.", True, -2.0),
        ("", True, 0),
    ]
    drafts = {
        f"p0#{n}": Draft(f"p0#{n}", text, done, "key", logprob=logprob)
        for n, (text, done, logprob) in enumerate(texts)
    }
    monkeypatch.setattr(answering, "write_drafts", lambda *_: drafts)
    found = asked_of(teacher, tmp_path / "drafts.jsonl", ALONE[:1], best_of=4)
    assert [pair.completion for pair in found.pairs] == ["Better."]
    del drafts["p0#0"], drafts["p0#2"]
    drafts |= {"p0#0": drafts["p0#1"], "p0#2": drafts["p0#1"]}
    found = asked_of(teacher, tmp_path / "drafts.jsonl", ALONE[:1], best_of=4)
    assert not found.pairs and found.dropped == {"empty": ["p0"]}  # the likeliest says why


ROWS = [
    *({"id": p.id, "prompt": p.messages[0]["content"], "split": "train"} for p in ALONE),
    {"id": "chat", "split": "test", "messages": [{"role": "user", "content": "And of milk?"}]},
    {"id": "given", "split": "test", "prompt": "And of cake?", "completion": "Cake for all."},
    {"id": "text", "split": "train", "text": "Ships have sailed for tea."},
]


def run_with(folder: Path, model: Path, rows: list[dict[str, Any]], *overrides: str) -> Run:
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (folder / "recipe.yaml").write_text(
        "name: mine\nteacher: teacher\ntrain: {max_steps: 1}\ndata:\n  pairs: data.jsonl\n"
        f"  generate: {{temperature: 1, max_new_tokens: {LONGEST}}}\n"
    )
    runs = folder / "runs"
    runs.mkdir(exist_ok=True)
    resolved = ResolvedModel(model, "teacher", "its fingerprint", None)
    recipe = load_recipe(folder / "recipe.yaml", overrides)
    return Run(recipe, runs, folder / "exported", resolved)


ANSWERS = "data.answer_prompts=true"


def test_a_run_learns_from_given_and_written_answers(llama: Path, tmp_path: Path) -> None:
    run = run_with(tmp_path, llama, ROWS, ANSWERS)
    export_bundle(llama, run.teacher_bundle, name="teacher")
    check_data(run)
    assert sizes_of(run).n_written == len(ALONE) + 1
    assert {pair.id: pair.completion for pair in _texts(run)}["p0"] == "What of tea 0?"
    make_pairs(run)
    found = {pair.id: pair for pair in load_pairs(run.pairs)}
    assert found["given"].completion == "Cake for all."
    assert found["text"].messages == ()
    assert len(found) > 2 and all(pair.completion for pair in found.values())
    card = json.loads((run.folder / "data_card.json").read_text("utf-8"))
    n_dropped = sum(card["dropped"][reason]["count"] for reason in card["dropped"])
    assert len(found) + n_dropped == len(ROWS)


def test_no_more_is_answered_than_the_limits_want(llama: Path, tmp_path: Path) -> None:
    run = run_with(tmp_path, llama, ROWS, ANSWERS, "data.max_train=8", "data.max_test=1")
    export_bundle(llama, run.teacher_bundle, name="teacher")
    make_pairs(run)
    drafts = (run.folder / "drafts.jsonl").read_text("utf-8").splitlines()
    assert sorted(json.loads(line)["id"] for line in drafts) == [
        "chat",
        *(f"p{n}" for n in range(8)),
    ]


def test_a_prompt_alone_is_refused_where_nobody_answers(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="completion is missing"):
        check_data(run_with(tmp_path, llama, ROWS))


def test_a_prompt_that_the_teacher_cannot_read_is_refused(llama: Path, tmp_path: Path) -> None:
    rows = [*ROWS, {"prompt": "tea " * 5000, "split": "train"}]
    with pytest.raises(InputError, match="the teacher reads") as refused:
        check_data(run_with(tmp_path, llama, rows, ANSWERS))
    assert str(refused.value.where).endswith(f"data.jsonl:{len(rows)}")


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        ("data.stream=true", "answer_prompts is for pairs"),
        ("data.generate.variants=2", "variants"),
        ("data.generate.review=drop", "review"),
        ("data.generate.scorer=checks", "checks is for briefs"),
    ],
)
def test_what_only_briefs_have_is_refused(
    llama: Path, tmp_path: Path, wish: str, told: str
) -> None:
    with pytest.raises(InputError, match=told):
        run_with(tmp_path, llama, ROWS, ANSWERS, wish)


def test_a_run_of_which_nothing_is_left_says_why(llama: Path, tmp_path: Path) -> None:
    run = run_with(tmp_path, llama, ROWS[:3], ANSWERS, "data.generate.max_new_tokens=1")
    export_bundle(llama, run.teacher_bundle, name="teacher")
    with pytest.raises(InputError, match="no pair is left to train on; dropped: 3 truncated"):
        make_pairs(run)


def test_how_answers_are_written_makes_other_pairs(llama: Path, tmp_path: Path) -> None:
    def asked(*wishes: str) -> object:
        return _data_asked(run_with(tmp_path, llama, ROWS, *wishes))

    assert asked(ANSWERS) != asked(ANSWERS, "data.generate.max_new_tokens=50")
    assert asked(ANSWERS) == asked(ANSWERS, "data.generate.batch_size=2")
    assert asked() == asked("data.generate.max_new_tokens=50")  # nobody writes
    assert "answer_prompts" not in str(asked())
