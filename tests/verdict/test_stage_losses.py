"""What is lost on the way from the teacher to the quantized student, arm by arm."""

import math

import numpy as np
import pytest

from kdexport.verdict.report import ArmResult
from kdexport.verdict.scores import TextSums
from kdexport.verdict.stage_losses import stage_losses
from tests.verdict.fixture import example_report

TEACHER, TORCH, FP32, INT8 = (
    "teacher-torch-fp32",
    "student-torch-fp32",
    "student-fp32",
    "student-int8",
)
TOKENS = [10.0, 20.0, 30.0, 15.0] * 10


def texts(mean_kl: float, share: float, scatter: float = 0.05, **changed: object) -> TextSums:
    """Sums of texts whose KL a token is about ``mean_kl``."""
    rng = np.random.default_rng(5)
    means = mean_kl + rng.normal(0, scatter, size=len(TOKENS))
    columns = {
        "tokens": TOKENS,
        "nll": [t * (1 + m) for t, m in zip(TOKENS, means, strict=True)],
        "kl": [t * m for t, m in zip(TOKENS, means, strict=True)],
        "top1": [t * share for t in TOKENS],
        "teacher_nll": TOKENS,  # one nat a token
    }
    return TextSums.model_validate(columns | changed)


def arms(**scored: TextSums | None) -> list[ArmResult]:
    parents = {TORCH: TEACHER, FP32: TORCH, INT8: FP32}
    given = {name.replace("_", "-"): found for name, found in scored.items()}
    return [
        arm.model_copy(update={"texts": given.get(arm.arm), "made_from": parents.get(arm.arm)})
        for arm in example_report().ordered_arms
    ]


def test_each_stage_is_a_row_beside_the_one_before() -> None:
    found = stage_losses(
        arms(
            teacher_torch_fp32=texts(0, 1, 0),
            student_torch_fp32=texts(0.4, 0.8),
            student_fp32=texts(0.4, 0.8),
            student_int8=texts(0.43, 0.79),
        )
    )
    assert [(row.arm, row.made_from) for row in found] == [
        (TORCH, TEACHER),
        (FP32, TORCH),
        (INT8, FP32),
    ]
    distilled, exported, quantized = found
    assert distilled.kl.value == pytest.approx(0.4, abs=0.02)
    assert not distilled.kl.covers(0)
    assert distilled.top1.value == pytest.approx(0.2)
    assert distilled.ppl_ratio is not None
    assert distilled.ppl_ratio.value == pytest.approx(math.exp(distilled.kl.value))
    assert exported.kl.value == 0
    assert exported.kl.covers(0)
    assert exported.ppl_ratio is not None
    assert exported.ppl_ratio.covers(1)
    assert quantized.kl.value == pytest.approx(0.03)
    assert not quantized.kl.covers(0)
    assert quantized.top1.value == pytest.approx(0.01)


def test_a_loss_smaller_than_the_scatter_of_texts_is_noise() -> None:
    before = texts(0.4, 0.8)
    assert before.kl is not None
    kl = [nats + 0.1 * (-1) ** n for n, nats in enumerate(before.kl) if nats is not None]
    kl[0] += 0.1  # more, on the whole
    found = stage_losses(
        arms(student_fp32=before, student_int8=before.model_copy(update={"kl": kl}))
    )
    assert found[-1].made_from == FP32
    assert found[-1].kl.value > 0
    assert found[-1].kl.covers(0)


def test_an_arm_without_its_parent_is_compared_with_the_teacher() -> None:
    (found,) = stage_losses(arms(student_int8=texts(0.43, 0.79)))
    assert found.made_from == TEACHER
    assert found.kl.value == pytest.approx(0.43, abs=0.02)
    other_texts = texts(0.4, 0.8, teacher_nll=[2 * t for t in TOKENS])
    _, quantized = stage_losses(arms(student_fp32=other_texts, student_int8=texts(0.43, 0.79)))
    assert quantized.made_from == TEACHER


def test_without_the_teacher_s_likelihood_there_is_no_ratio() -> None:
    (found,) = stage_losses(arms(student_int8=texts(0.43, 0.79, teacher_nll=None)))
    assert found.ppl_ratio is None
    measured = texts(0, 1, 0, teacher_nll=None)
    (found,) = stage_losses(
        arms(teacher_torch_fp32=measured, student_int8=texts(0.43, 0.79, teacher_nll=None))
    )
    assert found.ppl_ratio is not None
    assert found.ppl_ratio.value == pytest.approx(math.exp(0.43), rel=0.02)


def test_what_was_not_scored_has_no_row() -> None:
    assert stage_losses(arms()) == []
    broken = texts(0.4, 0.8, kl=[math.nan, *TOKENS[1:]])
    assert stage_losses(arms(student_fp32=broken)) == []
