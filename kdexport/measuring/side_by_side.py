"""The students of a matrix on one bench, in turns with their teacher; and each one's own report."""

from collections.abc import Iterable, Mapping

from kdexport.bundle import open_bundle
from kdexport.data.pairs import Pair
from kdexport.measuring.arms import arm_names, bundle_arm, measure_arms, report_of, settings_of
from kdexport.measuring.asking import briefs_of, requests_of
from kdexport.measuring.circumstances import of_run, stage_seconds
from kdexport.pipeline.run import Run
from kdexport.system.console import tracked
from kdexport.verdict.choices import Matrix, MatrixStudent
from kdexport.verdict.report import BenchReport

Counts = Mapping[str, int]  # pairs by split


def bench_students(
    base: Run, column: str, runs: Mapping[str, Run], pairs: Mapping[str, Counts]
) -> BenchReport:
    """Time and score the quantized students, and the teacher where the run has its bundle.

    ``runs``: a student's run for each value of ``column``; ``pairs``: how many it has. Each writes
    copy for its own test pairs, the teacher for all of them.
    """
    bundles = [run.quantized_bundle for run in runs.values()]
    teachers = [base.teacher_bundle] if base.recipe.opens_teacher else []
    names = arm_names([*teachers, *bundles])
    settings = settings_of(base.recipe.bench)
    specs = [
        bundle_arm(name, open_bundle(path), settings, {})
        for name, path in zip(names, [*teachers, *bundles], strict=True)
    ]
    arm_of = dict(zip(runs, names[len(teachers) :], strict=True))
    requests = {value: requests_of(run) for value, run in runs.items()}
    every = _once(pair for copied, _ in requests.values() for pair in copied)
    asked = {arm_of[value]: copied for value, (copied, _) in requests.items()}
    asked |= dict.fromkeys(names[: len(teachers)], every)
    with tracked("bench", "steps") as progress:
        arms = measure_arms(specs, settings, asked, progress, briefs_of(base, every))
    shown = _once(pair for _, some in requests.values() for pair in some)
    seconds = {f"{column}={value}": stage_seconds(run.folder) for value, run in runs.items()}
    students = [
        MatrixStudent(value=value, arm=arm_of[value], pairs=dict(pairs[value])) for value in runs
    ]
    about = of_run(base) | {"training": []}
    about["stages"] |= {name: sum(stages.values()) for name, stages in seconds.items()}
    about["matrix"] = Matrix(column=column, students=students)
    return report_of(base.recipe.name, settings, specs[0], arms, shown, **about)


def own_report(report: BenchReport, value: str, run: Run) -> BenchReport:
    """What a report on several students has of one, with how that one was made."""
    assert report.matrix is not None
    own = next(student for student in report.matrix.students if student.value == value)
    others = {student.arm for student in report.matrix.students} - {own.arm}
    arms = [arm for arm in report.arms if arm.arm not in others]
    names = [arm.arm for arm in arms]
    samples = [sample for sample in report.samples if own.arm in sample.copies]
    mine = {
        "name": run.recipe.name,
        "arms": arms,
        "baseline": report.baseline if report.baseline in names else own.arm,
        "losses": [loss for loss in report.losses if loss.arm in names],
        "samples": [
            sample.model_copy(
                update={
                    "copies": {name: sample.copies[name] for name in names if name in sample.copies}
                }
            )
            for sample in samples
        ],
        "matrix": report.matrix.model_copy(update={"students": [own]}),
    }
    about = of_run(run) | {"data": report.data}
    return report.model_copy(update=mine | about)


def _once(pairs: Iterable[Pair]) -> list[Pair]:
    """Each pair once, in the order given."""
    return list({pair.id: pair for pair in pairs}.values())
