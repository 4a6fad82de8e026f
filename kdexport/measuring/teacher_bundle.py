"""A teacher's int8 bundle for `kdexport bench --teacher`, made once and kept in the cache."""

import importlib.metadata
import shutil
from pathlib import Path

import kdexport.export
from kdexport.bundle import FORMAT_VERSION, verify_bundle
from kdexport.errors import InputError, refusal, require_extras
from kdexport.sources import ResolvedModel, held
from kdexport.system.console import say
from kdexport.system.journal import file_sha256, fingerprint
from kdexport.system.machine import cache_folder, cpu_features

LIBRARIES = ("mobius-onnx", "onnxruntime")  # which say what a bundle of a model is


def teacher_bundle(model: ResolvedModel) -> Path:
    """The folder of the bundle, made first where there is none or it is damaged.

    It is known by the teacher's fingerprint and by all that makes bundles; of a teacher the newest
    is kept. Raises what `export_teacher` does.
    """
    require_extras("export")
    folder = cache_folder() / "teachers" / fingerprint(model.fingerprint)[:32]
    target = folder / f"int8-{makers()[:16]}"
    if not _is_whole(target):
        with held(folder):
            if not _is_whole(target):  # another process may have been first
                from kdexport.export.teacher import export_teacher

                say("exporting the teacher to int8 (once)")
                for old in folder.glob("int8-*"):
                    shutil.rmtree(old)
                export_teacher(model, target, name="teacher", scratch=folder / "fp32")
    return target


def teacher_bundle_or_why(model: ResolvedModel) -> Path | str:
    """The same, or in a line why this teacher has none."""
    try:
        return teacher_bundle(model)
    except Exception as error:
        known = refusal(error)
        if known is None:
            raise
        return str(known)


def makers() -> str:
    """A fingerprint of what a bundle depends on beside its model: format, code, libraries, CPU."""
    code = Path(kdexport.export.__path__[0])
    files = {str(file.relative_to(code)): file_sha256(file) for file in code.rglob("*.py")}
    versions = [importlib.metadata.version(library) for library in LIBRARIES]
    return fingerprint(FORMAT_VERSION, files, versions, cpu_features())


def _is_whole(target: Path) -> bool:
    try:
        return not verify_bundle(target)
    except InputError:
        return False
