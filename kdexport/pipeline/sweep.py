"""`kdexport sweep`: many short distillations of one recipe, each with other values of some fields.

Which values come next is optuna's choice, by what the trials before gave (Akiba et al. 2019; TPE,
Bergstra et al. 2011). `trials.jsonl` is all that is kept of it, a line for each trial that has
ended: from it and the seed the choice of the next is the same after a kill as without one, and a
trial that was cut off goes on from its checkpoint.
"""

import json
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from kdexport.errors import InputError, KdexportError, require_extras
from kdexport.pipeline.run import Run, only_one, open_run, run_stages, stage_prints
from kdexport.pipeline.search import Search, check_searches, parse_search, value_of
from kdexport.pipeline.variants import variant_stages
from kdexport.recipe import DATA_PATHS, Recipe, load_recipe
from kdexport.system.console import say
from kdexport.system.files import write_whole
from kdexport.system.journal import fingerprint
from kdexport.system.machine import make_folder

N_FREE = 5  # trials before values follow from the others, and before any is given up
Params = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """A trial that has ended. ``score``: the lowest KL on the validation pairs, None where none.

    ``state``: finished, given up (behind the others at an evaluation) or diverged. ``scores``: KL
    of each evaluation.
    """

    number: int
    params: Params
    state: str
    score: float | None
    scores: list[float]
    seconds: float
    overrides: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Wish:
    """What is asked of a sweep; ``trial_minutes``: of each trial in place of the recipe's."""

    recipe: Path
    overrides: Sequence[str]
    searches: Sequence[str]
    minutes: float
    n_trials: int | None = None
    trial_minutes: float | None = None


@dataclass(frozen=True)
class Swept:
    """The trials of a sweep, the best first, and the recipe of the best."""

    folder: Path
    trials: list[Trial]
    best: Path

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The trials as JSON values."""
        return [asdict(trial) for trial in self.trials]


class GivenUpError(Exception):
    """A trial that is behind the others."""


class OutOfTimeError(Exception):
    """The sweep's minutes are over."""


def run_sweep(wish: Wish) -> Swept:
    """Search until the minutes or the trials are used up; a second call goes on.

    The minutes count the trials that have ended. Raises KdexportError where none has a score.
    """
    require_extras("sweep")
    searches = sorted((parse_search(text) for text in wish.searches), key=lambda s: s.key)
    budget = [] if wish.trial_minutes is None else [f"train.max_minutes={wish.trial_minutes}"]
    overrides = [*wish.overrides, *budget]
    check_searches(wish.recipe, overrides, searches)
    base = open_run(load_recipe(wish.recipe, overrides))
    run_stages(base, until="student")
    key = fingerprint(stage_prints(base)["distill"], [asdict(search) for search in searches])
    folder = base.folder / "sweeps" / key[:8]
    make_folder(folder)
    with only_one(folder):
        trials = _search(wish, base, folder, searches, overrides)
        ranked = sorted(trials, key=_rank)
        if not ranked or ranked[0].state != "finished":
            raise KdexportError(
                f"no trial has ended within {wish.minutes:g} minutes",
                where="sweep",
                remedy="give the sweep more --minutes, or each trial fewer --trial-minutes",
            )
        best = folder / "best.yaml"
        chosen = load_recipe(wish.recipe, [*wish.overrides, *ranked[0].overrides])
        _write_recipe(best, chosen, ranked[0], len(trials))
    return Swept(folder, ranked, best)


def _rank(trial: Trial) -> tuple[bool, float]:
    return trial.state != "finished", math.inf if trial.score is None else trial.score


def _search(
    wish: Wish, base: Run, folder: Path, searches: Sequence[Search], overrides: Sequence[str]
) -> list[Trial]:
    trials = load_trials(folder / "trials.jsonl")
    deadline = time.monotonic() + 60 * wish.minutes - sum(trial.seconds for trial in trials)
    while wish.n_trials is None or len(trials) < wish.n_trials:
        if time.monotonic() >= deadline:
            break
        number = len(trials)
        params = next_params(trials, searches, base.recipe)
        own = [search.written(params[search.key]) for search in searches]
        say(f"trial {number}: {', '.join(own)}")
        recipe = load_recipe(wish.recipe, [*overrides, *own])
        run = replace(base, recipe=recipe, folder=folder / f"trial-{number:03d}", base=base)
        started = time.monotonic()
        try:
            state, score, scores = _try(run, trials, searches, params, deadline)
        except OutOfTimeError:
            say(f"trial {number} is not at its end: more --minutes go on with it")
            break
        trial = Trial(number, params, state, score, scores, time.monotonic() - started, own)
        _append(folder / "trials.jsonl", trial)
        trials.append(trial)
        shutil.rmtree(run.folder)
        say(f"trial {number}: {state}, KL {'-' if score is None else f'{score:.4f}'}")
    return trials


def _try(
    run: Run,
    trials: Sequence[Trial],
    searches: Sequence[Search],
    params: Params,
    deadline: float,
) -> tuple[str, float | None, list[float]]:
    """Train one trial: how it ended, its lowest KL, and that of each evaluation."""
    from kdexport.pipeline.training import train_trial

    stages = [stage for stage in variant_stages(run) if stage.name in ("select", "student")]
    run_stages(run, stages=stages)
    scores: list[float] = []

    def evaluated(so_far: Sequence[float]) -> None:
        scores[:] = so_far
        if is_behind(trials, searches, params, scores):
            raise GivenUpError

    def is_over() -> bool:
        return time.monotonic() >= deadline

    try:
        score = train_trial(run, evaluated, is_over)
    except GivenUpError:
        return "given up", min(scores), scores
    except InputError:
        raise
    except KdexportError as error:
        say(f"    {error.message}")
        return "diverged", None, scores
    if score is None:
        raise OutOfTimeError
    return "finished", score, scores


def next_params(trials: Sequence[Trial], searches: Sequence[Search], recipe: Recipe) -> Params:
    """The values of the next trial: the recipe's own first, where they are among the searched."""
    own = {search.key: value_of(recipe, search.key) for search in searches}
    if not trials and all(search.holds(own[search.key]) for search in searches):
        return {s.key: str(own[s.key]) if s.choices else own[s.key] for s in searches}
    study = _study(trials, searches, recipe.seed)
    return dict(study.ask(_distributions(searches)).params)


def is_behind(
    trials: Sequence[Trial], searches: Sequence[Search], params: Params, scores: Sequence[float]
) -> bool:
    """Whether a trial's best KL so far is above the median of the others at that evaluation."""
    from optuna.pruners import MedianPruner
    from optuna.trial import TrialState, create_trial

    now = create_trial(
        state=TrialState.RUNNING,
        params=params,
        distributions=_distributions(searches),
        intermediate_values=dict(enumerate(scores)),
    )
    pruner = MedianPruner(n_startup_trials=N_FREE)
    return pruner.prune(_study(trials, searches, 0), now)


def _study(trials: Sequence[Trial], searches: Sequence[Search], seed: int) -> Any:
    """A study of these trials, whose sampler depends on the seed and their number alone."""
    import optuna
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=(seed + len(trials)) % 2**32, n_startup_trials=N_FREE)
    study = optuna.create_study(direction="minimize", sampler=sampler)
    states = {"finished": TrialState.COMPLETE, "given up": TrialState.PRUNED}
    for trial in trials:
        study.add_trial(
            create_trial(
                state=states.get(trial.state, TrialState.COMPLETE),
                params=trial.params,
                distributions=_distributions(searches),
                value=math.inf if trial.score is None else trial.score,
                intermediate_values=dict(enumerate(trial.scores)),
            )
        )
    return study


def _distributions(searches: Sequence[Search]) -> dict[str, Any]:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    def of(search: Search) -> Any:
        if search.choices:
            return CategoricalDistribution(search.choices)
        if search.is_whole:
            return IntDistribution(int(search.low), int(search.high), log=search.in_logs)
        return FloatDistribution(search.low, search.high, log=search.in_logs)

    return {search.key: of(search) for search in searches}


def load_trials(path: Path) -> list[Trial]:
    """The trials that have ended; a last line that a kill cut off is passed over."""
    trials: list[Trial] = []
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        try:
            trials.append(Trial(**json.loads(line)))
        except (ValueError, TypeError):
            break
    return trials


def _append(path: Path, trial: Trial) -> None:
    """Add a line, beside and then in place."""
    lines = [json.dumps(asdict(t)) + "\n" for t in (*load_trials(path), trial)]
    write_whole(path, lines)


def _write_recipe(path: Path, recipe: Recipe, trial: Trial, n_trials: int) -> None:
    """A recipe that runs as it is, under another name, from anywhere its data can be seen."""
    data = {
        name: str(Path(file).absolute())
        for name in DATA_PATHS
        if (file := getattr(recipe.data, name)) is not None
    }
    named = recipe.model_copy(update={"name": f"{recipe.name}-best"[:100]})
    content = named.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    content["data"] |= data
    head = f"# Trial {trial.number} of {n_trials}: KL {trial.score:.4f} on the validation pairs.\n"
    write_whole(path, [head, yaml.safe_dump(content, sort_keys=False, allow_unicode=True)])
