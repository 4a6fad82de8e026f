"""`kdexport run`: the stages from teacher to report, each skipped when its output is whole.

Every stage has a fingerprint of all that it depends on. The journal in the run folder says which
are done; long stages also keep their own progress (drafts, cached targets, checkpoints), so that a
kill loses minutes at most. How a stage does its work is told in `stages`.
"""

import shutil
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from kdexport.bundle import check_target
from kdexport.errors import InputError, require_extras
from kdexport.recipe import Recipe
from kdexport.sources import ResolvedModel, resolve_teacher
from kdexport.system.console import say
from kdexport.system.files import write_whole
from kdexport.system.journal import Journal, file_sha256, fingerprint
from kdexport.system.machine import make_folder, need_room

RECIPE = "recipe.json"  # in a run's folder: what was last asked for, overrides included
METRICS = "metrics.jsonl"
CODE_VERSION = 1  # raised when a stage's output changes though its inputs do not


@dataclass(frozen=True)
class Run:
    """A recipe, where its files go, and the teacher once it is at hand.

    ``base``: another run of the same teacher and data, which lends its teacher bundle, its cached
    targets, its pairs to choose from, and its untrained student where the same one is wanted.
    ``allow``: bundles that fail the recipe's thresholds are kept.
    """

    recipe: Recipe
    folder: Path
    exported: Path
    teacher: ResolvedModel
    base: "Run | None" = None
    allow: bool = False

    @property
    def lender(self) -> "Run":
        """The run whose teacher bundle and targets these are."""
        return self.base or self

    @property
    def pairs(self) -> Path:
        """The pairs that the student learns from."""
        return self.folder / "pairs.jsonl"

    @property
    def student_init(self) -> Path:
        """The student before training."""
        lends = self.lender.recipe.student == self.recipe.student
        return (self.lender if lends else self).folder / "student-init"

    @property
    def student(self) -> Path:
        """The trained student."""
        return self.folder / "student"

    @property
    def checkpoints(self) -> Path:
        """What a long stage goes on from after an interruption."""
        return self.folder / "checkpoints"

    @property
    def metrics(self) -> Path:
        """What was logged of training."""
        return self.folder / METRICS

    @property
    def reference(self) -> Path:
        """The teacher's targets on the test pairs."""
        return self.folder / "reference.npz"

    @property
    def known_reference(self) -> Path | None:
        """The same; None where teacher and student have different tokens."""
        return None if self.recipe.train.across_tokens else self.reference

    @property
    def teacher_bundle(self) -> Path:
        """The teacher's own int8 bundle."""
        return self.lender.exported / f"{self.lender.recipe.name}-teacher-int8"

    @property
    def targets(self) -> Path:
        """What the teacher said of the texts' tokens."""
        return self.lender.folder / "targets"

    @property
    def imported(self) -> Path:
        """What another program said of them."""
        return self.lender.folder / "imported-targets"

    @property
    def student_bundle(self) -> Path:
        """The student's fp32 bundle."""
        return self.exported / self.recipe.name

    @property
    def quantized_bundle(self) -> Path:
        """The student's quantized bundle; the fp32 one where none is wanted."""
        if self.recipe.export.scheme == "fp32":
            return self.student_bundle
        return self.exported / f"{self.recipe.name}-{self.recipe.export.scheme}"


@dataclass(frozen=True)
class Stage:
    """One step of a run: what it depends on, what it writes, how it is done.

    ``check`` refuses, before any stage begins, what the work would refuse only after hours.
    ``goes_on_from`` is what the work leaves behind until it has ended.
    """

    name: str
    title: str
    work: Callable[[Run], None]
    outputs: Callable[[Run], Sequence[Path]]
    depends: Callable[[Run], object]
    after: tuple[str, ...] = field(default=())
    check: Callable[[Run], None] = field(default=lambda run: None)
    goes_on_from: Callable[[Run], Path] = field(default=lambda run: run.checkpoints)


def open_run(
    recipe: Recipe, *, fetch: bool = True, weights: bool | None = None, allow: bool = False
) -> Run:
    """Bring the teacher to this machine; first see that the libraries are there.

    ``weights``: whether with its weights; None: as the recipe needs them. ``allow``: see `Run`.
    Raises NotAtHandError without ``fetch`` where the teacher is not here yet.
    """
    require_extras("train", "export")
    wish = recipe.teacher
    teacher = resolve_teacher(
        wish.source,
        licence=wish.licence,
        fetch=fetch,
        where=wish.where,
        weights=recipe.opens_teacher if weights is None else weights,
    )
    folder = Path(recipe.output.runs) / recipe.name
    return Run(recipe, folder, Path(recipe.output.exported), teacher, allow=allow)


def run_stages(
    run: Run, *, until: str | None = None, stages: Sequence[Stage] | None = None
) -> None:
    """Do every stage whose output is not whole yet, up to and with ``until``.

    ``stages``: of `kdexport run`, unless others are named.
    """
    plan(run, until=until, stages=stages)  # refuses what cannot be done before there are folders
    make_folder(run.folder)
    make_folder(run.exported)
    with only_one(run.folder):
        content = run.recipe.model_dump_json(by_alias=True, indent=1)
        write_whole(run.folder / RECIPE, [content, "\n"])
        journal = Journal(run.folder / "journal.json")
        judged = _judge(run, journal, until, stages)
        check_disk(run, [stage.name for stage, _, done in judged if not done])
        _run_stages(run, journal, judged)


def _run_stages(run: Run, journal: Journal, judged: Sequence[tuple[Stage, str, bool]]) -> None:
    for number, (stage, its_print, done) in enumerate(judged, start=1):
        head = f"[{number}/{len(judged)}] {stage.title}"
        if done:
            say(f"{head}: done before")
            continue
        say(head)
        started = time.monotonic()
        stage.work(run)
        seconds = time.monotonic() - started
        journal.record(stage.name, its_print, stage.outputs(run), seconds)
        shutil.rmtree(stage.goes_on_from(run), ignore_errors=True)
        say(f"{head}: {seconds:.0f} s")


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold a run folder; two runs at once in it would write over each other.

    The lock is the system's: it ends with its process, however that ends.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock", blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(
            "another kdexport is at work here", where=str(folder), remedy="wait until it has ended"
        ) from None
    try:
        yield
    finally:
        lock.release()


def plan(
    run: Run, *, until: str | None = None, stages: Sequence[Stage] | None = None
) -> list[tuple[Stage, bool]]:
    """The stages of a run and whether each is done already.

    Raises InputError where one that is to do is going to be refused.
    """
    judged = _judge(run, Journal(run.folder / "journal.json"), until, stages)
    for stage in (stage for stage, _, done in judged if not done):
        for output in stage.outputs(run):
            if output.parent == run.exported:
                check_target(output)
        stage.check(run)
    return [(stage, done) for stage, _, done in judged]


def _judge(
    run: Run, journal: Journal, until: str | None, stages: Sequence[Stage] | None
) -> list[tuple[Stage, str, bool]]:
    """The stages up to ``until`` with their fingerprints, and whether each is done already."""
    from kdexport.pipeline.stages import STAGES

    prints = {} if run.base is None else stage_prints(run.base)
    rows: list[tuple[Stage, str, bool]] = []
    for stage in _up_to(stages or STAGES, until):
        prints[stage.name] = stage_fingerprint(stage, run, prints)
        done = journal.is_done(stage.name, prints[stage.name], stage.outputs(run))
        rows.append((stage, prints[stage.name], done))
    return rows


def stage_prints(run: Run) -> dict[str, str]:
    """The fingerprint of each stage of `kdexport run`."""
    from kdexport.pipeline.stages import STAGES

    prints: dict[str, str] = {}
    for stage in STAGES:
        prints[stage.name] = stage_fingerprint(stage, run, prints)
    return prints


def stage_fingerprint(stage: Stage, run: Run, prints: dict[str, str]) -> str:
    """What a stage depends on: its own inputs and the fingerprints of the stages it follows."""
    return fingerprint(
        CODE_VERSION, stage.name, stage.depends(run), [prints[name] for name in stage.after]
    )


def data_fingerprint(run: Run) -> str:
    """The sha256 of the data file that the recipe names; of two, a fingerprint of both."""
    data = run.recipe.data
    hashes = []
    for path in (data.pairs or data.briefs, *([data.own] if data.own else [])):
        if path is None or not Path(path).is_file():
            raise InputError("there is no such file", where=str(path))
        hashes.append(file_sha256(Path(path)))
    return hashes[0] if len(hashes) == 1 else fingerprint(*hashes)


def check_disk(run: Run, stages: Collection[str]) -> None:
    """Refuse to begin where the disks cannot hold what these stages write."""
    from kdexport.pipeline.plan import room_needed

    if not stages:
        return
    in_run, in_exported = room_needed(run, stages)
    if run.folder.stat().st_dev == run.exported.stat().st_dev:
        need_room(run.folder, in_run + in_exported)
    else:
        need_room(run.folder, in_run)
        need_room(run.exported, in_exported)


def _up_to(stages: Sequence[Stage], until: str | None) -> Sequence[Stage]:
    if until is None:
        return stages
    names = [stage.name for stage in stages]
    return stages[: names.index(until) + 1]
