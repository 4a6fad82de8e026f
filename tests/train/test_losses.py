"""Each loss against a few lines of numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdexport.train.losses import LOSSES, distance, hidden_distance
from kdexport.train.targets import Targets, log_remainder


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def logits(seed: int, n: int = 5, v: int = 11) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, v)) * 3, rng.normal(size=(n, v)) * 3


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_forward_kl_is_numpys(temperature: float) -> None:
    teacher, student = logits(0)
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    expected = (p * np.log(p / q)).sum(-1)
    found = distance(
        "forward_kl", torch.tensor(student), Targets(torch.tensor(np.log(p))), temperature
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def top_k(p: np.ndarray, k: int) -> Targets:
    best = torch.tensor(np.log(p)).topk(k, dim=-1)
    return Targets(best.values, best.indices, log_remainder(best.values))


def test_the_tail_counts_as_one_event() -> None:
    teacher, student = logits(1)
    p, q = softmax(teacher), softmax(student)
    order = np.argsort(-p, -1)[:, :4]
    pk, qk = np.take_along_axis(p, order, -1), np.take_along_axis(q, order, -1)
    pt, qt = 1 - pk.sum(-1), 1 - qk.sum(-1)
    expected = (pk * np.log(pk / qk)).sum(-1) + pt * np.log(pt / qt)
    found = distance("forward_kl", torch.tensor(student), top_k(p, 4), 1.0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@given(st.integers(0, 10_000), st.integers(1, 9))
def test_top_k_never_exceeds_the_exact_value(seed: int, k: int) -> None:
    teacher, student = logits(seed)
    p = softmax(teacher)
    exact = distance("forward_kl", torch.tensor(student), Targets(torch.tensor(np.log(p))), 1.0)
    bound = distance("forward_kl", torch.tensor(student), top_k(p, k), 1.0)
    assert (bound <= exact + 1e-4).all()
    assert (bound >= -1e-5).all()


def test_draws_from_the_tail_make_it_unbiased() -> None:
    teacher, student = logits(3)
    p, q = softmax(teacher), softmax(student)
    rng = np.random.default_rng(0)
    few = top_k(p, 3)
    assert few.ids is not None and few.tail is not None
    rest = p.copy()
    np.put_along_axis(rest, few.ids.numpy(), 0, -1)
    rest /= rest.sum(-1, keepdims=True)
    drawn = np.stack([rng.choice(p.shape[1], size=20_000, p=row) for row in rest])
    targets = Targets(
        torch.cat([few.logprobs, torch.tensor(np.log(np.take_along_axis(p, drawn, -1)))], -1),
        torch.cat([few.ids, torch.tensor(drawn)], -1),
        few.tail,
        drawn.shape[-1],
    )
    # The tail weighs less than 0.2, log p/q has a deviation of about 4: 0.2 * 4 / sqrt(20,000).
    np.testing.assert_allclose(
        distance("forward_kl", torch.tensor(student), targets, 1.0),
        (p * np.log(p / q)).sum(-1),
        atol=0.02,
    )


@pytest.mark.parametrize("name", LOSSES)
def test_equal_distributions_cost_nothing(name: str) -> None:
    teacher, _ = logits(2)
    targets = Targets(torch.log_softmax(torch.tensor(teacher), -1))
    value = distance(name, torch.tensor(teacher), targets, 1.0)
    torch.testing.assert_close(value, torch.zeros_like(value), atol=1e-5, rtol=0)


def test_gradient_at_t_squared_does_not_shrink_with_temperature() -> None:
    teacher, student = logits(3)

    def gradient(temperature: float) -> float:
        z = torch.tensor(student, requires_grad=True)
        soft = Targets(torch.log_softmax(torch.tensor(teacher) / temperature, -1))
        (temperature**2 * distance("forward_kl", z, soft, temperature)).sum().backward()
        assert z.grad is not None
        return float(z.grad.norm())

    assert gradient(50.0) == pytest.approx(gradient(100.0), rel=0.1)


def test_hidden_distance_is_relative_to_the_teacher() -> None:
    rng = np.random.default_rng(3)
    h, t = rng.normal(size=(2, 5, 8)).astype(np.float32)
    expected = ((h - t) ** 2).sum(-1) / (t**2).sum(-1)
    found = hidden_distance(torch.from_numpy(h), torch.from_numpy(t))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)
    assert hidden_distance(torch.zeros(1, 4), torch.zeros(1, 4)).item() == 0


def kl(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return np.asarray((p * np.log(p / q)).sum(-1))


def adaptive(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """A token at a time: the head is the likeliest tokens up to half of the mass."""
    found = []
    for one, other in zip(p, q, strict=True):
        order = np.argsort(-one)
        size = int(np.searchsorted(np.cumsum(one[order]), 0.5)) + 1
        gap = np.abs(one - other)
        share = gap[order[:size]].sum() / gap.sum()
        found.append(share * kl(one, other) + (1 - share) * kl(other, one))
    return np.asarray(found)


FORMULAS = {
    "forward_kl": kl,
    "reverse_kl": lambda p, q: kl(q, p),
    "jsd": lambda p, q: 0.5 * kl(p, (p + q) / 2) + 0.5 * kl(q, (p + q) / 2),
    "skew_kl": lambda p, q: kl(p, 0.1 * p + 0.9 * q),
    "skew_reverse_kl": lambda p, q: kl(q, 0.1 * q + 0.9 * p),
    "total_variation": lambda p, q: np.abs(p - q).sum(-1) / 2,
    "adaptive_kl": adaptive,
    "uld": lambda p, q: np.abs(np.sort(p, -1) - np.sort(q, -1)).sum(-1),
}


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_each_loss_is_its_formula(name: str, temperature: float) -> None:
    teacher, student = logits(7)
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    found = distance(name, torch.tensor(student), Targets(torch.tensor(np.log(p))), temperature)
    np.testing.assert_allclose(found, FORMULAS[name](p, q), rtol=1e-4, atol=1e-5)  # float32


def test_standardised_logits_have_mean_0_and_deviation_1_on_both_sides() -> None:
    teacher, student = logits(8)

    def standard(z: np.ndarray) -> np.ndarray:
        return np.asarray((z - z.mean(-1, keepdims=True)) / z.std(-1, keepdims=True))

    expected = kl(softmax(standard(teacher) / 2), softmax(standard(student) / 2))
    soft = Targets(torch.log_softmax(torch.tensor(teacher) / 2, -1))
    found = distance("standardised_kl", torch.tensor(student), soft, 2.0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_every_loss_has_its_formula() -> None:
    assert {*FORMULAS, "standardised_kl"} == {*LOSSES}


@pytest.mark.parametrize("beta", [0.1, 0.9])
def test_the_parameter_of_a_mix_is_the_share_of_the_teacher(beta: float) -> None:
    teacher, student = logits(9)
    p, q = softmax(teacher), softmax(student)
    m = beta * p + (1 - beta) * q
    soft = Targets(torch.tensor(np.log(p)))
    found = distance("jsd", torch.tensor(student), soft, 1.0, beta)
    np.testing.assert_allclose(found, beta * kl(p, m) + (1 - beta) * kl(q, m), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in FORMULAS if not LOSSES[n].whole])
def test_the_tail_counts_as_one_event_in_each_loss(name: str) -> None:
    teacher, student = logits(10)
    p, q = softmax(teacher), softmax(student)
    order = np.argsort(-p, -1)[:, :4]
    pk, qk = np.take_along_axis(p, order, -1), np.take_along_axis(q, order, -1)
    events = [np.concatenate([x, 1 - x.sum(-1, keepdims=True)], -1) for x in (pk, qk)]
    found = distance(name, torch.tensor(student), top_k(p, 4), 1.0)
    np.testing.assert_allclose(found, FORMULAS[name](*events), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_extreme_logits_are_finite(name: str) -> None:
    teacher = torch.tensor([[300.0, 0.0, -300.0, 5.0], [0.0, 0.0, 0.0, 200.0]])
    z = torch.tensor([[-300.0, 300.0, 0.0, 1.0], [100.0, -100.0, 0.0, 0.0]], requires_grad=True)
    distance(name, z, Targets(torch.log_softmax(teacher, -1)), 1.0).sum().backward()
    assert z.grad is not None and z.grad.isfinite().all()
