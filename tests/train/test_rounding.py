"""Training with rounded weights sees what export will write."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kdexport.errors import InputError
from kdexport.export.bundles import export_bundle
from kdexport.export.parity import mean_kl
from kdexport.export.quantize import SCHEMES, quantize_bundle
from kdexport.pipeline.rounding import kernel_of
from kdexport.runtime.session import open_session
from kdexport.system.interrupts import Interrupted
from kdexport.train import rounding as rounding_module
from kdexport.train.data import Encoded, collate
from kdexport.train.model import load_model, save_model
from kdexport.train.objective import Objective
from kdexport.train.rounding import Kernel, Rounding, straight
from kdexport.train.step import Stepper
from kdexport.train.teacher import live_targets
from tests.models import make_family

RNG = np.random.default_rng(0)
TEXTS = [Encoded(f"e{n}", RNG.integers(3, 300, size=12 + n), 3, 3) for n in range(12)]


def rounding_of(student: torch.nn.Module, scheme: str) -> Rounding:
    kernels = (kernel_of(name) for name in (SCHEMES[scheme].body(), SCHEMES[scheme].head))
    return Rounding(student, *kernels, TEXTS)


def shaken(rounding: Rounding, by: float) -> None:
    """Scales as training may leave them."""
    generator = torch.Generator().manual_seed(1)
    for factors in rounding.factors:
        factors.data.uniform_(-by, by, generator=generator)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_rounded_student_computes_what_its_bundle_will(scheme: str, tmp_path: Path) -> None:
    # Two layers: in more of them, the last bits of float32 move an activation over a border, and
    # that others, until the noise of rounding itself is reached.
    source = make_family(tmp_path / "model", "qwen3", hidden_size=128)
    student, ids = load_model(source), torch.arange(3, 67)[None]
    rounding = rounding_of(student, scheme)

    def logits() -> np.ndarray:
        with torch.no_grad():
            hidden = student.base_model(ids).last_hidden_state[0]
            return (hidden @ student.get_output_embeddings().weight.T).numpy()

    exact = logits()
    rounding.begin(student)
    shaken(rounding, 0.05)
    with rounding(student):
        aware = logits()
        save_model(student, tmp_path / "student", tokenizer_from=source)
    bundle = export_bundle(tmp_path / "student", tmp_path / "fp32", name="student")
    quantized = quantize_bundle(bundle, scheme, tmp_path / "quantized")
    found = open_session(quantized.path).score(ids[0].tolist())
    # Seen: at most a thousandth of it; with the weights smoothed off their grid, 0.4 of it.
    assert mean_kl(aware, found) <= 0.1 * mean_kl(exact, aware)


def test_rounding_makes_up_for_its_errors_on_the_texts(llama: Path) -> None:
    """Nearer to the exact student on these texts than plain rounding, which sees none."""
    exact = load_model(llama)
    batch = collate(TEXTS)
    kernel = kernel_of("block4")
    plain = Kernel(lambda w, gram: kernel.rounded(w, None), kernel.block)

    def apart(body: Kernel) -> float:
        student = load_model(llama)
        Rounding(student, body, kernel_of("wide8"), TEXTS).begin(student)
        with torch.no_grad():
            ours, whole = (m.base_model(batch.ids).last_hidden_state for m in (student, exact))
        return float((ours - whole)[:, :12].square().mean())

    assert apart(kernel) < 0.7 * apart(plain)


def test_no_pad_and_no_order_of_parts_counts(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text alone and among longer ones gives the same sums; later parts see rounded ones."""
    seen: list[np.ndarray] = []

    def rounded(weights: np.ndarray, gram: np.ndarray | None) -> np.ndarray:
        if gram is not None:
            seen.append(gram)
        return weights

    def grams(texts: list[Encoded], at_once: int) -> list[np.ndarray]:
        seen.clear()
        monkeypatch.setattr(rounding_module, "TEXTS_AT_ONCE", at_once)
        kernel = Kernel(rounded, lambda n: n)
        student = load_model(llama)
        Rounding(student, kernel, kernel, texts).begin(student)
        return list(seen)

    together, alone = grams(TEXTS, 8), grams(TEXTS, 1)
    monkeypatch.setattr(rounding_module, "MOST_AT_ONCE", 1)  # a pass for every product
    in_parts = grams(TEXTS, 8)
    assert len(together) == len(alone) == len(in_parts) > 10
    n_tokens = sum(len(text.ids) for text in TEXTS)
    for several, single, part in zip(together, alone, in_parts, strict=True):
        np.testing.assert_allclose(several, single, rtol=1e-4, atol=1e-4 * n_tokens)
        np.testing.assert_array_equal(several, part)


def test_an_interruption_is_heard_while_weights_are_rounded(llama: Path) -> None:
    student = load_model(llama)
    asked = iter([False, False, True])
    with pytest.raises(Interrupted):
        rounding_of(student, "int4").begin(student, lambda: next(asked))


def test_the_gradient_passes_rounded_activations_as_it_is() -> None:
    x = torch.randn(3, 64, requires_grad=True)
    made = straight(x, 32)
    made.backward(torch.full_like(x, 2.0))  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert (x.grad == 2).all()
    step = x.detach().reshape(-1, 32).abs().amax(1, keepdim=True) / 127
    assert ((made - x).detach().reshape(-1, 32).abs() <= 0.501 * step).all()


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])  # Conv1D has its inputs on the other axis
@pytest.mark.parametrize("kernel", ["block4", "rows8u", "column8"])
def test_the_gradient_of_a_factor_is_its_weights(family: str, kernel: str, tmp_path: Path) -> None:
    """As autograd has it where the product of scales and whole numbers is part of the graph."""
    student = load_model(make_family(tmp_path / "model", family, hidden_size=128))
    rounding = Rounding(student, kernel_of(kernel), kernel_of("wide8"), TEXTS)
    rounding.begin(student)
    shaken(rounding, 0.1)
    product = rounding._products[0]
    kept = product.weight.detach().clone()
    slope = torch.randn(kept.shape, generator=torch.Generator().manual_seed(2))
    with rounding(student):
        (product.weight * slope).sum().backward()
        made = product.weight.detach().clone()
    assert torch.equal(product.weight, kept)
    assert product.weight.grad is None
    assert product.factors.grad is not None
    factors = product.factors.detach().clone().requires_grad_()
    again = product.in_blocks(kept) * (1 + factors)
    torch.testing.assert_close(again.detach().reshape(kept.shape), made)
    (again * product.in_blocks(slope)).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(product.factors.grad, factors.grad)


def test_a_rounded_step_trains_scales_and_vectors_alone(llama: Path) -> None:
    student, targets = load_model(llama), live_targets(load_model(llama), None, 1.0)
    rounding = rounding_of(student, "int4")
    rounding.begin(student)
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    parameters = [*student.parameters(), *rounding.factors]
    optimizer = torch.optim.SGD(parameters, lr=1e-3)
    stepper = Stepper(student, optimizer, Objective(), rounding=rounding)
    stepper.step([collate(TEXTS[:4])], targets, 1e-3, 0.9)
    for name, parameter in student.named_parameters():
        assert torch.equal(parameter, before[name]) == (parameter.ndim >= 2), name
    assert all(factors.abs().max() > 0 for factors in rounding.factors)


def test_what_no_block_divides_is_refused(tmp_path: Path) -> None:
    student = load_model(make_family(tmp_path / "model", "qwen3", hidden_size=48))
    with pytest.raises(InputError, match="not divided"):
        rounding_of(student, "int4")
