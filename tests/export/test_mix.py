"""A budget is kept at few bytes: the greedy walk against brute force, the mix against its graph."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdexport.bundle import Bundle
from kdexport.errors import InputError
from kdexport.export import mix
from kdexport.export.assign import assign
from kdexport.export.calibrate import Observed
from kdexport.export.draft import Draft, save_weights
from kdexport.export.kernels import KERNELS
from kdexport.export.mix import WEIGHTS, Entry, Trials, choose_mix, within
from kdexport.export.parity import mean_kl
from tests.export.conftest import Seen
from tests.export.drafts import Array, correlated, logits, matrix, product_draft

Ledger = list[Entry]
Steps = Mapping[tuple[str, str], Entry]
costs = st.floats(1e-4, 1.0)
sizes = st.integers(1, 1000)


def total(ledger: Ledger) -> tuple[float, int]:
    return sum(entry.kl for entry in ledger), sum(entry.n_bytes for entry in ledger)


@st.composite
def ladders(draw: st.DrawFn) -> tuple[Ledger, Steps]:
    """Some products in their cheapest kernel, and their better ones, each with less KL."""
    ledger, steps = [], {}
    for number in range(draw(st.integers(1, 6))):
        first = Entry(f"p{number}", "k0", 4, draw(sizes), draw(costs))
        ledger.append(first)
        entry = first
        for level in range(draw(st.integers(0, 3))):
            kl, n_bytes = entry.kl * draw(st.floats(0, 1)), entry.n_bytes + draw(sizes)
            better = replace(entry, kernel=f"k{level + 1}", n_bytes=n_bytes, kl=kl)
            steps[entry.product, entry.kernel] = better
            entry = better
    return ledger, steps


def walked(ledger: Ledger, steps: Steps, budget: float) -> Ledger:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mix, "_step_up", lambda entry, *_: steps.get((entry.product, entry.kernel)))
        return within(ledger, budget, None, {})  # type: ignore[arg-type]


@given(ladders(), st.lists(st.floats(0, 3), min_size=2, max_size=5))
def test_less_kl_never_costs_fewer_bytes(
    ladder: tuple[Ledger, Steps], budgets: list[float]
) -> None:
    ledger, steps = ladder
    mixes = [walked(ledger, steps, budget) for budget in sorted(budgets, reverse=True)]
    for budget, found in zip(sorted(budgets, reverse=True), mixes, strict=True):
        assert [entry.product for entry in found] == [entry.product for entry in ledger]
        at_the_top = all((e.product, e.kernel) not in steps for e in found)
        assert total(found)[0] <= budget or at_the_top
        assert found == ledger or total(ledger)[0] > budget  # nothing is bought that is not asked
    for looser, tighter in pairwise(mixes):
        for before, after in zip(looser, tighter, strict=True):
            assert after.kl <= before.kl and after.n_bytes >= before.n_bytes


@given(st.lists(st.tuples(costs, sizes), min_size=1, max_size=7), st.floats(0, 2))
def test_it_is_within_a_step_of_the_cheapest(
    products: list[tuple[float, int]], budget: float
) -> None:
    """All subsets tried: taken in the order of KL a byte, one step too many is the most."""
    ledger = [Entry(f"p{n}", "k0", 4, 0, kl) for n, (kl, _) in enumerate(products)]
    steps = {
        (e.product, "k0"): replace(e, kernel="k1", kl=0.0, n_bytes=n_bytes)
        for e, (_, n_bytes) in zip(ledger, products, strict=True)
    }
    whole = sum(kl for kl, _ in products)
    subsets = (c for n in range(len(products) + 1) for c in combinations(products, n))
    kept = [
        sum(b for _, b in c) for c in subsets if whole - sum(kl for kl, _ in c) <= budget + 1e-9
    ]
    n_bytes = total(walked(ledger, steps, budget))[1]
    assert min(kept) - 1e-9 <= n_bytes <= min(kept) + max(b for _, b in products)


def test_the_step_that_saves_most_a_byte_is_the_first() -> None:
    ledger = [Entry("wide", "k0", 4, 100, 0.5), Entry("narrow", "k0", 4, 10, 0.1)]
    steps = {
        ("wide", "k0"): Entry("wide", "k1", 8, 200, 0.1),  # 0.004 a byte
        ("narrow", "k0"): Entry("narrow", "k1", 8, 20, 0.01),  # 0.009 a byte
    }
    assert walked(ledger, steps, 0.55) == [ledger[0], steps["narrow", "k0"]]
    assert walked(ledger, steps, 0.5) == [steps["wide", "k0"], steps["narrow", "k0"]]


def observed_product(n_rows: int) -> tuple[Draft, dict[str, Observed]]:
    x = correlated(64, n_rows)
    return product_draft(matrix(n_rows, 16)), {"x": Observed(np.abs(x).max(0), x.T @ x, x)}


def test_costs_fall_as_the_square_of_the_error() -> None:
    draft, observed = observed_product(128)
    before = Entry("y", "block4", 4, 0, 1.0)
    (after,) = within([before], 0.99, draft, observed)
    assert (after.kernel, after.bits) == ("wide8", 8)
    assert after.n_bytes == 128 * 16 + 2 * 16
    assert 1 / 1000 < after.kl < 1 / 30  # four bits more: 256 times less, but for activations
    (last,) = within([before], 0.0, draft, observed)
    assert (last.kernel, last.bits, last.kl, last.n_bytes) == ("float32", 32, 0, 4 * 128 * 16)


def test_columns_that_no_block_divides_go_to_float32() -> None:
    draft, observed = observed_product(48)
    (found,) = within([Entry("y", "rows8u", 8, 0, 1.0)], 0.5, draft, observed)
    assert (found.kernel, found.bits, found.kl, found.n_bytes) == ("float32", 32, 0, 4 * 48 * 16)


@pytest.fixture(scope="module")
def trials(
    parents: dict[str, Bundle],
    seen: dict[str, Seen],
    texts: list[Array],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Trials]:
    folder = tmp_path_factory.mktemp("trials")
    draft = seen["llama"][0]
    places = save_weights([draft], folder / WEIGHTS)
    made = Trials(parents["llama"], draft, texts[:1], folder, places, [])
    made.exact = made._run(draft)
    yield made


def whole_plan(draft: Draft, body: str) -> dict[str, str]:
    return {node.output[0]: body for node in draft.products()} | {"logits": "wide8"}


def test_no_plan_costs_nothing(trials: Trials) -> None:
    assert trials.kl({}) == pytest.approx(0, abs=1e-9)
    assert trials.kl({"logits": "float32"}) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("body", ["block4", "rows8u"])
def test_a_plan_costs_what_its_graph_does(trials: Trials, seen: dict[str, Seen], body: str) -> None:
    draft, observed = seen["llama"]
    plan = whole_plan(draft, body)
    for known in (None, observed):
        changed = draft.copy()
        assign(changed, plan, known)
        found = logits(trials.bundle, changed, trials.texts[0])
        expected = logits(trials.bundle, draft, trials.texts[0])
        assert trials.kl(plan, known) == pytest.approx(mean_kl(expected, found), rel=1e-2)
    assert [n.op_type for n in trials.draft.graph.node].count("MatMulNBits") == 0


BUDGETS = {"block4": (1.0, 0.05, 0.002), "rows8u": (0.1, 0.003, 0.001)}  # nats, of a tiny model


@pytest.mark.parametrize("compensated", [True, False])
@pytest.mark.parametrize("body", BUDGETS)
def test_budgets_are_kept_and_cost_bytes(
    parents: dict[str, Bundle],
    seen: dict[str, Seen],
    texts: list[Array],
    body: str,
    compensated: bool,
) -> None:
    bundle, (draft, observed) = parents["llama"], seen["llama"]
    plan = whole_plan(draft, body)
    told: list[tuple[int, int]] = []
    sizes = []
    for budget in BUDGETS[body]:
        ledger = choose_mix(
            bundle,
            draft,
            plan,
            observed,
            texts[2:],
            budget,
            lambda done, of: told.append((done, of)),
            compensated,
        )
        assert [entry.product for entry in ledger] == list(plan)
        changed = draft.copy()
        chosen = {entry.product: entry.kernel for entry in ledger}
        assign(changed, chosen, observed if compensated else None)
        expected, found = (logits(bundle, d, texts[2]) for d in (draft, changed))
        assert mean_kl(expected, found) <= budget * 1.01  # threads sum in another order
        sizes.append(total(ledger)[1])
        assert all(
            entry.bits == KERNELS[k].bits for entry in ledger if (k := entry.kernel) in KERNELS
        )
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    assert set(chosen.values()) - {body, "wide8"}  # the tightest took more
    assert told[: len(plan)] == [(n + 1, len(plan)) for n in range(len(plan))]


def test_a_budget_that_holds_already_changes_nothing(
    parents: dict[str, Bundle], seen: dict[str, Seen], texts: list[Array]
) -> None:
    draft, observed = seen["llama"]
    plan = whole_plan(draft, "block4")
    ledger = choose_mix(
        parents["llama"], draft, plan, observed, texts[2:], 10.0, lambda *_: None, False
    )
    assert {entry.product: entry.kernel for entry in ledger} == plan


def test_a_mix_is_judged_as_it_will_be_rounded(
    trials: Trials, seen: dict[str, Seen], texts: list[Array]
) -> None:
    """A budget between what plain rounding costs and what making up for errors does."""
    draft, observed = seen["llama"]
    plan = whole_plan(draft, "block4")
    careful, plain = trials.kl(plan, observed), trials.kl(plan)
    assert careful < 0.9 * plain
    changed = {}
    for compensated in (True, False):
        ledger = choose_mix(
            trials.bundle,
            draft,
            plan,
            observed,
            trials.texts,
            (careful + plain) / 2,
            lambda *_: None,
            compensated,
        )
        changed[compensated] = {e.product: e.kernel for e in ledger} != plan
    assert changed == {True: False, False: True}


@pytest.mark.parametrize("budget", [0.01, -1.0, float("nan")])
def test_a_budget_that_cannot_be_kept_is_refused(
    parents: dict[str, Bundle],
    seen: dict[str, Seen],
    texts: list[Array],
    monkeypatch: pytest.MonkeyPatch,
    budget: float,
) -> None:
    draft, observed = seen["llama"]
    if budget > 0:  # where all that is float32 still errs: there is no such graph
        monkeypatch.setattr(Trials, "kl", lambda *_: 0.25)
    with pytest.raises(InputError, match="no mix of kernels keeps to a KL of") as caught:
        choose_mix(
            parents["llama"],
            draft,
            whole_plan(draft, "block4"),
            observed,
            texts[2:],
            budget,
            lambda *_: None,
            False,
        )
    assert "\n" not in str(caught.value) and caught.value.where == "--max-kl"


def test_nothing_is_left_behind(
    parents: dict[str, Bundle],
    seen: dict[str, Seen],
    texts: list[Array],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    draft, observed = seen["llama"]
    nodes, weights = list(draft.graph.node), dict(draft.weights)
    plan = {"logits": "wide8"}
    choose_mix(parents["llama"], draft, plan, observed, texts[2:], 1.0, lambda *_: None, False)
    assert list(tmp_path.iterdir()) == []
    assert list(draft.graph.node) == nodes
    assert all(draft.weights[name] is array for name, array in weights.items())
