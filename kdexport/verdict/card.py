"""A bundle's model card: README.md, with the metadata that model hubs read.

It tells what is known of the bundle, and what a bench found, where one has measured it.

The metadata is that of Hugging Face's model cards (``model-index``: Papers with Code's results).
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import yaml

from kdexport.verdict.cases import interval_text, markdown_cases
from kdexport.verdict.choices import SizeBudget, SizeCandidate, limits_text
from kdexport.verdict.measures import MEASURES, read_measure
from kdexport.verdict.pass_rates import Group
from kdexport.verdict.report import (
    INT8_TEACHER,
    ArmResult,
    BenchReport,
    TrainPoint,
    quality_texts,
    summary,
)
from kdexport.verdict.table import markdown_table

TEMPLATE = "card.md.j2"
HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)@\w+")  # hubs take the id, without the commit
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
    """What a bundle says of itself.

    ``parity_kl``: the most that a token of it differed from what it was made from, in nats.
    ``facts``: how its student came to be (`how_made`), as far as that is known.
    """

    name: str
    scheme: str
    teacher: str | None
    licence: str | None
    n_parameters: int
    n_layers: int
    vocab_size: int
    max_length: int
    parity_kl: float | None = None
    facts: Mapping[str, str] = field(default_factory=dict)


def how_made(
    recipe: Mapping[str, Any],
    training: Sequence[TrainPoint],
    data: Mapping[str, str],
    budget: SizeBudget | None = None,
) -> dict[str, str]:
    """How a student came to be, a fact a row: from its recipe, training log and data card.

    ``budget``: that its sizes were chosen within.
    """
    told = {name: _words(recipe.get(part), names) for name, part, names in TOLD_OF_RECIPE}
    if budget is not None and budget.chosen is not None:
        told["sizes chosen"] = _sizes(budget, budget.chosen)
    if training:
        last = training[-1]
        told["training took"] = (
            f"{last.step:,} steps, {last.tokens:,} tokens, {last.elapsed_s / 60:.0f} minutes"
        )
    told |= {f"texts, {name.replace('_', ' ')}": words for name, words in data.items()}
    return {name: words for name, words in told.items() if words}


def model_card(
    origin: Origin, report: BenchReport | None = None, arm: ArmResult | None = None
) -> str:
    """The card of a bundle, as Markdown; ``arm`` of ``report``: what a bench measured of it."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # Markdown
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made = _made(origin, report, arm)
    return environment.get_template(TEMPLATE).render(
        metadata=yaml.safe_dump(
            card_metadata(origin, report, arm), sort_keys=False, allow_unicode=True
        ),
        name=origin.name,
        scheme=origin.scheme,
        teacher=origin.teacher,
        is_student=bool(made),
        facts=[(name, _in_cell(words)) for name, words in _facts(origin, made, report).items()],
        licence=origin.licence,
        found=None if report is None or arm is None else _found(report, arm),
    )


def _found(report: BenchReport, arm: ArmResult) -> dict[str, Any]:
    """What a bench found, for the template."""
    return {
        "summary": summary(report, arm),
        "table": markdown_table(report, of=arm).rstrip(),
        "cases": markdown_cases(report).rstrip(),
        "losses": [
            {
                "arm": _label(report, loss.arm),
                "made_from": _label(report, loss.made_from),
                "kl": interval_text(loss.kl),
                "top1": interval_text(loss.top1),
            }
            for loss in report.losses
        ],
        "passing": [_passing(group) for group in (arm.copies.pass_rates if arm.copies else ())],
        "machine": report.machine.cpu,
        "created": report.created,
        "command": shlex.join(report.command) or "kdexport bench",
    }


def card_metadata(
    origin: Origin, report: BenchReport | None = None, arm: ArmResult | None = None
) -> dict[str, Any]:
    """The YAML at a card's head. A teacher that is not of a hub is no link there."""
    is_student = bool(_made(origin, report, arm))
    hub = HUB_ID.fullmatch(origin.teacher or "")
    is_quantized = hub is not None and origin.scheme != "fp32" and not is_student
    results = [] if report is None or arm is None else [_result(report, arm)]
    stated: Mapping[str, Any] = {
        "license": origin.licence,
        "base_model": hub and hub[1],
        "base_model_relation": "quantized" if is_quantized else None,
        "library_name": "kdexport",
        "pipeline_tag": "text-generation",
        "tags": ["onnx", *(["distillation"] if is_student else []), "marketing", origin.scheme],
        "model-index": [{"name": origin.name, "results": results}] if results else None,
    }
    return {name: value for name, value in stated.items() if value is not None}


def _result(report: BenchReport, arm: ArmResult) -> dict[str, Any]:
    values = {name: read_measure(report, arm, name) for name in TOLD}
    return {
        "task": {"type": "text-generation"},
        "dataset": {"name": quality_texts(report), "type": report.name, "split": arm.quality_split},
        "metrics": [
            {
                "type": name,
                "value": round(value, 6),
                "name": f"{name} {MEASURES[name].unit}".rstrip(),
            }
            for name, value in values.items()
            if value is not None
        ],
    }


def _made(origin: Origin, report: BenchReport | None, arm: ArmResult | None) -> Mapping[str, str]:
    """How a student came to be, as its bundle tells it, or else its run's report."""
    if origin.facts or report is None or arm is None or arm.arm == INT8_TEACHER:
        return origin.facts
    return how_made(report.recipe, report.training, report.data, report.budget)


def _facts(origin: Origin, made: Mapping[str, str], report: BenchReport | None) -> dict[str, str]:
    """A fact a row."""
    told = {
        "teacher": origin.teacher or "unknown",
        "model": f"{origin.n_parameters / 1e6:.1f} M parameters, {origin.n_layers} layers, "
        f"vocabulary of {origin.vocab_size:,}, texts up to {origin.max_length:,} tokens",
    }
    if report is not None and report.matrix is not None and len(report.matrix.students) == 1:
        (own,) = report.matrix.students
        n_train = f"{own.pairs.get('train', 0):,} training pairs"
        told["student for"] = f"{report.matrix.column} {own.value}: {n_train}"
    told |= made
    if origin.parity_kl is not None:
        beside = "the model in PyTorch" if origin.scheme == "fp32" else "its float32 bundle"
        told["checked when exported"] = (
            f"KL to {beside} at most {origin.parity_kl:.2g} nats, on arbitrary tokens"
        )
    return told


def _in_cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _sizes(budget: SizeBudget, chosen: SizeCandidate) -> str:
    """Which sizes a budget led to, and by what."""
    limits = limits_text(budget.tpot_ms, budget.size_mb)
    costs = ((chosen.tpot_ms, "ms a token"), (chosen.size_mb, "MB"))
    told = " and ".join(f"{cost:.3g} {unit}" for cost, unit in costs if cost is not None)
    measured = f" ({told} with random weights)" if told else ""
    return (
        f"{chosen.shape}{measured}: most parameters that compute of {len(budget.candidates)} "
        f"candidates within {limits}"
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
