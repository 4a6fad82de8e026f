"""A bench report as one page: self-contained, without scripts, for screen, phone and paper.

Knows which number goes where; what it looks like is in `page.html.j2`, the drawing in `charts`.
"""

import importlib.util
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import yaml
from markupsafe import Markup

from kdexport.verdict.charts import (
    Bar,
    Bubble,
    Spread,
    bar_chart,
    bubble_chart,
    line_chart,
    spread_chart,
)
from kdexport.verdict.quality_tables import NOISE, grids, loss_label
from kdexport.verdict.report import ArmResult, BenchReport, TrainPoint, percentile, short, summary
from kdexport.verdict.table import COLUMNS, fixed, footnotes, table_rows

TEMPLATE = "page.html.j2"


@dataclass(frozen=True)
class Card:
    """One large number with what it means."""

    number: str
    unit: str
    meaning: str


@dataclass(frozen=True)
class Figure:
    """A chart with its heading and one sentence on how to read it."""

    heading: str
    svg: Markup
    reading: str


@dataclass(frozen=True)
class Curve:
    """A number of the training's log against steps. ``is_noisy``: shown smoothed, too."""

    heading: str
    y_label: str
    of: Callable[[TrainPoint], float | None]
    reading: Callable[[TrainPoint], str]
    is_noisy: bool = False


def render_html(report: BenchReport, numbers: str = "bench.json") -> str:
    """The whole page as text; whatever the report holds is escaped.

    ``numbers``: the file beside the page that has them.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(
        report=report,
        numbers=numbers,
        summary=summary(report),
        cards=cards(report),
        columns=COLUMNS,
        rows=table_rows(report),
        footnotes=footnotes(report),
        grids=grids(report),
        figures=figures(report),
        can_draw=can_draw(),
        samples=_samples(report),
        stages=[(name, _duration(seconds)) for name, seconds in report.stages.items()],
        total=_duration(sum(report.stages.values())),
        command=shlex.join(report.command),
        recipe=yaml.safe_dump(report.recipe, sort_keys=False, allow_unicode=True),
    )


def cards(report: BenchReport) -> list[Card]:
    """The numbers of the arm that the report is about, as far as they were measured."""
    hero, baseline = report.hero, report.baseline_arm
    if hero is None:
        return []
    than = baseline.label if baseline else ""
    found: list[Card] = []
    speed, faster = hero.decode_mean_tok_s, report.speed_up(hero)
    if speed is not None:
        found.append(Card(short(speed), "tok/s", "decoding, one text at a time"))
    if faster is not None and baseline is not hero:
        found.append(Card(short(faster), "×", f"the speed of {than}"))  # noqa: RUF001
    found.append(Card(short(hero.size_mb), "MB", "on disk"))
    smaller = report.shrinkage(hero)
    if smaller is not None and baseline is not hero:
        found.append(Card(f"1/{short(smaller)}", "", f"the size of {than}"))
    ttft = hero.ttft_p50_ms
    if ttft is not None:
        found.append(Card(short(ttft), "ms", "to the first token"))
    found.append(Card(short(hero.peak_rss_mb), "MB", "of memory at most, the whole process"))
    kl, top1 = report.kl(hero), report.top1(hero)
    if kl is not None:
        found.append(Card(fixed(kl, 3), "nats", "KL to the teacher, per token"))
    if top1 is not None:
        found.append(Card(fixed(100 * top1, 1), "%", "of tokens as the teacher ranks them first"))
    if hero.copies is not None and hero.copies.pass_rates:
        of_all = hero.copies.pass_rates[0]
        meaning = "of its copy passes all checks"
        if of_all.teacher is not None:
            meaning += f"; of the teacher's {fixed(100 * of_all.teacher.best, 0)} %"
        found.append(Card(fixed(100 * of_all.rate.best, 0), "%", meaning))
    return found


def can_draw() -> bool:
    """Whether what charts are drawn with is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def figures(report: BenchReport) -> list[Figure]:
    """The charts that the report has numbers for; none where nothing can draw them."""
    if not can_draw():
        return []
    arms = report.ordered_arms
    drawn = [_speed(report, arms), _fidelity(report, arms), _lost(report), _gaps(report, arms)]
    return [figure for figure in (*drawn, *_training(report)) if figure is not None]


def _style(report: BenchReport, arm: ArmResult) -> str:
    hero = report.hero
    if hero is not None and arm.arm == hero.arm:
        return "hero"
    return "quiet" if arm.arm == report.baseline else "plain"


def _speed(report: BenchReport, arms: Sequence[ArmResult]) -> Figure | None:
    bars = [
        Bar(
            arm.label,
            arm.decode_mean_tok_s,
            short(arm.decode_mean_tok_s),
            arm.decode_sd_tok_s or 0.0,
            _style(report, arm),
        )
        for arm in arms
        if arm.decode_mean_tok_s is not None
    ]
    if not bars:
        return None
    svg = bar_chart(bars, title="Decoding speed of each arm in tokens per second")
    return Figure("Speed", Markup(svg), "Decoding, tokens per second; the line spans ± 1 sd.")


def _fidelity(report: BenchReport, arms: Sequence[ArmResult]) -> Figure | None:
    bubbles = [
        Bubble(
            arm.label,
            speed,
            kl,
            arm.size_mb,
            f"{arm.label}: {short(speed)} tok/s, KL {kl:.3f} nats, {short(arm.size_mb)} MB",
            _style(report, arm),
        )
        for arm in arms
        if (speed := arm.decode_mean_tok_s) is not None and (kl := report.kl(arm)) is not None
    ]
    if len(bubbles) < 2:
        return None
    svg = bubble_chart(
        bubbles,
        title="Decoding speed against KL to the teacher",
        x_label="tokens per second",
        y_label="KL to the teacher, nats",
    )
    reading = (
        "Right is faster, low is closer to the teacher; the area is the size on disk. "
        "The line joins those that none beats in both."
    )
    return Figure("Speed against fidelity", Markup(svg), reading)


def _lost(report: BenchReport) -> Figure | None:
    """KL that each stage added; what it took away is drawn as none."""
    names = {arm.arm: arm for arm in report.arms}
    bars = [
        Bar(
            loss_label(loss),
            max(loss.kl.value, 0.0),
            NOISE if loss.kl.covers() else fixed(loss.kl.value, 3),
            (loss.kl.high - loss.kl.low) / 2,
            _style(report, names[loss.arm]) if loss.arm in names else "plain",
        )
        for loss in report.losses
    ]
    if not bars:
        return None
    svg = bar_chart(bars, title="KL to the teacher that each stage added")
    reading = (
        "KL to the teacher that a stage added, nats per token; 95 % of the bootstrap over texts."
    )
    return Figure("What each stage cost", Markup(svg), reading)


def _gaps(report: BenchReport, arms: Sequence[ArmResult]) -> Figure | None:
    spreads = []
    for arm in arms:
        marks = [percentile(arm.itl_ms, q) for q in (1, 25, 50, 75, 99)]
        p1, p25, p50, p75, p99 = (mark or 0.0 for mark in marks)
        if p1 > 0:
            text = f"{short(p50)} ms, p99 {short(p99)}"
            spreads.append(Spread(arm.label, (p1, p25, p50, p75, p99), text, _style(report, arm)))
    if not spreads:
        return None
    svg = spread_chart(
        spreads, title="Time between two tokens of each arm", x_label="milliseconds, logarithmic"
    )
    reading = "Line: 1st to 99th percentile; box: middle half; bar: median."
    return Figure("Time between tokens", Markup(svg), reading)


def _training(report: BenchReport) -> list[Figure]:
    """Training's curves: what it minimised, how near the student came, and the learning rate."""
    found = []
    for curve in CURVES:
        points = [(float(p.step), y) for p in report.training if (y := curve.of(p)) is not None]
        if len(points) < 2:
            continue
        svg = line_chart(
            smoothed(points) if curve.is_noisy else points,
            title=f"{curve.heading} against steps",
            x_label="steps",
            y_label=curve.y_label,
            behind=points if curve.is_noisy else (),
        )
        found.append(Figure(curve.heading, Markup(svg), curve.reading(report.training[-1])))
    return found


def smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Each y as the mean of those around it, a tenth of them all, fewer towards the ends."""
    reach = len(points) // 20
    ys = [y for _, y in points]
    found = []
    for at, (x, _) in enumerate(points):
        near = min(reach, at, len(points) - 1 - at)
        around = ys[at - near : at + near + 1]
        found.append((x, sum(around) / len(around)))
    return found


@dataclass(frozen=True)
class Shown:
    """One arm's copy for a brief. ``check``: why a check drops it; empty where none does."""

    label: str
    copy: str
    check: str | None
    is_hero: bool


def _samples(report: BenchReport) -> list[tuple[str, list[Shown]]]:
    """Prompt -> what each arm wrote, in the order of the table."""
    hero = report.hero
    return [
        (
            sample.prompt,
            [
                Shown(
                    arm.label,
                    sample.copies[arm.arm],
                    sample.checks.get(arm.arm),
                    hero is not None and arm.arm == hero.arm,
                )
                for arm in report.ordered_arms
                if arm.arm in sample.copies
            ],
        )
        for sample in report.samples
    ]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


CURVES = (
    Curve(
        "Training loss",
        "loss, nats per token",
        lambda point: point.loss,
        lambda last: "What is minimised, with its weights; the bold line is its running mean.",
        is_noisy=True,
    ),
    Curve(
        "Distillation",
        "KL on validation pairs, nats",
        lambda point: point.kl,
        lambda last: (
            f"{last.step:,} steps, {last.tokens:,} target tokens in {_duration(last.elapsed_s)}; "
            "the best student is kept."
        ),
    ),
    Curve(
        "Learning rate",
        "learning rate",
        lambda point: point.lr,
        lambda last: "Warm-up, then a cosine over what is left of the budget.",
    ),
)
