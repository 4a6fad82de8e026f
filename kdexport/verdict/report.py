"""The report of a bench: its data, its JSON, its statistics and the sentence that sums it up.

Does not know how the numbers were measured, nor any model, and imports no torch, onnx or
onnxruntime. The table is in `table`, the page in `page`.
Units are in the names: `_ms` milliseconds, `_s` seconds, `_mb` 10^6 bytes, `kl_*` nats per token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    Field,
    FiniteFloat,
    JsonValue,
    NonNegativeInt,
    ValidationError,
    model_validator,
)

from kdexport.errors import InputError
from kdexport.system.files import write_whole
from kdexport.system.machine import Machine, machine_facts
from kdexport.system.metrics import read_curve
from kdexport.verdict.choices import Matrix, SizeBudget
from kdexport.verdict.scores import CopyScores, Measured, Record, StageLoss, TokenQuality
from kdexport.verdict.timing import Case, Timed, Timing, percentile

__all__ = [
    "ARM_LABELS",
    "INT8_TEACHER",
    "REFERENCE_ARM",
    "ArmResult",
    "BenchReport",
    "BenchSettings",
    "Machine",
    "Sample",
    "TrainPoint",
    "gather_samples",
    "load_report",
    "machine_facts",
    "percentile",
    "quality_texts",
    "report_json_schema",
    "short",
    "summary",
    "training_points",
    "write_report",
    "write_schema",
]

SCHEMA_VERSION = 1
REFERENCE_ARM = "teacher-torch-fp32"
"""The arm whose distribution is the reference of every KL: its own is 0 by definition."""

INT8_TEACHER = "teacher-int8"
"""The teacher's own int8 bundle, beside which the gain of distilling is seen apart."""

ARM_LABELS: dict[str, str] = {
    REFERENCE_ARM: "teacher PyTorch fp32",
    INT8_TEACHER: "teacher ONNX int8",
    "student-torch-fp32": "student PyTorch fp32",
    "student-fp32": "student ONNX fp32",
    "student-int8": "student ONNX int8",
}
"""Known arms in the order in which reports show them; others follow under their own names."""

_NOUNS: dict[str, str] = {
    "teacher-torch-fp32": "teacher in PyTorch",
    "teacher-int8": "int8 teacher",
    "student-torch-fp32": "student in PyTorch",
    "student-fp32": "fp32 student",
    "student-int8": "int8 student",
}


class ArmResult(Timed, TokenQuality):
    """What one arm (a model in an engine, in a process of its own) measured."""

    arm: str
    made_from: str | None = Field(default=None, description="the arm that it was made from")
    engine: str
    n_parameters: NonNegativeInt
    size_mb: FiniteFloat = Field(description="weights or bundle on disk, 10^6 bytes")
    peak_rss_mb: FiniteFloat = Field(description="of the whole process, 10^6 bytes")
    load_s: FiniteFloat
    steady_rss_mb: Measured = Field(default=None, description="after the runs, 10^6 bytes")
    others: list[Timing] = Field(default=[], description="the other cases, in the settings' order")
    quality_split: str = Field(default="test", description="the split of the texts scored")
    samples: dict[str, str] = Field(default={}, description="brief_id -> copy")
    copies: CopyScores | None = Field(default=None, description="those scored beside the teacher's")

    @property
    def label(self) -> str:
        """The arm as tables name it."""
        return ARM_LABELS.get(self.arm, self.arm)


class BenchSettings(Case):
    """What every arm was asked to do: a case, which is the report's own, and others."""

    n_runs: int
    others: list[Case] = Field(default=[])

    @property
    def cases(self) -> list[Case]:
        """All of them, the report's own first."""
        own = {name: getattr(self, name) for name in Case.model_fields}
        return [Case(**own), *self.others]


class Sample(Record):
    """One brief and the copy each arm wrote for it."""

    brief_id: str
    prompt: str
    copies: dict[str, str] = Field(default={}, description="arm -> copy")
    checks: dict[str, str] = Field(
        default={}, description="arm -> what checks find wrong in its copy, empty where nothing"
    )


class TrainPoint(Record):
    """One line of the training log; losses and KL in nats per target token."""

    step: NonNegativeInt
    tokens: NonNegativeInt
    elapsed_s: FiniteFloat
    loss: Measured = None
    kl: Measured = None
    top1: Measured = None
    perplexity: Measured = None
    lr: Measured = None


class BenchReport(Record):
    """Everything a bench found, and everything needed to read it a year later."""

    schema_version: Literal[1] = 1
    name: str
    created: str = Field(description="ISO 8601, UTC")
    machine: Machine
    settings: BenchSettings
    command: list[str] = Field(default=[], description="what was called, word by word")
    arms: list[ArmResult]
    losses: list[StageLoss] = Field(default=[], description="what each stage cost")
    baseline: str = REFERENCE_ARM
    samples: list[Sample] = Field(default=[])
    training: list[TrainPoint] = Field(default=[])
    data: dict[str, str] = Field(default={}, description="what was learnt from, and dropped")
    recipe: dict[str, JsonValue] = Field(default={})
    stages: dict[str, FiniteFloat] = Field(default={}, description="stage -> seconds")
    budget: SizeBudget | None = Field(default=None, description="that the student's sizes kept to")
    matrix: Matrix | None = Field(default=None, description="whose students the arms are")

    @model_validator(mode="after")
    def _arms_differ(self) -> BenchReport:
        names = [arm.arm for arm in self.arms]
        if len(names) != len(set(names)):
            raise ValueError("two arms have the same name")
        return self

    @property
    def ordered_arms(self) -> list[ArmResult]:
        """Arms in the order of `ARM_LABELS`, unknown ones behind them in the order given."""
        known = list(ARM_LABELS)
        return sorted(
            self.arms, key=lambda a: known.index(a.arm) if a.arm in ARM_LABELS else len(known)
        )

    @property
    def baseline_arm(self) -> ArmResult | None:
        """The arm that ratios are relative to, where it was measured."""
        return self.arm(self.baseline)

    @property
    def hero(self) -> ArmResult | None:
        """The arm that the report is about: the most finished student, else the last arm.

        None where it is about several students.
        """
        if self.matrix is not None and len(self.matrix.students) > 1:
            return None
        ordered = self.ordered_arms
        students = [arm for arm in ordered if arm.arm.startswith("student")]
        return students[-1] if students else ordered[-1] if ordered else None

    def arm(self, name: str) -> ArmResult | None:
        """The arm of that name, or None."""
        return next((arm for arm in self.arms if arm.arm == name), None)

    def in_case(self, case: Case) -> BenchReport:
        """The report as if one of its further cases were its own; of arms that were timed in it.

        What does not depend on a case stays.
        """
        at = self.settings.others.index(case)
        timed = [(arm, arm.others[at]) for arm in self.arms if len(arm.others) > at]
        arms = [
            arm.model_copy(
                update={"others": [], **{name: getattr(one, name) for name in Timed.model_fields}}
            )
            for arm, one in timed
        ]
        settings = self.settings.model_copy(update={**case.model_dump(), "others": []})
        return self.model_copy(update={"arms": arms, "settings": settings})

    def speed_up(self, arm: ArmResult) -> float | None:
        """Mean decoding speed of `arm` over that of the baseline arm."""
        baseline = self.baseline_arm
        return _ratio(arm.decode_mean_tok_s, baseline.decode_mean_tok_s if baseline else None)

    def shrinkage(self, arm: ArmResult) -> float | None:
        """Size on disk of the baseline arm over that of `arm`."""
        baseline = self.baseline_arm
        return _ratio(baseline.size_mb if baseline else None, arm.size_mb)

    def kl(self, arm: ArmResult) -> float | None:
        """Mean KL(teacher || arm) in nats per token; 0 for the reference itself."""
        return self._or_reference(arm, arm.kl_mean, 0.0)

    def top1(self, arm: ArmResult) -> float | None:
        """Share of tokens (0 to 1) where arm and teacher agree; 1 for the reference itself."""
        return self._or_reference(arm, arm.top1, 1.0)

    def _or_reference(self, arm: ArmResult, value: float | None, own: float) -> float | None:
        if value is None and arm.arm == REFERENCE_ARM:
            return own if any(other.kl_mean is not None for other in self.arms) else None
        return value


def short(value: float) -> str:
    """About three significant digits without an exponent: 1,234 / 538 / 14.2 / 4.71 / 0.430."""
    size = abs(value)
    decimals = 0 if size >= 99.95 else 1 if size >= 9.995 else 2 if size >= 0.995 else 3
    return f"{value:,.{decimals}f}"


def summary(report: BenchReport, of: ArmResult | None = None) -> str:
    """One sentence of plain text about an arm, by default the one that the report is about."""
    hero, baseline = of or report.hero, report.baseline_arm
    if hero is None:
        return _of_students(report, report.matrix) if report.matrix else "No arm was measured."
    parts = [f"The {_NOUNS.get(hero.arm, hero.arm)} is {short(hero.size_mb)} MB"]
    speed = hero.decode_mean_tok_s
    shrinkage, speed_up = report.shrinkage(hero), report.speed_up(hero)
    if baseline is None or baseline.arm == hero.arm:
        if speed is not None:
            parts.append(f" and decodes {short(speed)} tokens per second")
    else:
        if shrinkage is not None:
            parts.append(f", {_times(shrinkage, 'smaller', 'larger')}")
        if speed_up is not None:
            than = _NOUNS.get(baseline.arm, baseline.arm)
            verb = _times(speed_up, "faster", "slower")
            parts.append(f", and decodes {verb} than the {than}")
    kl = report.kl(hero)
    if kl is not None and hero.arm != REFERENCE_ARM:
        parts.append(f"; KL to the teacher {kl:.3f} nats per token")
        if hero.n_quality_tokens:
            parts.append(f" over {hero.n_quality_tokens:,} tokens of {quality_texts(report)}")
    return "".join(parts) + "."


def _of_students(report: BenchReport, matrix: Matrix) -> str:
    """The same of a report on several students."""
    told = f"{len(matrix.students)} students of one teacher, one for each {matrix.column}"
    arms = ((student.value, report.arm(student.arm)) for student in matrix.students)
    known = [(arm.kl_mean, value) for value, arm in arms if arm and arm.kl_mean is not None]
    if known:
        (least, near), (most, far) = min(known), max(known)
        told += (
            f"; KL to the teacher from {least:.3f} ({near}) to {most:.3f} ({far}) nats per token"
        )
        told += f", each over {quality_texts(report)} of its own"
    return f"{told}."


def quality_texts(report: BenchReport) -> str:
    """The texts that quality was measured on, in words that do not flatter."""
    words = {
        "test": "held-out texts",
        "validation": "the validation texts, which chose the student too",
        "train": "training texts: nothing was held out",
    }
    split = next((arm.quality_split for arm in report.arms if arm.n_quality_tokens), "test")
    return words.get(split, f"{split} texts")


def gather_samples(arms: Sequence[ArmResult], prompts: Mapping[str, str]) -> list[Sample]:
    """Join what the arms wrote (brief_id -> copy) with the prompts (brief_id -> prompt)."""
    return [
        Sample(
            brief_id=brief_id,
            prompt=prompt,
            copies={arm.arm: arm.samples[brief_id] for arm in arms if brief_id in arm.samples},
            checks={
                arm.arm: "; ".join(arm.copies.faults.get(brief_id, ()))
                or arm.copies.reasons.get(brief_id, "")
                for arm in arms
                if arm.copies is not None and brief_id in arm.copies.requests
            },
        )
        for brief_id, prompt in prompts.items()
    ]


def training_points(log: Path) -> list[TrainPoint]:
    """A training log as the points of a report."""
    return [
        TrainPoint(
            step=point.step,
            tokens=point.row["tokens"],
            elapsed_s=point.row["elapsed_s"],
            loss=point.row["loss"],
            lr=point.row["lr"],
            **(point.evaluation or {}),
        )
        for point in read_curve(log)
    ]


def load_report(path: str | Path) -> BenchReport:
    """Read a bench.json, or the one in a folder. Raises InputError with the first thing wrong."""
    file = Path(path)
    file = file / "bench.json" if file.is_dir() else file
    try:
        text = file.read_text(encoding="utf-8")
        if not text.strip():
            raise InputError("is empty", where=str(file), remedy="run kdexport bench")
        raw = json.loads(text)
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot be read ({error})", where=str(file), remedy="run kdexport bench"
        ) from error
    version = raw.get("schema_version", SCHEMA_VERSION) if isinstance(raw, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise InputError(
            f"is a report of schema {version}, this kdexport reads up to {SCHEMA_VERSION}",
            where=str(file),
            remedy="upgrade kdexport",
        )
    try:
        return BenchReport.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "report"
        raise InputError(
            f"{place}: {first['msg']}", where=str(file), remedy="run kdexport bench again"
        ) from error


def write_report(report: BenchReport, folder: str | Path) -> tuple[Path, Path]:
    """Write bench.json and report.html into `folder`, each whole or not at all; their paths."""
    from kdexport.verdict.page import render_html

    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    pages = {
        target / "bench.json": report.model_dump_json(indent=2) + "\n",
        target / "report.html": render_html(report),
    }
    for path, text in pages.items():
        write_whole(path, [text])
    return target / "bench.json", target / "report.html"


def report_json_schema() -> dict[str, Any]:
    """JSON Schema of bench.json."""
    return BenchReport.model_json_schema(mode="serialization")


def write_schema(path: Path) -> None:
    """Write the JSON Schema; a test keeps the one in ``docs`` up to date."""
    write_whole(path, [json.dumps(report_json_schema(), indent=2) + "\n"])


def _ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def _times(ratio: float, more: str, less: str) -> str:
    return f"{short(ratio)} times {more}" if ratio >= 1 else f"{short(1 / ratio)} times {less}"
