"""The most capable student within a budget: candidates are exported, timed, and one is chosen.

Their weights are random, since neither speed nor size depends on them. Most capable is the one of
most parameters besides embeddings and head (Kaplan et al. 2020, section 3.2: loss follows those).
"""

import itertools
import json
import shutil
import statistics
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdexport.errors import InputError
from kdexport.pipeline.preflight import sizes_of
from kdexport.pipeline.run import Run
from kdexport.recipe.sections import BenchSection
from kdexport.recipe.student import BudgetSection
from kdexport.system.console import say, tracked
from kdexport.system.files import write_whole
from kdexport.system.journal import fingerprint
from kdexport.system.machine import machine_facts, physical_cores
from kdexport.train.model import save_model
from kdexport.train.shapes import Shapes, config_of, n_computing, shapes_of
from kdexport.train.sizes import StudentSpec, new_model
from kdexport.verdict.choices import BUDGET, limits_text


@dataclass(frozen=True)
class Cost:
    """What a candidate's bundle costs. ``tpot_ms``: median time between tokens."""

    tpot_ms: float
    size_mb: float


@dataclass(frozen=True)
class Candidate:
    """A shape and what is known of it. ``n_parameters``: besides embeddings and head.

    ``cost``: None where others say enough: a smaller one does not fit, or a larger one does.
    """

    shape: StudentSpec
    n_parameters: int
    cost: Cost | None = None


def fits(cost: Cost, budget: BudgetSection) -> bool:
    """Whether a cost is within a budget."""
    return excess(cost, budget) <= 1


def excess(cost: Cost, budget: BudgetSection) -> float:
    """The largest share of a limit that a cost takes."""
    pairs = ((cost.tpot_ms, budget.tpot_ms), (cost.size_mb, budget.size_mb))
    return max(spent / limit for spent, limit in pairs if limit is not None)


def measured(
    shapes: Shapes, budget: BudgetSection, measure: Callable[[StudentSpec], Cost]
) -> dict[StudentSpec, Cost]:
    """The costs of as few candidates as tell the deepest one of each width that fits.

    ``shapes``: a row a width, a column a depth, ascending. What is wider or deeper costs more, so
    the border between what fits and what does not is a stair, and is walked down.
    """
    found: dict[StudentSpec, Cost] = {}
    width, depth = 0, len(shapes[0]) - 1
    while width < len(shapes) and depth >= 0:
        shape = shapes[width][depth]
        found[shape] = measure(shape)
        if fits(found[shape], budget):
            width += 1
        else:
            depth -= 1
    return found


def most_capable(candidates: Sequence[Candidate], budget: BudgetSection) -> Candidate:
    """The candidate of most parameters among those that fit, the quicker of equals.

    Raises InputError, naming the one that is nearest, where none fits.
    """
    known = [(c, c.cost) for c in candidates if c.cost is not None]
    able = [(c, cost) for c, cost in known if fits(cost, budget)]
    if able:
        return max(able, key=lambda of: (of[0].n_parameters, -of[1].tpot_ms))[0]
    nearest, cost = min(known, key=lambda of: excess(of[1], budget))
    raise InputError(
        f"no candidate is within {_limits(budget)}; the nearest, {_name(nearest.shape)}, takes "
        f"{cost.tpot_ms:.1f} ms a token and {cost.size_mb:.1f} MB",
        where="student.budget",
        remedy="allow more, keep fewer tokens (student.vocab_size), or choose another scheme",
    )


def candidate_shapes(run: Run, config: Any) -> Shapes:
    """The candidates of a recipe with a budget, for a teacher of this configuration."""
    return shapes_of(config, sizes_of(run), cut=run.recipe.student.init == "prune")


def choose(
    run: Run, teacher: Any, kept_ids: Sequence[int] | None, tokenizer: Any = None
) -> StudentSpec:
    """The sizes of the most capable student within the recipe's budget.

    What is measured is kept in runs/NAME/budget.json as it comes, and not measured again there.
    ``tokenizer``: the trimmed one, of ``kept_ids``. Raises InputError where nothing fits.
    """
    budget = run.recipe.student.budget
    assert budget is not None
    cut = run.recipe.student.init == "prune"
    shapes = candidate_shapes(run, teacher.config)
    configs = {
        shape: config_of(teacher.config, shape, kept_ids, cut=cut)
        for row in shapes
        for shape in row
    }
    ledger = Ledger(run.folder / BUDGET, _ledger_key(run, kept_ids))
    number = itertools.count(1)
    n_most = len(shapes) + len(shapes[0]) - 1
    with tracked("    candidates", "measured", n_most) as progress:

        def measure(shape: StudentSpec) -> Cost:
            if (known := ledger.costs.get(_name(shape))) is None:
                model = new_model(configs[shape], teacher, kept_ids)
                known = cost_of(run, model, tokenizer)
                ledger.note(shape, known)
            progress(next(number), n_most, note=_name(shape))
            return known

        costs = measured(shapes, budget, measure)
    candidates = [
        Candidate(shape, n_computing(config), costs.get(shape)) for shape, config in configs.items()
    ]
    for line in table(candidates, budget):
        say(f"    {line}")
    chosen = most_capable(candidates, budget)
    ledger.conclude(candidates, budget, chosen)
    say(f"    chosen: {_name(chosen.shape)}")
    return chosen.shape


def cost_of(run: Run, model: Any, tokenizer: Any) -> Cost:
    """Export a model as the student will be, and time it as the bench does."""
    from kdexport.export.bundles import export_bundle
    from kdexport.export.quantize import Wishes, quantize_bundle

    folder = run.checkpoints / "candidate"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        save_model(model, folder / "model", tokenizer_from=run.teacher.path, tokenizer=tokenizer)
        bundle = export_bundle(folder / "model", folder / "fp32", name="candidate")
        wish = run.recipe.export
        if wish.scheme != "fp32":
            wishes = Wishes(kv_cache=wish.kv_cache)
            bundle = quantize_bundle(bundle, wish.scheme, folder / "quantized", wishes)
        return time_bundle(bundle.path, run.recipe.bench)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def time_bundle(bundle: Path, wish: BenchSection) -> Cost:
    """The cost of a bundle, in a process of its own; the first of the runs is a warm-up."""
    from kdexport.measuring.arms import ArmSpec, running

    asked = {"prompt_tokens": wish.prompt_tokens, "new_tokens": wish.new_tokens}
    n_threads = wish.n_threads or physical_cores()
    with running([ArmSpec("candidate", bundle)], n_threads) as (arm,):
        runs = [arm.ask("latency", **asked) for _ in range(wish.n_runs + 1)][1:]
        gaps = [gap for run in runs for gap in run["itl_ms"]]
        return Cost(statistics.median(gaps), arm.facts["size_mb"])


def costs_asked(run: Run) -> object:
    """What measured costs depend on beside teacher, shape and vocabulary."""
    bench = run.recipe.bench.model_dump(include={"n_threads", "prompt_tokens", "new_tokens"})
    return [run.recipe.export.model_dump(), bench]


def _ledger_key(run: Run, kept_ids: Sequence[int] | None) -> str:
    """Costs are of one machine: its model of CPU and its cores tell it from others."""
    facts = machine_facts()
    return fingerprint(
        run.teacher.fingerprint, kept_ids, costs_asked(run), [facts.cpu, facts.n_cores]
    )


class Ledger:
    """runs/NAME/budget.json: what candidates cost, and which one was chosen."""

    def __init__(self, path: Path, key: str) -> None:
        self._path = path
        self._key = key
        self.costs: dict[str, Cost] = {}
        with suppress(OSError, ValueError, KeyError, TypeError):  # none, or of other wishes
            content = json.loads(path.read_text("utf-8"))
            if content["key"] == key:
                self.costs = {name: Cost(**cost) for name, cost in content["costs"].items()}

    def note(self, shape: StudentSpec, cost: Cost) -> None:
        """Keep a measurement, so that a kill does not lose it."""
        self.costs[_name(shape)] = cost
        self._write({})

    def conclude(
        self, candidates: Sequence[Candidate], budget: BudgetSection, chosen: Candidate
    ) -> None:
        """Write down all candidates and the one that was chosen."""
        rows = [
            {
                "shape": _name(c.shape),
                **{k: v for k, v in asdict(c.shape).items() if v is not None},
                "n_parameters": c.n_parameters,
                **(asdict(c.cost) if c.cost else {}),
                "fits": fits(c.cost, budget) if c.cost else None,
                "chosen": c is chosen,
            }
            for c in candidates
        ]
        self._write({"budget": budget.model_dump(), "candidates": rows})

    def _write(self, more: dict[str, Any]) -> None:
        costs = {name: asdict(cost) for name, cost in self.costs.items()}
        content = {"key": self._key, "costs": costs, **more}
        write_whole(self._path, [json.dumps(content, indent=1)])


def table(candidates: Sequence[Candidate], budget: BudgetSection) -> list[str]:
    """The candidates as lines of text; of those that are not measured, neither ms nor MB."""
    lines = [f"candidates for {_limits(budget)}:", _line("shape", "M computing", "ms/token", "MB")]
    for candidate in candidates:
        size, cost = f"{candidate.n_parameters / 1e6:.1f}", candidate.cost
        if cost is None:
            lines.append(_line(_name(candidate.shape), size, "-", "-"))
            continue
        numbers = (f"{cost.tpot_ms:.2f}", f"{cost.size_mb:.1f}")
        verdict = "fits" if fits(cost, budget) else "too much"
        lines.append(f"{_line(_name(candidate.shape), size, *numbers)}  {verdict}")
    return lines


def _line(shape: str, *numbers: str) -> str:
    return f"{shape:<34}" + "".join(f"{number:>12}" for number in numbers)


def _name(shape: StudentSpec) -> str:
    """As in "11 layers, 384 wide, 6 heads, 1024 channels"."""
    words = {
        "n_layers": "layers",
        "hidden_size": "wide",
        "n_heads": "heads",
        "intermediate_size": "channels",
    }
    given = {name: getattr(shape, name) for name in words}
    return ", ".join(f"{value} {words[name]}" for name, value in given.items() if value is not None)


def _limits(budget: BudgetSection) -> str:
    return limits_text(budget.tpot_ms, budget.size_mb)
