"""How each stage of a run does its work: open files, call one part, write files.

The order, and what may be skipped, is `pipeline`'s business.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdexport.bundle import Bundle, KVType, check_target
from kdexport.content.audiences import load_segments
from kdexport.content.languages import load_languages
from kdexport.content.prompts import load_openings
from kdexport.data.card import in_words, read_card
from kdexport.errors import InputError, require_extras
from kdexport.pipeline.dataset import make_pairs
from kdexport.pipeline.importing import imported_fingerprint
from kdexport.pipeline.preflight import (
    brand_of,
    channels_of,
    check_bench,
    check_data,
    check_student,
    check_training,
)
from kdexport.pipeline.run import METRICS, RECIPE, Run, Stage, data_fingerprint
from kdexport.recipe import DATA_PATHS
from kdexport.recipe.sections import BenchSection
from kdexport.system.console import say
from kdexport.system.journal import fingerprint
from kdexport.verdict.card import how_made
from kdexport.verdict.choices import BUDGET, read_budget
from kdexport.verdict.conditions import Condition
from kdexport.verdict.report import INT8_TEACHER, training_points

ASIDE: Any = {  # where files are, and what must not come out, changes no result
    "output": True,
    "data": set(DATA_PATHS),
    "bench": {"fail_if"},
}
FP32_ARM, QUANTIZED_ARM = "student-fp32", "student-int8"  # whatever the scheme
BACKEND_EXTRAS = {"mobius": "export", "optimum": "optimum"}  # who builds graphs, and from where


def make_teacher_bundle(run: Run) -> None:
    """Teacher -> its own int8 bundle: it writes the data, and is a row of the bench."""
    if not run.recipe.opens_teacher:
        say("    its weights are not needed: texts are given and targets imported")
        return
    from kdexport.export.teacher import export_teacher
    from kdexport.train.heap import have_huge_pages

    have_huge_pages()  # for the training that follows in this process
    name, scratch = f"{run.recipe.name}-teacher", run.folder / "teacher-fp32"
    export_teacher(run.teacher, run.teacher_bundle, name=name, scratch=scratch)


def make_student(run: Run) -> None:
    """Teacher -> an untrained student; in steps, one that was trained between its cuts."""
    from kdexport.pipeline import cutting

    cutting.make_student(run)


def train_student(run: Run) -> None:
    """Distil; keep the student that is best on the validation pairs; write the reference."""
    from kdexport.pipeline.together import train_together

    train_together("distill", run)


def _distilled(run: Run) -> Sequence[Path]:
    written = [run.student, run.known_reference, run.metrics]
    return [path for path in written if path is not None]


def make_bundle(run: Run) -> None:
    """Student -> fp32 bundle, parity and thresholds checked."""
    from kdexport.export.bundles import export_bundle

    export_bundle(
        run.student,
        run.student_bundle,
        name=run.recipe.name,
        teacher=run.teacher.source,
        licence=run.teacher.licence,
        recipe_fingerprint=fingerprint(run.recipe.model_dump(mode="json", exclude=ASIDE)),
        reference=run.known_reference,
        origin=origin_of(run.folder, run.student_init.parent),
        gate=_gate_of(run, FP32_ARM),
    )


def make_quantized(run: Run) -> None:
    """fp32 bundle -> quantized bundle, thresholds checked."""
    from kdexport.bundle import open_bundle
    from kdexport.export.quantize import Wishes, quantize_bundle

    if run.recipe.export.scheme != "fp32":
        bundle = open_bundle(run.student_bundle)
        gate = _gate_of(run, QUANTIZED_ARM)
        wish = run.recipe.export
        wishes = Wishes(run.pairs, gate=gate, kv_cache=wish.kv_cache)  # without their test split
        quantize_bundle(bundle, wish.scheme, run.quantized_bundle, wishes)


def _gate_of(run: Run, arm: str) -> Any:
    """What the recipe says that a student's bundle must not be."""
    last = FP32_ARM if run.recipe.export.scheme == "fp32" else QUANTIZED_ARM
    return None if run.allow else gate_for(arm, last, run.recipe.bench.thresholds)


def gate_for(arm: str, last: str, thresholds: Sequence[Condition]) -> Any:
    """A `Gate` of the thresholds that concern an arm; those of no named arm are of the ``last``."""
    from kdexport.export.gate import Gate

    return Gate(arm, [one for one in thresholds if one.arms([arm], last)])


def measure(run: Run) -> None:
    """Time and score teacher and student; write bench.json, report.html and the bundles' cards."""
    from kdexport.measuring.arms import bench_run
    from kdexport.measuring.cards import write_cards

    report = bench_run(run)
    quantized = run.recipe.export.scheme != "fp32"
    bundles = {INT8_TEACHER: run.teacher_bundle, FP32_ARM: run.student_bundle}
    write_cards(report, bundles | ({QUANTIZED_ARM: run.quantized_bundle} if quantized else {}))


def export_checkpoint(
    checkpoint: Path,
    out: Path | None,
    scheme: str | None,
    backend: str = "mobius",
    calibrate: Path | None = None,
    max_kl: float | None = None,
    kv_cache: KVType | None = None,
    allow: bool = False,
) -> Sequence[Bundle]:
    """`kdexport export`: a run's student, or any Hugging Face folder, to one or two bundles.

    A bundle that fails the thresholds of the run's recipe is not written, unless ``allow``. Each
    gets a model card of what is known before a bench.
    """
    require_extras(BACKEND_EXTRAS[backend])
    from kdexport.export.bundles import export_bundle
    from kdexport.export.quantize import SCHEMES, Wishes, quantize_bundle
    from kdexport.measuring.cards import write_first_card
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
    thresholds = [] if allow else _thresholds_in(checkpoint / RECIPE)
    last = FP32_ARM if scheme is None else QUANTIZED_ARM
    reference = checkpoint / "reference.npz"
    bundle = export_bundle(
        folder,
        target,
        name=name,
        teacher=facts.get("teacher"),
        licence=_licence_in(checkpoint) or facts.get("licence"),
        reference=reference if reference.exists() else None,
        origin=origin_of(checkpoint),
        backend=backend,
        gate=gate_for(FP32_ARM, last, thresholds),
    )
    write_first_card(bundle)
    if scheme is None:
        return [bundle]
    gate = gate_for(QUANTIZED_ARM, last, thresholds)
    wishes = Wishes(calibrate, max_kl, gate, kv_cache)
    bundles = [bundle, quantize_bundle(bundle, scheme, quantized, wishes)]
    write_first_card(bundles[-1])
    return bundles


def origin_of(folder: Path, cut_in: Path | None = None) -> dict[str, str]:
    """How the student of a run's folder came to be, in words; nothing of another folder.

    ``cut_in``: the folder in which it was made before it was trained, where that is another.
    """
    training, data = training_points(folder / METRICS), in_words(read_card(folder))
    recipe = _recipe_in(folder)
    student = recipe.get("student")
    has_budget = isinstance(student, dict) and student.get("budget") is not None
    budget = read_budget((cut_in or folder) / BUDGET) if has_budget else None
    return how_made(recipe, training, data, budget)


def _thresholds_in(path: Path) -> list[Condition]:
    """What the recipe of a run says that must not be; nothing where there is none."""
    if not path.is_file():
        return []
    try:
        section = BenchSection.model_validate(json.loads(path.read_text("utf-8"))["bench"])
    except (ValueError, KeyError, TypeError):
        raise InputError(
            "is no recipe of a run", where=str(path), remedy="run the recipe again, or --allow"
        ) from None
    return section.thresholds


def _recipe_in(folder: Path) -> dict[str, Any]:
    """What a run's folder says that it was asked for; empty where it says nothing."""
    try:
        found = json.loads((folder / RECIPE).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _licence_in(folder: Path) -> str | None:
    """The licence that the recipe of a run names; None where there is none."""
    teacher = _recipe_in(folder).get("teacher")
    licence = teacher.get("licence") if isinstance(teacher, dict) else None
    return licence if isinstance(licence, str) else None


def _sections(*names: str) -> Any:
    def depends(run: Run) -> object:
        dumped = run.recipe.model_dump(mode="json")
        return [dumped["seed"], *(dumped[name] for name in names)]

    return depends


def _bench_asked(run: Run) -> object:
    """The section of the bench, but for its thresholds: they change no number."""
    return [run.recipe.seed, run.recipe.bench.model_dump(mode="json", exclude={"fail_if"})]


def student_asked(run: Run) -> object:
    """What the untrained student depends on beside teacher and pairs."""
    from kdexport.pipeline import cutting

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
    unused: Any = {"validation_fraction": True, "test_fraction": True}
    unused["generate"] = {"batch_size", "max_new_tokens"}
    if data.pairs is not None:
        of_briefs = {"batch_size", "variants", "scorer", "review"}
        unused = {"generate": of_briefs if data.answer_prompts else True}
    if not data.answer_prompts:
        unused["answer_prompts"] = True  # pairs of before there was any are as good
    for name in (*DATA_PATHS, "stream", "shuffle_buffer"):
        unused[name] = True
    kind = "briefs" if data.pairs is None else "pairs"
    asked = data.model_dump(mode="json", exclude=unused)
    if data.pairs is None and data.generate.review is None:
        del asked["generate"]["review"]  # likewise
    return [run.recipe.seed, kind, asked]


def _channels_asked(run: Run) -> object:
    """The wording of channels, openings, languages and brand, where the teacher answers briefs."""
    if run.recipe.data.briefs is None:
        return None
    brand, audiences = brand_of(run), run.recipe.data.audiences
    known = (*channels_of(run).values(), *load_languages().values(), *([brand] if brand else []))
    segments = load_segments(audiences).values() if audiences else ()
    of_all = (load_openings(), *known, *segments)
    return [one.model_dump(mode="json") for one in of_all]


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
        _bench_asked,
        after=("quantize", "teacher"),
        check=check_bench,
    ),
)
