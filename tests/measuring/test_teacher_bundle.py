"""A teacher's int8 bundle is made once for all benches, and again when it would be another."""

import errno
from pathlib import Path
from typing import Any

import pytest

from kdexport.bundle import open_bundle, verify_bundle
from kdexport.errors import MissingExtraError, ParityError
from kdexport.export import teacher
from kdexport.measuring import teacher_bundle as module
from kdexport.measuring.teacher_bundle import makers, teacher_bundle, teacher_bundle_or_why
from kdexport.sources import ResolvedModel, resolve_teacher
from tests.models import make_llama


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("teachers") / "model")


@pytest.fixture
def model(folder: Path) -> ResolvedModel:
    return resolve_teacher(str(folder), licence="apache-2.0")


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """A cache of the test's own, and what was made in it."""
    monkeypatch.setenv("KDEXPORT_CACHE", str(tmp_path / "cache"))
    export, calls = teacher.export_teacher, []

    def noted(model: ResolvedModel, out: Path, **options: Any) -> Any:
        calls.append(out)
        return export(model, out, **options)

    monkeypatch.setattr(teacher, "export_teacher", noted)
    return calls


def test_it_is_made_once(
    model: ResolvedModel, made: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = teacher_bundle(model)
    assert "exporting the teacher to int8 (once)" in capsys.readouterr().err
    assert teacher_bundle(model) == path
    assert made == [path]
    manifest = open_bundle(path).manifest
    assert (manifest.scheme, manifest.teacher, manifest.licence) == (
        *("int8", model.source, "apache-2.0"),
    )
    assert [other.name for other in path.parent.iterdir() if other.name[0] != "."] == [path.name]
    assert capsys.readouterr().err == ""


def test_a_damaged_one_is_made_again(model: ResolvedModel, made: list[Path]) -> None:
    path = teacher_bundle(model)
    weights = path / "onnx" / "model.onnx_data"
    weights.write_bytes(bytes(weights.stat().st_size))
    assert teacher_bundle(model) == path
    assert verify_bundle(path) == []
    (path / "manifest.json").unlink()
    assert teacher_bundle(model) == path
    assert made == [path] * 3


def test_another_teacher_has_its_own(
    model: ResolvedModel, made: list[Path], tmp_path: Path
) -> None:
    other = resolve_teacher(str(make_llama(tmp_path / "other", n_layers=1)))
    assert teacher_bundle(other).parent != teacher_bundle(model).parent
    assert len(made) == 2


def test_one_of_an_older_code_is_replaced(
    model: ResolvedModel, made: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    older = teacher_bundle(model)
    before = makers()
    monkeypatch.setattr(module, "FORMAT_VERSION", 99)
    assert makers() != before
    newer = teacher_bundle(model)
    assert newer != older and not older.exists()
    assert made == [older, newer]


def test_what_makes_bundles_is_format_code_libraries_and_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code = tmp_path / "export"
    code.mkdir()
    (code / "graph.py").write_text("old")
    monkeypatch.setattr(module.kdexport.export, "__path__", [str(code)])
    found = [makers(), makers()]
    (code / "graph.py").write_text("new")
    found.append(makers())
    monkeypatch.setattr(module, "cpu_features", lambda: ["none"])
    found.append(makers())
    monkeypatch.setattr(module.importlib.metadata, "version", lambda name: "0")
    found.append(makers())
    assert found[0] == found[1] and len(set(found)) == 4


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ParityError("logits differ"), "logits differ"),
        (
            MissingExtraError("mobius", "export"),
            "mobius is missing; pip install 'kdexport[export]'",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
    ],
)
def test_why_there_is_none_is_a_line(
    model: ResolvedModel, monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(teacher, "export_teacher", fail)
    found = teacher_bundle_or_why(model)
    assert isinstance(found, str) and line in found and "\n" not in found


def test_a_mistake_of_ours_is_no_such_line(
    model: ResolvedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher, "export_teacher", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        teacher_bundle_or_why(model)
