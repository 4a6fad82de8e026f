"""The most capable candidate within a budget, by costs that are given, and once by real ones."""

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdexport.errors import InputError
from kdexport.measuring.circumstances import budget_of
from kdexport.pipeline import budget as budgets
from kdexport.pipeline.budget import Candidate, Cost, excess, fits, measured, most_capable, table
from kdexport.pipeline.cutting import make_student
from kdexport.pipeline.run import RECIPE, Run
from kdexport.pipeline.stages import origin_of
from kdexport.recipe.student import BudgetSection
from kdexport.system.files import write_whole
from kdexport.train.model import load_config
from kdexport.train.sizes import StudentSpec

Open = Callable[..., Run]
sizes = st.lists(st.integers(1, 20), min_size=1, max_size=6, unique=True).map(sorted)


def grid(depths: list[int], widths: list[int]) -> list[list[StudentSpec]]:
    return [[StudentSpec(n_layers=d, intermediate_size=w) for d in depths] for w in widths]


def cost_of(shape: StudentSpec, a_layer: float = 0.3) -> Cost:
    """As of a machine on which layers cost time besides what they hold."""
    depth, width = shape.n_layers or 0, shape.intermediate_size or 0
    return Cost(1 + depth * (a_layer + 0.1 * width), 5 + depth * width)


@given(depths=sizes, widths=sizes, tpot=st.floats(1, 50), size=st.floats(5, 300))
def test_the_best_of_all_that_fit_is_found_by_few_measurements(
    depths: list[int], widths: list[int], tpot: float, size: float
) -> None:
    shapes = grid(depths, widths)
    budget = BudgetSection(tpot_ms=tpot, size_mb=size)
    costs = measured(shapes, budget, cost_of)
    assert len(costs) <= len(depths) + len(widths) - 1
    every = [shape for row in shapes for shape in row]

    def power(shape: StudentSpec) -> int:
        return (shape.n_layers or 0) * (shape.intermediate_size or 0)

    candidates = [Candidate(shape, power(shape), costs.get(shape)) for shape in every]
    able = [shape for shape in every if fits(cost_of(shape), budget)]
    if not able:
        with pytest.raises(InputError, match="no candidate is within"):
            most_capable(candidates, budget)
        return
    chosen = most_capable(candidates, budget)
    assert chosen.cost is not None and fits(chosen.cost, budget)
    assert chosen.n_parameters == max(power(shape) for shape in able)


def test_the_quicker_of_equals_is_taken() -> None:
    one, other = StudentSpec(n_layers=4), StudentSpec(n_layers=2)
    candidates = [Candidate(one, 8, Cost(3, 9)), Candidate(other, 8, Cost(2, 9))]
    assert most_capable(candidates, BudgetSection(tpot_ms=4)).shape is other


def test_a_limit_that_is_not_named_does_not_bind() -> None:
    assert excess(Cost(8, 30), BudgetSection(tpot_ms=4)) == 2
    assert excess(Cost(8, 30), BudgetSection(size_mb=60)) == 0.5
    assert not fits(Cost(8, 30), BudgetSection(tpot_ms=4, size_mb=60))


def test_where_nothing_fits_the_nearest_is_named_in_one_line() -> None:
    shapes = grid([2, 4], [64, 128])
    budget = BudgetSection(tpot_ms=4, size_mb=40)
    costs = measured(shapes, budget, cost_of)
    candidates = [Candidate(s, 1, costs.get(s)) for row in shapes for s in row]
    with pytest.raises(InputError) as caught:
        most_capable(candidates, budget)
    assert caught.value.message == (
        "no candidate is within 4 ms a token and 40 MB; the nearest, 2 layers, 64 channels, takes "
        "14.4 ms a token and 133.0 MB"
    )
    assert caught.value.where == "student.budget"


def test_the_table_shows_what_was_measured_and_what_need_not_be() -> None:
    fit, beyond, unknown = (StudentSpec(n_layers=n, hidden_size=64, n_heads=4) for n in (2, 3, 4))
    candidates = [
        Candidate(fit, 2_000_000, Cost(3.21, 20)),
        Candidate(beyond, 3_000_000, Cost(5, 30)),
        Candidate(unknown, 4_000_000),
    ]
    lines = table(candidates, BudgetSection(tpot_ms=4))
    assert lines[0] == "candidates for 4 ms a token:"
    assert [line.split()[-1] for line in lines[2:]] == ["fits", "much", "-"]
    assert "2 layers, 64 wide, 4 heads" in lines[2] and "3.21" in lines[2]


def costs_by(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Candidates cost as many MB as they have layers; the list fills with what was asked."""
    asked: list[int] = []

    def of(run: Run, model: object, tokenizer: object) -> Cost:
        asked.append(model.config.num_hidden_layers)  # type: ignore[attr-defined]
        return Cost(1.0, float(asked[-1]))

    monkeypatch.setattr(budgets, "cost_of", of)
    return asked


def test_what_was_measured_is_not_measured_again(
    open_run: Open, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = costs_by(monkeypatch)
    sets = ["student.intermediate_size=96", "student.vocab_size=290"]
    run = open_run(*sets, "student.budget.size_mb=4.5")
    make_student(run)
    assert asked == [5, 4]
    assert load_config(run.student_init).num_hidden_layers == 4
    assert "chosen: 4 layers, 96 channels" in capsys.readouterr().err
    make_student(open_run(*sets, "student.budget.size_mb=2.5", "student.budget.tpot_ms=2"))
    assert asked == [5, 4, 2]
    make_student(open_run(*sets, "student.budget.size_mb=4.5", "export.scheme=int4"))
    assert asked == [5, 4, 2, 5, 4]  # of another scheme
    make_student(open_run(*sets, "student.budget.size_mb=4.5", "export.kv_cache=int8"))
    assert asked == [5, 4, 2, 5, 4, 5, 4]  # of another cache
    found = json.loads((run.folder / "budget.json").read_text())
    assert [row["n_layers"] for row in found["candidates"] if row["chosen"]] == [4]
    told = budget_of(run)
    assert told is not None and (told.size_mb, told.tpot_ms) == (4.5, None)
    assert told.chosen is not None and told.chosen.shape == "4 layers, 96 channels"
    costs = [(one.size_mb, one.fits) for one in told.candidates]
    assert costs == [(None, None), (4.0, True), (5.0, False)]
    write_whole(run.folder / RECIPE, [run.recipe.model_dump_json(by_alias=True)])
    assert origin_of(run.folder)["sizes chosen"].startswith("4 layers, 96 channels (1 ms a token")
    assert budget_of(open_run(*sets)) is None  # whose sizes are named


@pytest.mark.parametrize("init", ["scratch", "projected"])
def test_a_new_student_has_the_chosen_width(
    init: str, open_run: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs_by(monkeypatch)
    run = open_run(f"student.init={init}", "student.budget.size_mb=2")
    make_student(run)
    config = load_config(run.student_init)
    shape = (config.num_hidden_layers, config.hidden_size, config.num_attention_heads)
    assert shape == (2, 64, 4)


def test_candidates_are_exported_and_timed(open_run: Open) -> None:
    """By what was measured, whatever it is: the budget of the second trip is the first's cost."""
    sets = ["student.intermediate_size=96", "bench.prompt_tokens=8", "bench.new_tokens=4"]
    sets += ["bench.n_runs=1", "bench.n_threads=1", "student.n_layers=4"]
    first = open_run(*sets, "student.budget.size_mb=1000", "student.budget.tpot_ms=1e5")
    make_student(first)
    found = json.loads((first.folder / "budget.json").read_text())
    (cost,) = found["costs"].values()
    assert cost["tpot_ms"] > 0 and cost["size_mb"] > 0.05
    assert not (first.checkpoints / "candidate").exists()
    with pytest.raises(InputError, match="the nearest, 4 layers, 96 channels"):
        make_student(open_run(*sets, f"student.budget.size_mb={cost['size_mb'] * 0.9}"))
