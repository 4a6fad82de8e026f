"""What each stage costs: every arm beside the one that it was made from, on the same texts."""

import math
from collections.abc import Sequence

from kdexport.verdict.bootstrap import Interval, ratio_of_sums
from kdexport.verdict.report import REFERENCE_ARM, ArmResult
from kdexport.verdict.scores import StageLoss, TextSums


def stage_losses(arms: Sequence[ArmResult]) -> list[StageLoss]:
    """A row for each arm that was scored beside its teacher, in the order given.

    An arm whose parent was not measured on the same texts is compared with the teacher, whose KL is
    0 and whose top token is always its own. Intervals are of texts drawn anew, the same for both.
    """
    scored = {arm.arm: arm for arm in arms if _is_whole(arm.texts)}
    losses = []
    for arm in scored.values():
        if arm.arm == REFERENCE_ARM or arm.texts is None:
            continue
        parent = scored.get(arm.made_from or "")
        before = None if parent is None or parent.arm == REFERENCE_ARM else parent.texts
        if before is None or not same_texts(before, arm.texts):
            before, name = _teacher(arm.texts, scored.get(REFERENCE_ARM)), REFERENCE_ARM
        else:
            name = arm.made_from or ""
        losses.append(_loss(arm.arm, name, before, arm.texts))
    return losses


def _loss(arm: str, made_from: str, before: TextSums, after: TextSums) -> StageLoss:
    kl = _difference(after.kl, before.kl, after.tokens)
    top1 = _difference(before.top1, after.top1, after.tokens)
    nll = _difference(after.nll, before.nll, after.tokens)
    assert kl is not None and top1 is not None  # whole
    ratio = None
    if nll is not None:
        ratio = Interval(*(math.exp(min(x, 700)) for x in (nll.value, nll.low, nll.high)))
    return StageLoss(arm=arm, made_from=made_from, kl=kl, top1=top1, ppl_ratio=ratio)


def _difference(
    more: Sequence[float | None] | None,
    less: Sequence[float | None] | None,
    tokens: Sequence[float],
) -> Interval | None:
    """Per token, the sums of one side less those of the other; None where some are not known."""
    if more is None or less is None:
        return None
    known = [a - b for a, b in zip(more, less, strict=True) if a is not None and b is not None]
    return ratio_of_sums(known, tokens) if len(known) == len(tokens) else None


def _is_whole(texts: TextSums | None) -> bool:
    """Whether KL and top-1 are known of each text."""
    return texts is not None and all(
        column is not None and None not in column for column in (texts.kl, texts.top1)
    )


def same_texts(one: TextSums, other: TextSums) -> bool:
    """Whether two arms were scored by one reference, as far as their sums tell."""
    return one.tokens == other.tokens and one.teacher_nll == other.teacher_nll


def _teacher(texts: TextSums, measured: ArmResult | None) -> TextSums:
    """The teacher on these texts; its likelihood from the reference, or as it was measured."""
    nll = texts.teacher_nll
    if nll is None and measured is not None and measured.texts is not None:
        nll = measured.texts.nll if same_texts(measured.texts, texts) else None
    zeros: list[float | None] = [0.0] * len(texts.tokens)
    return TextSums(
        tokens=texts.tokens,
        nll=[None] * len(texts.tokens) if nll is None else nll,
        kl=zeros,
        top1=list(texts.tokens),
    )
