"""A bundle's model card: README.md, with the metadata that model hubs read, from a bench's report.

The metadata is that of Hugging Face's model cards (``model-index``: Papers with Code's results).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml

from kdexport.verdict.cases import interval_text, markdown_cases
from kdexport.verdict.measures import MEASURES, read_measure
from kdexport.verdict.pass_rates import Group
from kdexport.verdict.report import ArmResult, BenchReport, quality_texts, summary
from kdexport.verdict.table import markdown_table

TEMPLATE = "card.md.j2"
TOLD = ("perplexity", "kl_mean", "kl_p99", "top1", "pass_rate", "decode_tok_s", "size_mb")
"""The measures that stand in the metadata."""
TOLD_OF_RECIPE: Sequence[tuple[str, str, Sequence[str]]] = (
    ("student made by", "student", ("init", "n_layers", "intermediate_size", "vocab_size")),
    ("data", "data", ("pairs", "briefs", "max_train", "max_validation", "max_test")),
    (
        "distilled with",
        "train",
        ("loss", "lambda", "task_weight", "temperature", "targets", "prompt_weight", "lr"),
    ),
    ("trained for", "train", ("epochs", "max_steps", "max_minutes", "batch_size", "max_length")),
)
"""What a card tells of a recipe: a row's name, the section, its fields."""


@dataclass(frozen=True)
class Origin:
    """What a bundle's manifest says of it."""

    name: str
    scheme: str
    teacher: str | None
    licence: str | None
    n_parameters: int
    n_layers: int
    vocab_size: int
    max_length: int


def model_card(report: BenchReport, arm: ArmResult, origin: Origin) -> str:
    """The card of the bundle that ``arm`` measured, as Markdown."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # Markdown
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    metadata = card_metadata(report, arm, origin)
    return environment.get_template(TEMPLATE).render(
        metadata=yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True),
        name=origin.name,
        summary=summary(report),
        scheme=origin.scheme,
        facts=[(fact, value.replace("|", "\\|")) for fact, value in _facts(report, origin)],
        table=markdown_table(report).rstrip(),
        cases=markdown_cases(report).rstrip(),
        losses=[
            {
                "arm": _label(report, loss.arm),
                "made_from": _label(report, loss.made_from),
                "kl": interval_text(loss.kl),
                "top1": interval_text(loss.top1),
            }
            for loss in report.losses
        ],
        passing=[_passing(group) for group in (arm.copies.pass_rates if arm.copies else ())],
        machine=report.machine.cpu,
        created=report.created,
        command=shlex.join(report.command) or "kdexport bench",
        licence=origin.licence,
    )


def card_metadata(report: BenchReport, arm: ArmResult, origin: Origin) -> dict[str, Any]:
    """The YAML at a card's head."""
    values = {name: read_measure(report, arm, name) for name in TOLD}
    metrics = [
        {"type": name, "value": round(value, 6), "name": f"{name} {MEASURES[name].unit}".rstrip()}
        for name, value in values.items()
        if value is not None
    ]
    result = {
        "task": {"type": "text-generation"},
        "dataset": {"name": quality_texts(report), "type": report.name, "split": arm.quality_split},
        "metrics": metrics,
    }
    stated: Mapping[str, Any] = {
        "license": origin.licence,
        "base_model": origin.teacher,
        "base_model_relation": "quantized" if origin.scheme != "fp32" else None,
        "library_name": "kdexport",
        "pipeline_tag": "text-generation",
        "tags": ["onnx", "distillation", "marketing", origin.scheme],
        "model-index": [{"name": origin.name, "results": [result]}] if metrics else None,
    }
    return {name: value for name, value in stated.items() if value is not None}


def _facts(report: BenchReport, origin: Origin) -> Iterator[tuple[str, str]]:
    yield "teacher", origin.teacher or "unknown"
    yield (
        "student",
        f"{origin.n_parameters / 1e6:.1f} M parameters, {origin.n_layers} layers, vocabulary of "
        f"{origin.vocab_size:,}, texts up to {origin.max_length:,} tokens",
    )
    for fact, part, names in TOLD_OF_RECIPE:
        if told := _words(report.recipe.get(part), names):
            yield fact, told
    if report.training:
        last = report.training[-1]
        yield (
            "training took",
            f"{last.step:,} steps, {last.tokens:,} tokens, {last.elapsed_s / 60:.0f} minutes",
        )


def _passing(group: Group) -> dict[str, str]:
    """A row of how often copy passes all checks."""
    return {
        "name": group.title.replace("_", " "),
        "n": f"{group.n_briefs:,}",
        "own": f"{100 * group.rate.best:.0f} %",
        "teacher": f"{100 * group.teacher.best:.0f} %" if group.teacher else "",
        "ratio": interval_text(group.ratio) if group.ratio else "",
    }


def _words(section: Any, names: Sequence[str]) -> str:
    """Values of a part of a recipe by their names, without those that it does not use."""
    if not isinstance(section, dict):
        return ""
    values = [(name, section.get(name)) for name in names]
    return ", ".join(f"{n.replace('_', ' ')} {_value(v)}" for n, v in values if v or v == 0)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return " + ".join(_value(one) for one in value)
    if isinstance(value, dict):  # a loss of several, or a line from one value to another
        return str(value["name"] if "name" in value else " to ".join(map(str, value.values())))
    return str(value)


def _label(report: BenchReport, name: str) -> str:
    arm = report.arm(name)
    return arm.label if arm else name
