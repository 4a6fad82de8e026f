"""How each stage of a run does its work: open files, call one part, write files.

The order, and what may be skipped, is `pipeline`'s business.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdexport.bundle import Bundle, check_target
from kdexport.console import say
from kdexport.content.channels import load_channels
from kdexport.content.prompts import load_openings
from kdexport.dataset import make_pairs
from kdexport.errors import InputError, require_extras
from kdexport.importing import imported_fingerprint
from kdexport.journal import fingerprint
from kdexport.pipeline import Run, Stage, data_fingerprint
from kdexport.preflight import (
    check_bench,
    check_data,
    check_student,
    check_training,
)
from kdexport.recipe import Recipe

PLACES: Any = {"output": True, "data": {"briefs", "pairs"}}  # where files are changes no result
BACKEND_EXTRAS = {"mobius": "export", "optimum": "optimum"}  # who builds graphs, and from where


def make_teacher_bundle(run: Run) -> None:
    """Teacher -> its own int8 bundle: it writes the data, and is a row of the bench."""
    if not run.recipe.opens_teacher:
        say("    its weights are not needed: texts are given and targets imported")
        return
    from kdexport.export.bundles import export_bundle
    from kdexport.export.quantize import quantize_bundle

    fp32 = run.folder / "teacher-fp32"
    name = f"{run.recipe.name}-teacher"
    bundle = export_bundle(run.teacher.path, fp32, name=name, teacher=run.teacher.source)
    quantize_bundle(bundle, "int8", run.teacher_bundle)
    shutil.rmtree(fp32)


def make_student(run: Run) -> None:
    """Teacher -> an untrained student; in steps, one that was trained between its cuts."""
    from kdexport import cutting

    cutting.make_student(run)


def train_student(run: Run) -> None:
    """Distil; keep the student that is best on the validation pairs; write the reference."""
    from kdexport.together import train_together

    train_together("distill", run)


def _distilled(run: Run) -> Sequence[Path]:
    written = [run.student, run.known_reference, run.metrics]
    return [path for path in written if path is not None]


def make_bundle(run: Run) -> None:
    """Student -> fp32 bundle, parity checked."""
    _export(run.student, run.student_bundle, run.recipe, run)


def _export(checkpoint: Path, out: Path, recipe: Recipe, run: Run) -> Bundle:
    from kdexport.export.bundles import export_bundle

    return export_bundle(
        checkpoint,
        out,
        name=recipe.name,
        teacher=run.teacher.source,
        licence=run.teacher.licence,
        recipe_fingerprint=fingerprint(recipe.model_dump(mode="json", exclude=PLACES)),
        reference=run.known_reference,
    )


def make_quantized(run: Run) -> None:
    """fp32 bundle -> quantized bundle."""
    from kdexport.bundle import open_bundle
    from kdexport.export.quantize import Wishes, quantize_bundle

    if run.recipe.export.scheme != "fp32":
        bundle = open_bundle(run.student_bundle)
        wishes = Wishes(calibrate=run.pairs)  # without their test split
        quantize_bundle(bundle, run.recipe.export.scheme, run.quantized_bundle, wishes)


def measure(run: Run) -> None:
    """Time and score teacher and student; write bench.json, report.html and the bundles' cards."""
    from kdexport.arms import bench_run
    from kdexport.cards import write_cards

    report = bench_run(run)
    quantized = run.recipe.export.scheme != "fp32"
    bundles = {"student-fp32": run.student_bundle}
    write_cards(report, bundles | ({"student-int8": run.quantized_bundle} if quantized else {}))


def export_checkpoint(
    checkpoint: Path,
    out: Path | None,
    scheme: str | None,
    backend: str = "mobius",
    calibrate: Path | None = None,
    max_kl: float | None = None,
) -> Sequence[Bundle]:
    """`kdexport export`: a run's student, or any Hugging Face folder, to one or two bundles."""
    require_extras(BACKEND_EXTRAS[backend])
    from kdexport.export.bundles import export_bundle
    from kdexport.export.quantize import SCHEMES, Wishes, quantize_bundle
    from kdexport.model_folder import check_model_folder, read_config

    if scheme is not None and scheme not in SCHEMES:
        raise InputError(
            f"unknown scheme {scheme!r}", where="--scheme", remedy="use " + ", ".join(SCHEMES)
        )
    if calibrate is not None and not calibrate.is_file():
        raise InputError("there is no such file", where=str(calibrate))
    folder = checkpoint / "student" if (checkpoint / "student").is_dir() else checkpoint
    name = checkpoint.resolve().name
    target = out or Path("exported") / name
    quantized = target.with_name(f"{target.name}-{scheme}") if target.name else target
    for place in [target] if scheme is None else [target, quantized]:
        check_target(place)
    check_model_folder(folder)
    facts_path = folder / "kdexport.json"
    facts = read_config(facts_path) if facts_path.exists() else {}
    reference = checkpoint / "reference.npz"
    bundle = export_bundle(
        folder,
        target,
        name=name,
        teacher=facts.get("teacher"),
        reference=reference if reference.exists() else None,
        backend=backend,
    )
    if scheme is None:
        return [bundle]
    return [bundle, quantize_bundle(bundle, scheme, quantized, Wishes(calibrate, max_kl))]


def _sections(*names: str) -> Any:
    def depends(run: Run) -> object:
        dumped = run.recipe.model_dump(mode="json")
        return [dumped["seed"], *(dumped[name] for name in names)]

    return depends


def student_asked(run: Run) -> object:
    """What the untrained student depends on beside teacher and pairs."""
    from kdexport import cutting

    return cutting.student_asked(run)


def training_asked(run: Run) -> object:
    """The section of training, and the scheme where training computes as its bundle will."""
    rounded = run.recipe.export.scheme if run.recipe.train.quantize_aware else None
    asked = [run.recipe.seed, run.recipe.train.fingerprinted, rounded, reading_asked(run)]
    imported = imported_fingerprint(run)
    return [*asked, imported] if imported else asked


def reading_asked(run: Run) -> object:
    """How training reads its texts, where not all of them at once."""
    return run.recipe.data.shuffle_buffer if run.recipe.data.stream else None


def _data_asked(run: Run) -> object:
    """What the recipe says of the data, but for the file's place and what does not concern it."""
    data = run.recipe.data
    unused: Any = {"validation_fraction": True, "test_fraction": True, "generate": {"batch_size"}}
    if data.pairs is not None:
        unused = {"generate": True}
    for name in ("briefs", "pairs", "stream", "shuffle_buffer"):
        unused[name] = True
    kind = "briefs" if data.pairs is None else "pairs"
    asked = data.model_dump(mode="json", exclude=unused)
    return [run.recipe.seed, kind, asked]


def _channels_asked(run: Run) -> object:
    """The wording of channels and openings, where the teacher answers briefs."""
    if run.recipe.data.briefs is None:
        return None
    return [load_openings().model_dump(), *(c.model_dump() for c in load_channels().values())]


STAGES: Sequence[Stage] = (
    Stage(
        "teacher",
        "Teacher to ONNX int8",
        make_teacher_bundle,
        lambda run: [run.teacher_bundle] if run.recipe.opens_teacher else [],
        lambda run: run.teacher.fingerprint,
    ),
    Stage(
        "pairs",
        "Teacher writes the data",
        make_pairs,
        lambda run: [run.pairs],
        lambda run: [_data_asked(run), data_fingerprint(run), _channels_asked(run)],
        after=("teacher",),
        check=check_data,
    ),
    Stage(
        "student",
        "Student is cut from the teacher",
        make_student,
        lambda run: [run.student_init],
        student_asked,
        after=("pairs",),
        check=check_student,
    ),
    Stage(
        "distill",
        "Distillation",
        train_student,
        _distilled,
        training_asked,
        after=("student",),
        check=check_training,
    ),
    Stage(
        "export",
        "Student to ONNX",
        make_bundle,
        lambda run: [run.student_bundle],
        lambda run: [run.recipe.name, run.teacher.licence],
        after=("distill",),
    ),
    Stage(
        "quantize",
        "Student to int8",
        make_quantized,
        lambda run: [run.quantized_bundle] if run.recipe.export.scheme != "fp32" else [],
        _sections("export"),
        after=("export",),
    ),
    Stage(
        "bench",
        "Bench and report",
        measure,
        lambda run: [run.folder / "bench.json", run.folder / "report.html"],
        _sections("bench"),
        after=("quantize", "teacher"),
        check=check_bench,
    ),
)
