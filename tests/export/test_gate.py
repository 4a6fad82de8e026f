"""A bundle that fails its recipe's thresholds is not committed."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kdexport.bundle import REFERENCE, Bundle, open_bundle, verify_bundle
from kdexport.errors import InputError, ThresholdError
from kdexport.export import gate as gate_module
from kdexport.export.bundles import export_bundle
from kdexport.export.draft import load_draft
from kdexport.export.gate import Gate
from kdexport.export.quantize import Wishes, quantize_bundle
from kdexport.pipeline.stages import export_checkpoint
from kdexport.runtime.session import open_session
from kdexport.runtime.token_scores import Quality
from kdexport.verdict.conditions import parse_threshold
from kdexport.verdict.measures import MEASURES
from tests.models import make_llama
from tests.shuffled import own_reference, shuffled

FOUND = Quality(
    perplexity=20.0, perplexity_se=1.0, ece=0.1, n_tokens=9, texts={}, kl_mean=0.4, kl_p99=2.5
)


@pytest.fixture
def staging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """3 MB of a model, and a reference by which it has FOUND."""
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "weights").write_bytes(bytes(3_000_000))
    (tmp_path / REFERENCE).write_bytes(bytes(2_000_000))
    monkeypatch.setattr(gate_module, "load_reference", lambda path: path)
    monkeypatch.setattr(gate_module, "measure_quality", lambda *_, **__: FOUND)
    return tmp_path


def check(staging: Path, *texts: str, arm: str = "student-int8") -> str:
    """What a gate of these thresholds says; nothing where it lets pass."""
    session: Any = object()
    try:
        Gate(arm, [parse_threshold(text) for text in texts]).check(staging, lambda: session)
    except ThresholdError as error:
        return str(error)
    return ""


def test_size_and_quality_are_asked(staging: Path) -> None:
    assert check(staging, "kl_p99>2.5", "size_mb>3", "kl_mean>=0.41", "perplexity>20") == ""
    assert check(staging, "kl_p99>1", "kl_mean>0.5", "size_mb>=3") == (
        "student-int8: kl_p99 is 2.5 nats (fails if kl_p99>1); "
        "student-int8: size_mb is 3 MB (fails if size_mb>=3); "
        "nothing was written; --allow keeps it all the same"
    )


def test_what_needs_a_clock_is_left_to_the_bench(staging: Path) -> None:
    assert check(staging, "speedup<99", "tpot_p50_ms>0.001", "peak_rss_mb>1") == ""


def test_without_a_reference_quality_fails_and_no_graph_is_opened(staging: Path) -> None:
    (staging / REFERENCE).unlink()
    assert "student-int8: kl_mean was not measured" in check(staging, "kl_mean>9")
    assert check(staging, "size_mb>9") == ""


def test_infinity_is_no_measurement(staging: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = replace(FOUND, kl_mean=float("nan"), perplexity=float("inf"))
    monkeypatch.setattr(gate_module, "measure_quality", lambda *_, **__: broken)
    for text in ("kl_mean>9", "perplexity>9"):
        assert "was not measured" in check(staging, text)


def test_what_is_scored_has_the_names_of_measures() -> None:
    assert {n for n, m in MEASURES.items() if m.unit == "nats" or m.sums} <= gate_module.QUALITY


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder: student, recipe, and a reference whose teacher is the student itself."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    folder.mkdir()
    student = make_llama(folder / "student")
    own_reference(export_bundle(student, folder / "b", name="x"), folder / REFERENCE)
    return folder


def limit(run: Path, *texts: str) -> None:
    (run / "recipe.json").write_text(json.dumps({"name": "tiny", "bench": {"fail_if": texts}}))


def test_a_bundle_that_fails_is_not_written_unless_allowed(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "exported" / "tiny"
    limit(run, "kl_mean>0.001", "speedup<99")
    [bundle] = export_checkpoint(run, out, None)
    assert open_bundle(out).manifest_sha256 == bundle.manifest_sha256
    limit(run, "size_mb>0.001")
    with pytest.raises(ThresholdError, match=r"student-fp32: size_mb is .* nothing was written"):
        export_checkpoint(run, out, None)
    assert open_bundle(out).manifest_sha256 == bundle.manifest_sha256  # the older one stands
    assert [path.name for path in out.parent.iterdir()] == ["tiny"]
    [again] = export_checkpoint(run, out, None, allow=True)
    assert open_bundle(out).manifest_sha256 == again.manifest_sha256


def test_what_a_student_says_of_its_teacher_is_carried_over(run: Path, tmp_path: Path) -> None:
    limit(run)
    facts = run / "student" / "kdexport.json"
    facts.write_text(json.dumps({"teacher": "its teacher", "licence": "apache-2.0"}))
    try:
        bundles = export_checkpoint(run, tmp_path / "tiny", "int8")
    finally:
        facts.unlink()
    (run / "recipe.json").write_text(json.dumps({"teacher": {"licence": "mit"}, "bench": {}}))
    [named] = export_checkpoint(run, tmp_path / "named", None)
    assert named.manifest.licence == "mit"  # of the recipe, which may be changed
    for bundle in bundles:
        told = bundle.manifest
        assert (told.teacher, told.licence) == ("its teacher", "apache-2.0")


def test_the_quantized_bundle_is_the_one_that_is_asked(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "exported" / "tiny"
    limit(run, "kl_max>1e-9", "student-fp32:kl_max>1e-3")  # rounding costs more than nothing
    with pytest.raises(ThresholdError, match="student-int8: kl_max is"):
        export_checkpoint(run, out, "int8")
    assert [path.name for path in out.parent.iterdir()] == ["tiny"]  # whole, and within its limits
    limit(run, "kl_max>0.5")
    assert len(export_checkpoint(run, out, "int8")) == 2
    limit(run, "student-fp32:size_mb>0.001")
    with pytest.raises(ThresholdError, match="student-fp32"):
        export_checkpoint(run, tmp_path / "other", "int8")
    assert not (tmp_path / "other").exists()


def test_every_tensor_that_is_shuffled_is_caught(run: Path, tmp_path: Path) -> None:
    """Its hashes are right, and so is its size: only what it says of texts is not."""
    whole = export_bundle(run / "student", tmp_path / "b", name="x", reference=run / REFERENCE)
    gate = Gate("student-int8", [parse_threshold("kl_mean>0.005")])
    n_caught = 0
    for parent in (whole, quantize_bundle(whole, "int8", tmp_path / "q", Wishes(gate=gate))):
        for tensor in load_draft(parent.file(parent.manifest.graphs.decode)).weights:
            bundle = shuffled(parent, tensor, tmp_path / "shuffled")
            if bundle is None:
                continue
            assert verify_bundle(bundle.path) == []
            with pytest.raises(ThresholdError, match="student-int8: kl_mean is"):
                gate.check(bundle.path, partial(open_session, bundle, n_threads=1))
            n_caught += 1
    assert n_caught > 30


def test_a_recipe_of_a_run_that_is_broken_lets_nothing_pass(run: Path, tmp_path: Path) -> None:
    for broken in ("{}", "[]", '{"bench": {"fail_if": ["kl>1"]}}', "x"):
        (run / "recipe.json").write_text(broken)
        with pytest.raises(InputError, match=r"is no recipe of a run.*--allow"):
            export_checkpoint(run, tmp_path / "b", None)
    assert list(tmp_path.iterdir()) == []


def test_quantizing_has_a_gate_of_its_own(parents: dict[str, Bundle], tmp_path: Path) -> None:
    gate = Gate("student-int8", [parse_threshold("size_mb>0.001")])
    with pytest.raises(ThresholdError, match="size_mb"):
        quantize_bundle(parents["llama"], "int8", tmp_path / "q", Wishes(gate=gate))
    assert list(tmp_path.iterdir()) == []
