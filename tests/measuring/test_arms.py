"""The bench in front of its measurements: which arms there are, and what they refuse."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kdexport.bundle import Bundle, Parent, commit_bundle, open_bundle, staged_bundle
from kdexport.content.briefs import Brief
from kdexport.content.channels import load_channels
from kdexport.copywriting.checking import Checks
from kdexport.copywriting.copywriter import Beside
from kdexport.data.pairs import Pair
from kdexport.errors import InputError, KdexportError
from kdexport.export.bundles import export_bundle
from kdexport.measuring import arms
from kdexport.measuring.arms import Arm, ArmSpec, arm_names, bench_bundles
from kdexport.measuring.asking import ask_for
from kdexport.measuring.scoring import Briefed
from kdexport.measuring.torch_arm import open_torch
from kdexport.system.energy import Meter
from kdexport.verdict.conditions import parse_threshold, report_failures
from kdexport.verdict.report import REFERENCE_ARM, BenchSettings
from kdexport.verdict.timing import Case
from tests.models import make_llama
from tests.shuffled import own_reference, shuffled

ROOT = Path(__file__).parents[2]
FEW = BenchSettings(n_threads=1, prompt_tokens=4, new_tokens=3, n_runs=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("arms") / "model")


@pytest.fixture(scope="module")
def bundle(model: Path) -> Bundle:
    return export_bundle(model, model.with_name("tiny"), name="tiny")


@pytest.fixture(autouse=True)
def arms_find_kdexport(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("KDEXPORT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def copy(bundle: Bundle, target: Path, **more: bytes) -> Path:
    """The same bundle elsewhere, with further files."""
    with staged_bundle(target) as staging:
        for name in bundle.manifest.files:
            (staging / name).parent.mkdir(exist_ok=True)
            (staging / name).write_bytes(bundle.file(name).read_bytes())
        for name, content in more.items():
            (staging / f"{name}.npz").write_bytes(content)
        return commit_bundle(staging, target, bundle.manifest).path


def test_copy_for_a_brief_is_asked_for_as_its_channel_wants() -> None:
    asked: list[dict[str, object]] = []

    class Silent:
        def ask(self, do: str, **request: object) -> dict[str, object]:
            asked.append({"do": do, **request})
            return {"text": "", "added": "", "pieces": [], "finished": True}

    wishes = [("ad", "ad_headline"), ("post", "wechat_post")]
    briefs = {name: Brief(id=name, product="Tea", channel=channel) for name, channel in wishes}
    pairs = [Pair(name, "test", ({"role": "user", "content": name},), "x") for name in briefs]
    pairs.append(Pair("own", "test", ({"role": "user", "content": "own"},), "two\nlines"))
    channels = load_channels()
    written = arms._copies(Silent(), pairs, Briefed(briefs, Checks(channels)))  # type: ignore[arg-type]
    assert list(written) == ["ad", "post", "own"]
    assert [(one["new_tokens"], one["one_line"]) for one in asked] == [
        (channels["ad_headline"].max_new_tokens, True),
        (channels["wechat_post"].max_new_tokens, False),
        (96, False),
    ]


def test_no_module_is_taken_from_the_current_folder(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copy(bundle, tmp_path / "downloaded")
    for module in ("numpy", "json", "kdexport"):
        (path / f"{module}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(path)
    report = bench_bundles([Path()], None, FEW)
    assert not (tmp_path / "ran").exists()
    assert [arm.arm for arm in report.arms] == ["downloaded"]


def test_bundles_of_one_folder_name_are_told_apart(bundle: Bundle, tmp_path: Path) -> None:
    paths = [copy(bundle, tmp_path / folder / "x-int8") for folder in ("a", "b")]
    report = bench_bundles(paths, None, FEW)
    assert [arm.arm for arm in report.arms] == [str(path) for path in paths]


def test_names_are_short_and_unique() -> None:
    def names(*paths: str) -> list[str]:
        return arm_names([Path(path) for path in paths])

    assert names("a/x", "b/y") == ["x", "y"]
    assert names("a/x", "b/x") == ["a/x", "b/x"]
    assert names("x", "./x") == ["x (1)", "x (2)"]
    assert names(".") == [Path.cwd().name]
    for own in ("teacher-torch-fp32", "teacher-int8"):  # the teacher's
        assert names(own) == [f"{own} (1)"]


def test_more_tokens_than_a_model_holds_are_refused_up_front(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arms, "Arm", None)  # nothing is started
    settings = FEW.model_copy(update={"prompt_tokens": 200, "new_tokens": 57})
    with pytest.raises(InputError, match="beyond the model's 256; measure fewer") as caught:
        bench_bundles([bundle.path], None, settings)
    assert caught.value.where == str(bundle.path)


def test_the_teacher_is_scored_on_the_first_reference(
    bundle: Bundle, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[ArmSpec] = []

    def remember(specs: list[ArmSpec], *_: object) -> list[object]:
        seen.extend(specs)
        return []

    monkeypatch.setattr(arms, "measure_arms", remember)
    own = own_reference(bundle, tmp_path / "own.npz").read_bytes()
    paths = [
        copy(bundle, tmp_path / "none"),
        copy(bundle, tmp_path / "first", reference=own),
        copy(bundle, tmp_path / "second", reference=own),
        copy(bundle, tmp_path / "last"),
    ]
    bench_bundles(paths, str(model), FEW)
    assert [spec.reference and spec.reference.parent.name for spec in seen] == [
        *("first", "first", None, "first", "second", None)
    ]
    names = ["teacher-torch-fp32", "teacher-int8"]
    assert [spec.name for spec in seen if spec.teacher_vocabulary] == names
    assert open_bundle(seen[1].path).manifest.scheme == "int8"
    assert seen[1].made_from == names[0]
    seen.clear()
    bench_bundles(paths, str(model), FEW, int8_teacher=False)
    assert [spec.name for spec in seen if spec.teacher_vocabulary] == names[:1]
    other = make_llama(tmp_path / "other", vocab_size=300)
    with pytest.raises(InputError, match=r"is not the teacher of .*first"):
        bench_bundles(paths, str(other), FEW)


@pytest.mark.parametrize("source", ["no/such", "no/such@0a1b2c3", "model.gguf"])
def test_a_teacher_that_is_missing_is_one_line_before_anything_is_started(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.setattr(arms, "Arm", None)
    with pytest.raises(KdexportError, match=source) as caught:
        bench_bundles([bundle.path], source, FEW)
    assert "\n" not in str(caught.value)


def test_a_teacher_that_cannot_be_exported_has_one_row_and_a_line(
    bundle: Bundle,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[ArmSpec] = []
    monkeypatch.setattr(arms, "measure_arms", lambda specs, *_: seen.extend(specs) or [])
    bench_bundles([bundle.path], str(make_llama(tmp_path / "narrow", hidden=16)), FEW)
    assert [spec.name for spec in seen] == ["teacher-torch-fp32", "tiny"]
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert line.startswith("teacher-int8 is left out: ") and "cannot be exported" in line


def test_other_cases_are_measured_beside_the_reports_own(bundle: Bundle, model: Path) -> None:
    others = [
        Case(n_threads=1, batch_size=3, prompt_tokens=4, new_tokens=5),
        Case(n_threads=2, prompt_tokens=6, new_tokens=3),
    ]
    settings = FEW.model_copy(update={"n_runs": 2, "others": others})
    report = bench_bundles([bundle.path], str(model), settings)
    assert [arm.arm for arm in report.arms] == ["teacher-torch-fp32", "teacher-int8", "tiny"]
    for arm in report.arms:
        assert (len(arm.ttft_ms), len(arm.itl_ms)) == (2, 2 * 2)
        assert [Case(**one.model_dump(include=set(Case.model_fields))) for one in arm.others] == (
            others
        )
        batch, longer = arm.others
        assert (len(batch.itl_ms), len(longer.itl_ms)) == (2 * 4, 2 * 2)
        slowest, quickest = (1000 * 3 / f(batch.itl_ms) for f in (max, min))
        assert all(slowest <= rate <= quickest for rate in batch.decode_tok_s)  # of three texts
        assert 0 < arm.steady_rss_mb <= arm.peak_rss_mb
    assert report.command[1:] == sys.argv[1:]


def test_copy_for_briefs_is_scored_beside_the_teacher_s(
    bundle: Bundle, model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "briefs.jsonl"
    rows = [{"id": name, "product": name, "channel": "email_subject"} for name in ("tea", "rye")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = bench_bundles([bundle.path], str(model), FEW, False, ask_for(path, Beside(), 2))
    teacher, own = (arm.copies for arm in report.arms)
    assert teacher is not None and "chrf" not in teacher.intervals
    assert own is not None and own.intervals["identical"].value == 1  # its graph is the teacher's
    assert [group.n_briefs for group in own.pass_rates] == [2]
    assert [sample.brief_id for sample in report.samples] == ["tea", "rye"]
    assert "rye" in report.samples[1].prompt
    assert (
        report.samples[1].copies.keys()
        == report.samples[1].checks.keys()
        == {*(REFERENCE_ARM, "tiny")}
    )


def test_every_turn_is_metered_where_there_is_a_meter(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings = iter(range(0, 10**9, 500_000))

    class Counting(Meter):
        def read(self) -> tuple[int, ...]:
            return (next(readings),)

    monkeypatch.setattr(arms, "find_meter", lambda: Counting((), (2**32,)))
    (arm,) = bench_bundles([bundle.path], None, FEW).arms
    assert arm.joules == [0.5]
    monkeypatch.setattr(arms, "find_meter", lambda: None)
    (arm,) = bench_bundles([bundle.path], None, FEW).arms
    assert arm.joules == []


def test_a_bundle_s_parent_is_known_by_its_manifest(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[ArmSpec] = []

    def remember(specs: list[ArmSpec], *_: object) -> list[object]:
        seen.extend(specs)
        return []

    monkeypatch.setattr(arms, "measure_arms", remember)
    parent = Parent(name="tiny", manifest_sha256=bundle.manifest_sha256)
    child = replace(bundle, manifest=bundle.manifest.model_copy(update={"parent": parent}))
    bench_bundles([bundle.path, copy(child, tmp_path / "child")], None, FEW)
    bench_bundles([copy(child, tmp_path / "alone")], None, FEW)
    assert [(spec.name, spec.made_from) for spec in seen] == [
        *(("tiny", None), ("child", "tiny"), ("alone", None))
    ]


def test_a_shuffled_tensor_fails_the_threshold_that_the_whole_bundle_meets(
    model: Path, bundle: Bundle, tmp_path: Path
) -> None:
    reference = own_reference(bundle, tmp_path / "reference.npz")
    whole = export_bundle(model, tmp_path / "whole", name="whole", reference=reference)
    tensor = "model.layers.1.mlp.down_proj.weight_t"
    broken = shuffled(whole, tensor, tmp_path / "broken")
    assert broken is not None
    report = bench_bundles([whole.path, broken.path], None, FEW)
    (line,) = report_failures(report, [parse_threshold("*:kl_mean>0.005")])
    assert line.startswith("broken: kl_mean is ")


def test_a_changed_reference_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    path = copy(bundle, tmp_path / "b", reference=b"12")
    (path / "reference.npz").write_bytes(b"13")
    with pytest.raises(InputError, match=r"reference\.npz has changed"):
        bench_bundles([path], None, FEW)


def test_the_torch_arm_counts_its_weights_as_float32(model: Path, tmp_path: Path) -> None:
    import torch

    from kdexport.train.model import load_model, save_model

    half = tmp_path / "half"
    save_model(load_model(model).to(torch.bfloat16), half, tokenizer_from=model)
    arm = Arm(ArmSpec("x", half, in_torch=True), 1)
    try:
        n_parameters = load_model(model).num_parameters()
        assert arm.facts["n_parameters"] == n_parameters
        assert arm.facts["size_mb"] == pytest.approx(n_parameters * 4 / 1e6)
        with pytest.raises(InputError, match="beyond the model's 256"):
            arm.ask("latency", prompt_tokens=250, new_tokens=7)
    finally:
        arm.close()


def test_what_an_arm_cannot_load_is_one_line(tmp_path: Path) -> None:
    """Its process says so, whatever of `test_a_broken_folder_is_one_line_in_torch_too` it is."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(InputError, match="cannot be loaded") as caught:
        Arm(ArmSpec("x", tmp_path, in_torch=True), 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("generation_config.json", "[]", "cannot be loaded"),
        ("tokenizer_config.json", "", "is not JSON"),
        ("special_tokens_map.json", "[]", "cannot load the tokenizer"),
        ("generation_config.json", '{"eos_token_id": "x"}', "eos_token_ids|cannot be loaded"),
        ("config.json", {"num_attention_heads": 0}, "cannot be loaded"),
        ("config.json", {"dtype": "nonsense"}, "cannot be loaded"),
    ],
)
def test_a_broken_folder_is_one_line_in_torch_too(
    model: Path, tmp_path: Path, name: str, content: object, reason: str
) -> None:
    shutil.copytree(model, tmp_path / "m")
    file = tmp_path / "m" / name
    if isinstance(content, dict):
        content = json.dumps(json.loads(file.read_text()) | content)
    file.write_text(str(content))
    with pytest.raises(InputError, match=reason) as caught:
        open_torch(tmp_path / "m")
    assert str(tmp_path / "m") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("in_torch", [False, True])
def test_a_reference_of_another_model_is_one_line(
    bundle: Bundle, model: Path, tmp_path: Path, in_torch: bool
) -> None:
    reference = tmp_path / "r.npz"
    one = np.zeros((1, 1))
    np.savez(
        reference,
        ids=[0, 5],
        offsets=[0, 2],
        target=[1],
        topk_ids=[[5]],
        drawn_ids=np.zeros((1, 0), dtype=np.int32),
        drawn_logprobs=np.zeros((1, 0)),
        topk_logprobs=one,
        tail_logprob=one[0],
        kept_ids=[*range(5), 999],
        kept_mass=one[0],
        meta=np.frombuffer(b"{}", dtype=np.uint8),
    )
    arm = Arm(ArmSpec("x", model if in_torch else bundle.path, in_torch=in_torch), 1)
    try:
        for whole, reason in (
            (True, "token 999"),
            (False, "of 6 tokens, the model of 320"),
        ):
            with pytest.raises(InputError, match=reason) as caught:
                arm.ask("quality", reference=str(reference), teacher_vocabulary=whole)
            assert str(caught.value).startswith(str(reference))
    finally:
        arm.close()


def test_an_arm_that_was_killed_is_no_success(bundle: Bundle) -> None:
    arm = Arm(ArmSpec("x", bundle.path), 1)
    try:
        arm.kill()
        with pytest.raises(KdexportError, match="ended early"):
            arm.ask("memory")
    finally:
        arm.close()
