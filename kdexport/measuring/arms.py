"""The bench: arms in processes of their own, measured in turns, and the report of it.

Turns matter: a machine's speed drifts by a third within minutes, so only what is measured side by
side can be divided.
"""

import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdexport.bundle import Bundle, check_files, open_bundle
from kdexport.data.pairs import Pair
from kdexport.errors import InputError, KdexportError
from kdexport.measuring.asking import NOTHING, Requests, briefs_of, request_of, requests_of, spread
from kdexport.measuring.circumstances import of_bench, of_run
from kdexport.measuring.scoring import Briefed, Written, score_arms
from kdexport.pipeline.run import Run
from kdexport.recipe.sections import BenchSection
from kdexport.runtime.latency import check_room
from kdexport.system.console import Tracker, say, tracked
from kdexport.system.energy import Meter, find_meter
from kdexport.system.machine import physical_cores
from kdexport.verdict.report import (
    INT8_TEACHER,
    REFERENCE_ARM,
    ArmResult,
    BenchReport,
    BenchSettings,
    gather_samples,
    write_report,
)
from kdexport.verdict.stage_losses import stage_losses
from kdexport.verdict.timing import Case, Timing

N_SHOWN = 6  # copies side by side, of a bench of bundles
SAMPLE_TOKENS = 96  # where no channel says how many
Answer = dict[str, Any]


@dataclass(frozen=True)
class ArmSpec:
    """What an arm measures. ``reference``: quality is scored where there is one.

    ``made_from``: the arm that it was made from, as far as that is measured too.
    """

    name: str
    path: Path
    in_torch: bool = False
    reference: Path | None = None
    teacher_vocabulary: bool = False
    made_from: str | None = None


class Arm:
    """A running arm: one request, one answer."""

    def __init__(self, spec: ArmSpec, n_threads: int) -> None:
        self.spec = spec
        module = "kdexport.measuring.torch_arm" if spec.in_torch else "kdexport.runtime.arm"
        self._process = subprocess.Popen(
            # -P: no module is taken from the current folder, which may be a stranger's bundle.
            [sys.executable, "-P", "-m", module, str(spec.path), "--threads", str(n_threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,  # a terminal's Ctrl-C is for us, who then end the arms
        )
        try:
            self.facts = self._read()
        except BaseException:
            self.kill()
            raise

    def ask(self, do: str, **request: Any) -> Answer:
        """Have the arm do something and wait for its answer."""
        if self._process.stdin is None:
            raise KdexportError("is closed", where=self.spec.name)
        with contextlib.suppress(BrokenPipeError):  # of an arm that has ended; reading tells
            self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self._process.stdin.flush()
        return self._read()

    def _read(self) -> Answer:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise KdexportError("ended early", where=f"bench arm {self.spec.name}")
        answer: Answer = json.loads(line)
        if "error" in answer:
            raise InputError(answer["error"])
        return answer

    def close(self) -> None:
        """End the process."""
        if self._process.stdin:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.kill()
        if self._process.stdout:
            self._process.stdout.close()

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.wait()


@contextlib.contextmanager
def running(specs: Sequence[ArmSpec], n_threads: int) -> Iterator[list[Arm]]:
    """All arms, loaded one after another; ended whatever happens."""
    arms: list[Arm] = []
    try:
        for spec in specs:
            arms.append(Arm(spec, n_threads))
        yield arms
    except BaseException:
        for arm in arms:
            arm.kill()
        raise
    finally:
        for arm in arms:
            arm.close()


def measure_arms(
    specs: Sequence[ArmSpec],
    settings: BenchSettings,
    asked: Mapping[str, Sequence[Pair]],
    progress: Tracker,
    briefed: Briefed | None = None,
) -> list[ArmResult]:
    """Each case in turns, the report's own first; after it memory, quality and copies of each arm.

    For another number of threads the arms are started anew. ``asked``: what arms write copy for, by
    their names; ``briefed``: the briefs of these pairs, by their ids.
    """
    cases = settings.cases
    counts = list(dict.fromkeys(case.n_threads for case in cases))
    turns = _Turns(settings.n_runs, find_meter(), progress)
    turns.n_left = len(specs) * (len(cases) * (settings.n_runs + 1) + len(counts) + 1)
    results: list[ArmResult] = []
    written: dict[str, dict[str, Written]] = {}
    others: list[list[Timing]] = [[] for _ in specs]
    for n_threads in counts:
        with running(specs, n_threads) as arms:
            turns.advance(len(arms))
            for case in cases:
                if case.n_threads != n_threads:
                    continue
                timed = turns.take(arms, case)
                if results:
                    for found, one in zip(others, timed, strict=True):
                        found.append(Timing(**case.model_dump(), **one))
                    continue
                for arm, one in zip(arms, timed, strict=True):
                    turns.advance(1, note=f"{arm.spec.name}: quality and samples")
                    memory = arm.ask("memory")
                    written[arm.spec.name] = _copies(arm, asked.get(arm.spec.name, ()), briefed)
                    results.append(_result(arm, one | memory, written[arm.spec.name]))
    turns.advance(0)
    scored = score_arms(results, written, briefed)
    return [
        result.model_copy(update={"others": found})
        for result, found in zip(scored, others, strict=True)
    ]


@dataclass
class _Turns:
    """The arms' turns at a case, and how far all of them are."""

    n_runs: int
    meter: Meter | None
    progress: Tracker
    n_left: int = 0
    n_done: int = 0

    def take(self, arms: Sequence[Arm], case: Case) -> list[Answer]:
        """What each arm took, run by run; the first turn of each warms up and does not count."""
        asked = case.model_dump(exclude={"n_threads"})
        runs: list[list[Answer]] = [[] for _ in arms]
        for number in range(self.n_runs + 1):
            for arm, found in zip(arms, runs, strict=True):
                self.advance(1, note=f"{arm.spec.name}: {case.label}")
                before = self.meter.read() if self.meter else ()
                answer = arm.ask("latency", **asked)
                if self.meter:
                    answer["joules"] = self.meter.joules(before, self.meter.read())
                if number:
                    found.append(answer)
        return [_timed(found) for found in runs]

    def advance(self, n: int, note: str = "") -> None:
        """Tell how far all turns are, before the next begins."""
        self.progress(self.n_done, self.n_done + self.n_left, note=note)
        self.n_done += n
        self.n_left -= n


def _timed(runs: Sequence[Answer]) -> Answer:
    """The fields of `Timed`."""
    return {
        "ttft_ms": [run["ttft_ms"] for run in runs],
        "itl_ms": [gap for run in runs for gap in run["itl_ms"]],
        "prefill_tok_s": statistics.median(run["prefill_tok_s"] for run in runs),
        "decode_tok_s": [run["decode_tok_s"] for run in runs],
        "joules": [run["joules"] for run in runs if "joules" in run],
    }


def _copies(arm: Arm, samples: Sequence[Pair], briefed: Briefed | None) -> dict[str, Written]:
    """What an arm writes, greedily, for each of the samples; for briefs as their channels want."""
    written = {}
    for pair in samples:
        channel = briefed.channel(pair.id) if briefed else None
        answer = arm.ask(
            "sample",
            messages=list(pair.messages),
            new_tokens=channel.max_new_tokens if channel else SAMPLE_TOKENS,
            one_line=channel.one_line if channel else "\n" not in pair.completion,
        )
        written[pair.id] = Written.of(answer)
    return written


def _result(arm: Arm, measured: Answer, copies: Mapping[str, Written]) -> ArmResult:
    quality: Answer = {}
    if arm.spec.reference is not None:
        quality = arm.ask(
            "quality",
            reference=str(arm.spec.reference),
            teacher_vocabulary=arm.spec.teacher_vocabulary,
        )
        quality["n_quality_tokens"] = quality.pop("n_tokens")
    return ArmResult(
        arm=arm.spec.name,
        made_from=arm.spec.made_from,
        samples={name: written.text for name, written in copies.items()},
        **measured,
        **arm.facts,
        **quality,
    )


def settings_of(wish: BenchSection) -> BenchSettings:
    """What a recipe asks of every arm."""
    return BenchSettings(
        n_threads=wish.n_threads or physical_cores(),
        prompt_tokens=wish.prompt_tokens,
        new_tokens=wish.new_tokens,
        n_runs=wish.n_runs,
    )


def arms_of(run: Run) -> list[ArmSpec]:
    """Teacher and student of a run, before and after export and quantization.

    A teacher whose weights the run does not need is not measured.
    """
    known = run.known_reference
    torch, fp32 = "student-torch-fp32", "student-fp32"
    of_teacher = _of_teacher(run.teacher.path, run.teacher_bundle, known)
    specs = [
        *(of_teacher if run.recipe.opens_teacher else []),
        ArmSpec(torch, run.student, True, known, made_from=REFERENCE_ARM),
        ArmSpec(fp32, run.student_bundle, False, known, made_from=torch),
    ]
    if run.quantized_bundle != run.student_bundle and run.recipe.export.scheme != "fp32":
        specs.append(ArmSpec("student-int8", run.quantized_bundle, False, known, made_from=fp32))
    return specs


def _of_teacher(model: Path, bundle: Path | None, reference: Path | None) -> list[ArmSpec]:
    """The arms of a teacher: in PyTorch, and as its own int8 bundle where there is one."""
    arms = [ArmSpec(REFERENCE_ARM, model, True, reference, True)]
    if bundle is not None:
        arms.append(ArmSpec(INT8_TEACHER, bundle, False, reference, True, REFERENCE_ARM))
    return arms


def bench_run(run: Run) -> BenchReport:
    """The bench at the end of a run: teacher and student, before and after export and int8."""
    settings = settings_of(run.recipe.bench)
    specs = arms_of(run)
    copied, shown = requests_of(run)
    asked = {spec.name: copied for spec in specs}
    with tracked("    bench", "steps") as progress:
        arms = measure_arms(specs, settings, asked, progress, briefs_of(run, copied))
    report = report_of(run.recipe.name, settings, specs[0], arms, shown, **of_run(run))
    write_report(report, run.folder)
    return report


def bench_bundles(
    paths: Sequence[Path],
    teacher: str | None,
    settings: BenchSettings,
    int8_teacher: bool = True,
    requests: Requests = NOTHING,
) -> BenchReport:
    """`kdexport bench`: bundles side by side, and a teacher in PyTorch where one is named.

    The teacher is scored on the reference of the first bundle that has one. ``int8_teacher``: its
    own int8 bundle is measured too; where none can be made of it, a line says so. ``requests``:
    what every arm writes copy for, which is scored.
    """
    names = arm_names(paths)
    bundles = [open_bundle(path) for path in paths]
    known = {bundle.manifest_sha256: name for name, bundle in zip(names, bundles, strict=True)}
    specs = [
        bundle_arm(name, bundle, settings, known)
        for name, bundle in zip(names, bundles, strict=True)
    ]
    if teacher is not None:
        from kdexport.measuring.teacher_bundle import teacher_bundle_or_why
        from kdexport.measuring.vocabularies import check_teacher
        from kdexport.sources import resolve_teacher

        model = resolve_teacher(teacher, where="--teacher")
        scored = zip(bundles, specs, strict=True)
        bundle, reference = next(((b, s.reference) for b, s in scored if s.reference), (None, None))
        if bundle is not None and reference is not None:
            check_teacher(model.path, bundle, reference)
        made = teacher_bundle_or_why(model) if int8_teacher else None
        if isinstance(made, str):
            say(f"{INT8_TEACHER} is left out: {made}")
            made = None
        specs = [*_of_teacher(model.path, made, reference), *specs]
    with tracked("bench", "steps") as progress:
        of_each = {spec.name: requests.pairs for spec in specs}
        arms = measure_arms(specs, settings, of_each, progress, requests.briefed)
    shown = spread(requests.pairs, N_SHOWN)
    return report_of(" and ".join(names), settings, specs[0], arms, shown)


def report_of(
    name: str,
    settings: BenchSettings,
    baseline: ArmSpec,
    arms: Sequence[ArmResult],
    shown: Sequence[Pair],
    **about: Any,
) -> BenchReport:
    """What a bench that ends now has found, with the copy for ``shown`` side by side."""
    return BenchReport(
        name=name,
        settings=settings,
        arms=list(arms),
        baseline=baseline.name,
        losses=stage_losses(arms),
        samples=gather_samples(arms, {pair.id: request_of(pair) for pair in shown}),
        **of_bench(),
        **about,
    )


def arm_names(paths: Sequence[Path]) -> list[str]:
    """A name for each bundle, as short as keeps them apart: its folder's, its path, or numbered."""
    ways = (
        [path.resolve().name for path in paths],
        [str(path) for path in paths],
        [f"{path} ({number})" for number, path in enumerate(paths, start=1)],
    )
    taken = {REFERENCE_ARM, INT8_TEACHER}
    return next(names for names in ways if len({*names, *taken}) == len(paths) + len(taken))


def bundle_arm(
    name: str, bundle: Bundle, settings: BenchSettings, known: Mapping[str, str]
) -> ArmSpec:
    """The arm of a bundle that can hold what will be measured; ``known``: arms by their hash."""
    manifest, path = bundle.manifest, bundle.path
    for case in settings.cases:
        check_room(case.prompt_tokens, case.new_tokens, manifest.model.max_length, where=str(path))
    parent = known.get(manifest.parent.manifest_sha256) if manifest.parent else None
    if "reference.npz" not in manifest.files:
        return ArmSpec(name, path, made_from=parent)
    check_files(bundle, {"reference.npz"})
    return ArmSpec(name, path, reference=bundle.file("reference.npz"), made_from=parent)
