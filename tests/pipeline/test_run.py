"""Which stages are to do, what they depend on, and what a run's data and disks must hold."""

import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kdexport.data.pairs import load_pairs
from kdexport.errors import LIBRARIES, InputError, MissingExtraError
from kdexport.pipeline import run as pipeline
from kdexport.pipeline.plan import plan_rows, render_plan, room_needed, sizes_of
from kdexport.pipeline.preflight import check_bench
from kdexport.pipeline.run import Run, plan, run_stages, stage_fingerprint
from kdexport.pipeline.splits import renderer
from kdexport.pipeline.stages import STAGES, export_checkpoint, make_pairs, make_student
from kdexport.recipe import load_recipe
from kdexport.sources import ResolvedModel
from kdexport.system.journal import Journal
from kdexport.train.model import load_tokenizer
from tests.models import make_gpt2, make_llama

RECIPE = """\
name: mine
teacher: {source: teacher}
data: {briefs: data.jsonl}
student: {n_layers: 2}
train: {max_steps: 1}
"""
NAMES = [stage.name for stage in STAGES]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("pipeline") / "model")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    write(tmp_path, *({"product": f"Tea {n}"} for n in range(4)))
    return tmp_path


def write(folder: Path, *rows: object) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "data.jsonl").write_text(text, "utf-8")


def open_run(
    folder: Path, *overrides: str, model: Path = Path("no/model"), licence: str | None = None
) -> Run:
    """A run without its teacher being looked for."""
    recipe = load_recipe(folder / "recipe.yaml", overrides)
    runs = folder / recipe.output.runs / recipe.name
    runs.mkdir(parents=True, exist_ok=True)
    teacher = ResolvedModel(model, "teacher", "its fingerprint", licence)
    return Run(recipe, runs, folder / recipe.output.exported, teacher)


def own_pairs(folder: Path, *rows: object, options: Sequence[str] = (), model: Path) -> Run:
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(RECIPE)
    write(folder, *rows)
    sets = ["data.briefs=null", f"data.pairs={folder / 'data.jsonl'}", *options]
    return open_run(folder, *sets, model=model)


def prints(run: Run) -> dict[str, str]:
    found: dict[str, str] = {}
    for stage in STAGES:
        found[stage.name] = stage_fingerprint(stage, run, found)
    return found


def changed(one: Run, other: Run) -> list[str]:
    before, after = prints(one), prints(other)
    return [name for name in NAMES if before[name] != after[name]]


def do_all(run: Run) -> None:
    """Write something as the output of every stage, and record it."""
    journal = Journal(run.folder / "journal.json")
    for stage in STAGES:
        for output in stage.outputs(run):
            output.mkdir(parents=True)
            (output / "file").write_text(stage.name)
        journal.record(stage.name, prints(run)[stage.name], stage.outputs(run), 1.0)


def test_a_licence_is_carried_by_the_student_s_bundles_alone(folder: Path) -> None:
    one, other = open_run(folder, licence="mit"), open_run(folder, licence="apache-2.0")
    assert changed(one, other) == ["export", "quantize", "bench"]


def test_where_the_data_lies_changes_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = open_run(folder)
    monkeypatch.chdir(folder)
    other = replace(one, recipe=load_recipe(Path("recipe.yaml")))
    assert one.recipe.data.briefs != other.recipe.data.briefs
    assert changed(one, other) == []


@pytest.mark.parametrize(
    ("override", "first"),
    [
        ("data.generate.batch_size=3", None),
        ("data.generate.review=null", None),  # as it is
        ("data.generate.review=keep", "pairs"),
        ("data.test_fraction=0.3", None),  # for pairs only
        ("data.max_train=3", "pairs"),
        ("data.generate.top_k=3", "pairs"),
        ("seed=1", "pairs"),
        ("student.n_layers=3", "student"),
        ("train.lr=0.1", "distill"),
        ("train.n_samples=5", None),  # what is seen and kept makes no other student
        ("train.tensorboard=true", None),
        ("train.checkpoint_seconds=5", None),
        ("export.scheme=fp32", "quantize"),
        ("bench.n_runs=2", "bench"),
        ("bench.fail_if=[kl_p99>1]", None),  # a limit changes no number
    ],
)
def test_an_edit_redoes_what_follows_from_it(
    folder: Path, override: str, first: str | None
) -> None:
    wanted = NAMES[NAMES.index(first) :] if first else []
    assert changed(open_run(folder), open_run(folder, override)) == wanted


def test_a_student_rounded_for_one_scheme_is_not_taken_for_another(folder: Path) -> None:
    rounded = ["train.quantize_aware=0.5", "export.scheme=int4"]
    one, other = open_run(folder, *rounded), open_run(folder, rounded[0], "export.scheme=int8")
    assert "distill" in changed(one, other)
    assert "distill" not in changed(open_run(folder, rounded[1]), open_run(folder))


def test_a_threshold_on_what_nothing_tells_is_refused(folder: Path, llama: Path) -> None:
    limit = "bench.fail_if=[pass_rate_ratio<0.95]"
    check_bench(open_run(folder, limit, model=llama))
    own = own_pairs(folder / "own", {"text": "Tea"}, options=[limit], model=llama)
    with pytest.raises(InputError, match="without briefs nothing tells what copy has to pass"):
        check_bench(own)


def test_what_is_wanted_elsewhere_is_to_do(folder: Path) -> None:
    do_all(open_run(folder))
    assert all(done for _, done in plan(open_run(folder)))
    elsewhere = plan(open_run(folder, "output.exported=elsewhere"))
    assert [stage.name for stage, done in elsewhere if not done] == [
        "teacher",
        "export",
        "quantize",
    ]


def test_fp32_has_no_bundle_of_its_own(folder: Path) -> None:
    run = open_run(folder, "export.scheme=fp32")
    assert run.quantized_bundle == run.student_bundle
    do_all(run)
    assert all(done for _, done in plan(run))


def test_plain_texts_go_all_the_way_to_the_student(folder: Path, llama: Path) -> None:
    run = own_pairs(
        folder, {"text": "Fresh bread!"}, {"text": "Cake.", "split": "test"}, model=llama
    )
    make_pairs(run)
    assert [(p.messages, p.completion) for p in load_pairs(run.pairs)][-1] == ((), "Cake.")
    make_student(run)
    assert (run.student_init / "model.safetensors").is_file()


def test_the_end_of_training_sees_the_bundle_s_arithmetic(folder: Path, llama: Path) -> None:
    """What is kept was judged rounded: of steps that are rounded alone, whatever came before."""
    rows = [{"text": f"Fresh bread from our oven {n}"} for n in range(12)]
    found = []
    for share in (0.0, 0.5):
        options = ["train.max_steps=4", "train.evaluate_steps=1", f"train.quantize_aware={share}"]
        run = own_pairs(
            folder / str(share), *rows, options=[*options, "export.scheme=int4"], model=llama
        )
        for stage in STAGES[1:4]:
            stage.work(run)
        log = [json.loads(line) for line in run.metrics.open()]
        found.append([row["evaluation"]["kl"] for row in log if "evaluation" in row])
    exact, rounded = found
    assert rounded[0] == exact[0]  # before its last half
    assert all(one != other for one, other in zip(exact[1:], rounded[1:], strict=True))


def test_layers_of_a_pruned_student_are_drawn_to_those_that_they_were(folder: Path) -> None:
    model = make_llama(folder / "model", n_layers=4)
    rows = [{"text": f"Fresh bread from our oven {n}"} for n in range(8)]
    options = ["train.max_steps=2", "train.evaluate_steps=1", "train.targets=live"]
    run = own_pairs(
        folder, *rows, options=[*options, "train.inside=[relations, blocks]"], model=model
    )
    for stage in STAGES[1:4]:
        stage.work(run)
    log = [json.loads(line) for line in run.metrics.open()]
    steps = [row for row in log if "loss" in row]
    assert len(steps) == 2
    assert all(row["loss"] > row["task"] + row["divergence"] + 0.01 for row in steps)
    assert (run.student / "model.safetensors").is_file()


def test_a_layer_that_is_not_there_is_told_before_the_first_stage(
    folder: Path, llama: Path
) -> None:
    inside = "train.inside=[{name: blocks, layers: [[0, 2]]}]"
    run = open_run(folder, "bench.prompt_tokens=100", "train.targets=live", inside, model=llama)
    with pytest.raises(InputError, match="the teacher has no layer 2") as caught:
        plan(run)
    assert caught.value.where == "train.inside"


def test_probes_longer_than_the_teacher_reads_are_cut(folder: Path) -> None:
    model = make_gpt2(folder / "model", n_layers=3)  # learnt positions, 256 of them
    run = own_pairs(folder, {"text": "Fresh bread! " * 200, "split": "train"}, model=model)
    make_pairs(run)
    make_student(run)
    assert (run.student_init / "model.safetensors").is_file()


def test_limits_hold_for_pairs_and_the_plan_agrees(folder: Path, llama: Path) -> None:
    rows = [{"text": f"Tea {n}", "split": ["train", "test"][n % 2]} for n in range(20)]
    limits = ["data.max_train=3", "data.max_test=2"]
    run = own_pairs(folder, *rows, options=limits, model=llama)
    make_pairs(run)
    found = [pair.completion for pair in load_pairs(run.pairs)]
    assert found == ["Tea 0", "Tea 2", "Tea 4", "Tea 1", "Tea 3"]
    assert sizes_of(run).n_examples == 5


def test_limits_count_copies_and_not_briefs(folder: Path, llama: Path) -> None:
    for limit, n_examples in ((1, 1), (3, 3), (100, 8)):
        sets = [f"data.max_train={limit}", "data.generate.variants=2"]
        assert sizes_of(open_run(folder, *sets, model=llama)).n_examples == n_examples


def test_a_teacher_in_half_precision_takes_the_same_room(folder: Path, llama: Path) -> None:
    from safetensors.torch import load_file, save_file

    half = folder / "half"
    half.mkdir()
    tensors = {n: t.bfloat16() for n, t in load_file(llama / "model.safetensors").items()}
    save_file(tensors, half / "model.safetensors")
    (half / "config.json").write_text((llama / "config.json").read_text())
    wanted = room_needed(open_run(folder, model=llama), NAMES)
    assert room_needed(open_run(folder, model=half), NAMES) == wanted


def test_room_is_what_the_stages_write(folder: Path, llama: Path) -> None:
    run = open_run(folder, "train.targets=live", model=llama)
    n = sum(t.numel() for t in torch_tensors(llama))
    sizes = sizes_of(run)
    assert (sizes.n_teacher, sizes.n_student) == (n, n)  # as many layers, the same vocabulary
    small = round(100e6)
    assert room_needed(run, ["teacher"]) == (4 * n + small, round(1.1 * n) + small)
    assert room_needed(run, ["distill"]) == (3 * 4 * n + 3 * 12 * n + small, small)
    assert room_needed(run, ["export", "quantize"]) == (small, round(5.1 * n) + small)


def torch_tensors(model: Path) -> list[torch.Tensor]:
    from safetensors.torch import load_file

    return list(load_file(model / "model.safetensors").values())


def test_both_disks_are_asked(folder: Path, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Path, int]] = []
    monkeypatch.setattr(pipeline, "need_room", lambda path, n: asked.append((path, n)))
    run = open_run(folder, model=llama)
    run.exported.mkdir()
    pipeline.check_disk(run, ["export"])
    in_run, in_exported = room_needed(run, ["export"])
    assert asked == [(run.folder, in_run + in_exported)]
    other = Path("/dev/shm")
    if other.is_dir() and other.stat().st_dev != run.folder.stat().st_dev:
        asked.clear()
        pipeline.check_disk(replace(run, exported=other), ["export"])
        assert asked == [(run.folder, in_run), (other, in_exported)]
    asked.clear()
    pipeline.check_disk(run, [])  # all is done: nothing is written
    assert asked == []


def test_wrong_data_is_named_before_the_teacher_is_asked(folder: Path, llama: Path) -> None:
    write(folder, {"product": "Tea"}, {"facts": ["green"]})
    run = open_run(folder, model=llama)
    with pytest.raises(InputError, match="product: is missing") as caught:
        run_stages(run)
    assert caught.value.where.endswith("data.jsonl:2")
    assert not run.exported.exists()


@pytest.mark.parametrize(
    ("override", "message", "where"),
    [
        ("bench.prompt_tokens=200", "200 tokens of prompt and 64 new ones", "bench.prompt_tokens"),
        ("student.n_layers=9", "9 layers asked of a teacher that has 2", "student.n_layers"),
        pytest.param(
            "train.device=cuda",
            "there is no CUDA device",
            "train.device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
)
def test_what_a_later_stage_refuses_is_told_before_the_first(
    folder: Path, llama: Path, override: str, message: str, where: str
) -> None:
    sets = ["bench.prompt_tokens=100", override]
    run = open_run(folder, *sets, model=llama)
    for refuse in (run_stages, plan):
        with pytest.raises(InputError, match=message) as caught:
            refuse(run)
        assert caught.value.where == where
    assert not run.exported.exists()
    assert list(run.folder.iterdir()) == []


def test_tensorboard_that_is_not_installed_is_told_before_the_first(
    folder: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(folder, "bench.prompt_tokens=100", "train.tensorboard=true", model=llama)
    monkeypatch.setitem(LIBRARIES, "tensorboard", ("tensorboard_that_is_not_there",))
    with pytest.raises(MissingExtraError, match=r"pip install 'kdexport\[tensorboard\]'"):
        run_stages(run)
    assert not run.exported.exists()


@pytest.mark.parametrize("name", ["mine-teacher-int8", "mine", "mine-int8"])
def test_foreign_files_in_a_bundle_s_place_are_told_before_the_first_stage(
    folder: Path, llama: Path, name: str
) -> None:
    run = open_run(folder, "bench.prompt_tokens=100", model=llama)
    (run.exported / name).mkdir(parents=True)
    (run.exported / name / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="a folder with other things in it") as caught:
        run_stages(run)
    assert caught.value.where == str(run.exported / name)
    assert [path.name for path in run.exported.iterdir()] == [name]


def test_a_brief_that_is_too_long_is_named(folder: Path, llama: Path) -> None:
    write(folder, {"product": "Tea"}, {"product": "Tea", "facts": ["green " * 300]})
    with pytest.raises(InputError, match=r"the prompt has \d+ tokens; the teacher reads 256") as e:
        run_stages(open_run(folder, model=llama))
    assert e.value.where == f"{folder / 'data.jsonl'}, brief line-2"


def test_a_brief_that_the_template_refuses_is_named(folder: Path, llama: Path) -> None:
    model = Path(shutil.copytree(llama, folder / "strict"))
    (model / "chat_template.jinja").write_text("{{ raise_exception('no system here') }}")
    with pytest.raises(InputError, match=r"refuses the messages \(no system here\)") as caught:
        run_stages(open_run(folder, model=model))
    assert caught.value.where == f"{folder / 'data.jsonl'}, brief line-1"


def test_data_with_nothing_to_train_on_is_refused(folder: Path, llama: Path) -> None:
    write(folder, {"product": "Tea", "split": "test"})
    with pytest.raises(InputError, match="nothing in it is to train on"):
        run_stages(open_run(folder, model=llama))
    with pytest.raises(InputError, match="nothing in it is to train on"):
        run_stages(own_pairs(folder, {"text": "Tea", "split": "test"}, model=llama))


def test_a_malformed_source_is_told_with_its_line(folder: Path) -> None:
    recipe = load_recipe(folder / "recipe.yaml", ["teacher.source=no/such/folder"])
    with pytest.raises(InputError, match="there is no folder 'no/such/folder'") as caught:
        pipeline.open_run(recipe)
    assert caught.value.where == "--set teacher.source"


def test_names_may_look_like_markup(folder: Path, llama: Path) -> None:
    from rich.console import Console

    run = open_run(folder, "output.exported=[/y]", "bench.prompt_tokens=100", model=llama)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render_plan(plan_rows(run)))
    assert "[/y]/mine-int8" in console.export_text()


def test_both_bundles_of_an_export_are_looked_at_first(folder: Path, llama: Path) -> None:
    (folder / "q-int8").mkdir()
    (folder / "q-int8" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="a folder with other things in it"):
        export_checkpoint(llama, folder / "q", "int8")
    assert not (folder / "q").exists()


def test_of_several_templates_the_default_is_taken(llama: Path) -> None:
    tokenizer = load_tokenizer(llama)
    asked = [{"role": "user", "content": "Tea"}, {"role": "assistant", "content": "Fresh"}]
    own = renderer(tokenizer)(asked)
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tools": "x"}
    assert renderer(tokenizer)(asked) == own
    tokenizer.chat_template = {"tools": "x", "rag": "y"}
    assert renderer(tokenizer)(asked) == "Tea\nFresh"  # as plain text


def test_a_template_that_refuses_roles_is_one_line(llama: Path) -> None:
    tokenizer = load_tokenizer(llama)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InputError, match=r"messages of user, user \(roles must alternate\)"):
        renderer(tokenizer)([{"role": "user", "content": "Tea"}] * 2)
