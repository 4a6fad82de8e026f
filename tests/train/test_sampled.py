"""A few drawn tokens give sums over the whole vocabulary on average, and its gradient."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdexport.train.data import Encoded, collate
from kdexport.train.losses import LOSSES, distance
from kdexport.train.model import load_model
from kdexport.train.sampled import Drawn, draw, sampled
from kdexport.train.targets import Targets
from kdexport.train.teacher import live_targets

N_DRAWS = 4_000
VOCABULARY = 40


def logits(seed: int, spread: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    teacher, student = rng.normal(0, spread, (2, VOCABULARY))
    return torch.log_softmax(torch.tensor(teacher).float(), -1), torch.tensor(student).float()


def many(logprobs: torch.Tensor, n: int, seed: int = 0) -> Drawn:
    """The same distribution drawn from anew for each row."""
    return draw(logprobs.expand(N_DRAWS, -1), n, torch.Generator().manual_seed(seed))


def estimates(drawn: Drawn) -> torch.Tensor:
    """The distributions that training sees, [N, V]."""
    targets = drawn.targets()
    assert targets.stands_for is not None
    shares = targets.logprobs.exp() * targets.stands_for
    return torch.zeros(len(shares), VOCABULARY).scatter_add(1, drawn.ids, shares)


def within(found: torch.Tensor, expected: torch.Tensor, error: torch.Tensor | None = None) -> None:
    """The mean over draws is the expected value: within five standard errors."""
    if error is None:
        error = found.double().std(0) / len(found) ** 0.5
    difference = (found.double().mean(0) - expected.double()).abs()
    assert (difference <= 5 * error + 1e-5).all()


@settings(max_examples=10)
@given(st.integers(0, 10**6), st.sampled_from([0.1, 1.0, 3.0, 8.0]), st.integers(1, 16))
def test_the_mean_of_what_is_drawn_is_the_distribution(seed: int, spread: float, n: int) -> None:
    teacher, _ = logits(seed, spread)
    drawn = many(teacher, n)
    found = estimates(drawn)
    p, worth = teacher.exp(), drawn.worth[0].exp()
    error = (worth * p - p * p).clamp(min=0).sqrt() / N_DRAWS**0.5
    within(found, p, error + worth / N_DRAWS)  # and of rare tokens a few hits more
    torch.testing.assert_close(found.sum(-1), torch.ones(N_DRAWS), rtol=1e-4, atol=1e-4)
    ordered = drawn.ids.sort(dim=-1).values
    assert (ordered[:, 1:] > ordered[:, :-1]).all()  # no token twice


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if not loss.whole])
def test_the_mean_loss_is_that_of_the_whole_distribution(name: str) -> None:
    teacher, student = logits(1)
    whole = distance(name, student[None], Targets(teacher[None]), 1.0)
    found = distance(name, student.expand(N_DRAWS, -1), many(teacher, 8).targets(), 1.0)
    within(found[:, None], whole)


def test_the_mean_gradient_is_that_of_the_whole_distribution() -> None:
    teacher, student = logits(2)

    def gradient(targets: Targets, n_rows: int) -> torch.Tensor:
        z = student.repeat(n_rows, 1).requires_grad_()
        distance("forward_kl", z, targets, 1.0).sum().backward()
        assert z.grad is not None
        return z.grad

    whole = gradient(Targets(teacher[None]), 1)[0]
    torch.testing.assert_close(whole, torch.softmax(student, -1) - teacher.exp())
    within(gradient(many(teacher, 12).targets(), N_DRAWS), whole)


def test_less_is_left_to_chance_than_by_draws_with_replacement() -> None:
    """The same number of tokens; half of the squared error at least is gone."""
    for seed in range(5):
        teacher, _ = logits(seed)
        generator = torch.Generator().manual_seed(0)
        again = torch.multinomial(
            teacher.exp().expand(N_DRAWS, -1), 12, replacement=True, generator=generator
        )
        counted = torch.zeros(N_DRAWS, VOCABULARY).scatter_add(
            1, again, torch.full(again.shape, 1 / 12)
        )
        errors = [
            (x - teacher.exp()).square().mean() for x in (estimates(many(teacher, 12)), counted)
        ]
        assert errors[0] < 0.5 * errors[1]


def test_impossible_tokens_count_for_nothing() -> None:
    """A teacher that allows three tokens, asked for five."""
    logprobs = torch.full((1, VOCABULARY), -torch.inf)
    logprobs[0, [4, 9, 30]] = torch.tensor([0.5, 0.3, 0.2]).log()
    student = logits(0)[1].expand(N_DRAWS, -1)
    drawn = many(logprobs[0], 5)
    found = distance("forward_kl", student, drawn.targets(), 1.0)
    q = torch.log_softmax(student[0], -1)[[4, 9, 30]]
    p = torch.tensor([0.5, 0.3, 0.2])
    expected = (p * (p.log() - q)).sum()
    torch.testing.assert_close(found, expected.expand(N_DRAWS))


def test_the_same_batch_is_drawn_alike(llama: Path) -> None:
    batch = collate([Encoded("a", np.arange(5, 15), 4, 4)])
    few: Any = sampled(live_targets(load_model(llama), None, 1.0), 12)
    one, other = few(batch), few(batch)
    assert torch.equal(one.ids, other.ids) and one.ids.shape == (6, 12)
    assert torch.equal(one.worth, other.worth)
