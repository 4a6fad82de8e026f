"""Training with rounded weights sees what export will write."""

from pathlib import Path

import numpy as np
import pytest
import torch

from kdexport.export.bundles import export_bundle
from kdexport.export.kernels import KERNELS
from kdexport.export.parity import mean_kl
from kdexport.export.quantize import quantize_bundle
from kdexport.export.rounding import round_matrix
from kdexport.runtime.session import open_session
from kdexport.train.data import Encoded, collate
from kdexport.train.model import load_model, save_model
from kdexport.train.objective import Objective
from kdexport.train.rounding import (
    COLUMN,
    GRIDS,
    ROWS,
    WIDE,
    Grids,
    Rounding,
    round_weight,
    straight,
)
from kdexport.train.step import Stepper
from kdexport.train.teacher import live_targets
from tests.models import make_family

KERNEL_OF = {
    "int8": "wide8",
    "amx": "column8",
    "int8-portable": "rows8u",
    "int8-block": "block8",
    "int4": "block4",
}

GRIDS_OF = {name: grids().body for name, grids in GRIDS.items()} | {"int8": WIDE, "amx": COLUMN}


@pytest.mark.parametrize("scheme", KERNEL_OF)
def test_a_rounded_weight_is_left_by_export_as_it_is(scheme: str) -> None:
    weight = torch.randn(48, 128, generator=torch.Generator().manual_seed(0))
    grid = GRIDS_OF[scheme]
    rounded = round_weight(weight, grid)
    assert not torch.equal(rounded, weight)
    exported = round_matrix(rounded.numpy().T, KERNELS[KERNEL_OF[scheme]].grid).matrix().T
    # A step of 4 bits is a 15th of the range; where the two grids part, they would by half a step.
    np.testing.assert_allclose(rounded.numpy(), exported, atol=2e-3 * float(weight.abs().max()))


@pytest.mark.parametrize("scheme", GRIDS)
def test_a_rounded_student_computes_what_its_bundle_will(scheme: str, tmp_path: Path) -> None:
    # Two layers: in more of them, the last bits of float32 move an activation over a border, and
    # that others, until the noise of rounding itself is reached.
    source = make_family(tmp_path / "model", "qwen3", hidden_size=128)
    student, ids = load_model(source), torch.arange(3, 67)[None]
    rounding = Rounding(student, GRIDS[scheme]())

    def logits() -> np.ndarray:
        with torch.no_grad():
            hidden = student.base_model(ids).last_hidden_state[0]
            return (hidden @ student.get_output_embeddings().weight.T).numpy()

    exact = logits()
    with rounding(student):
        aware = logits()
        save_model(student, tmp_path / "student", tokenizer_from=source)
    bundle = export_bundle(tmp_path / "student", tmp_path / "fp32", name="student")
    quantized = quantize_bundle(bundle, scheme, tmp_path / "quantized")
    found = open_session(quantized.path).score(ids[0].tolist())
    # Seen: at most a thousandth of it; with the weights smoothed off their grid, 0.4 of it.
    assert mean_kl(aware, found) <= 0.1 * mean_kl(exact, aware)


@pytest.mark.parametrize("axis", [0, 1])
def test_no_weight_is_further_than_half_a_step_from_its_value_but_at_the_short_end(
    axis: int,
) -> None:
    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(1))
    rounded = round_weight(weight, WIDE, inputs=axis)
    blocks = (weight if axis else weight.T).reshape(-1, 128)
    step = blocks.abs().amax(1, keepdim=True) / 127
    apart = ((rounded if axis else rounded.T).reshape(-1, 128) - blocks).abs()
    # One end of the grid has a number less: what lies there is clipped by up to a step.
    assert (apart <= step * 1.05).all()  # the scale itself is rounded to half precision
    assert (apart <= step * 0.51).double().mean() > 0.99


def test_the_gradient_passes_rounded_activations_as_it_is() -> None:
    x = torch.randn(3, 64, requires_grad=True)
    made = straight(x, 32)
    made.backward(torch.full_like(x, 2.0))  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert (x.grad == 2).all()
    step = x.detach().reshape(-1, 32).abs().amax(1, keepdim=True) / 127
    assert ((made - x).detach().reshape(-1, 32).abs() <= 0.501 * step).all()


def test_a_rounded_step_updates_the_weights_that_are_not_rounded(llama: Path) -> None:
    rng = np.random.default_rng(0)
    batch = collate([Encoded(f"e{n}", rng.integers(3, 300, size=12), 3, 3) for n in range(4)])
    student, targets = load_model(llama), live_targets(load_model(llama), None, 1.0)
    rounding = Rounding(student, Grids(ROWS))
    layer = next(m for m in student.modules() if isinstance(m, torch.nn.Linear))
    before = layer.weight.detach().clone()
    with rounding(student):
        assert not torch.equal(layer.weight, before)
    assert torch.equal(layer.weight, before)
    optimizer = torch.optim.SGD(student.parameters(), lr=1e-3)
    stepper = Stepper(student, optimizer, Objective(), rounding=rounding)
    stepper.step([batch], targets, 1e-3, 0.9)
    moved = (layer.weight.detach() - before).abs()
    assert moved.max() > 0
    coarse = round_weight(before, ROWS)
    assert not torch.allclose(layer.weight.detach(), coarse, atol=float(moved.max()) / 2)
