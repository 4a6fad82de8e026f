"""What a report says of quality: the forms of its numbers. Knows no models and no arithmetic."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FiniteFloat, model_validator

from kdexport.verdict.bootstrap import Interval


def _none_unless_finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Measured = Annotated[FiniteFloat | None, BeforeValidator(_none_unless_finite)]
"""A float that may be missing; NaN and infinity count as missing, since JSON has neither."""


class Record(BaseModel):
    """A part of a report: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TextSums(Record):
    """Sums over each text that quality was measured on, in one order for all arms; nats."""

    tokens: list[FiniteFloat]
    nll: list[Measured] = Field(description="-log of the probability of the text's tokens")
    kl: list[Measured] | None = None
    teacher_nll: list[Measured] | None = None
    top1: list[Measured] | None = Field(
        default=None, description="tokens at which arm and teacher agree"
    )

    @model_validator(mode="after")
    def _one_value_a_text(self) -> TextSums:
        columns = (self.nll, self.kl, self.teacher_nll, self.top1)
        if any(column is not None and len(column) != len(self.tokens) for column in columns):
            raise ValueError("the sums are not of the same texts")
        return self


class StageLoss(Record):
    """What became worse on the way from one arm to the next, on the same texts.

    Intervals are 95 % percentile intervals of texts drawn anew; one that covers 0 (``ppl_ratio``:
    1) is a loss within noise.
    """

    arm: str
    made_from: str
    kl: Interval = Field(description="KL to the teacher that was added, nats per token")
    ppl_ratio: Interval | None = Field(default=None, description="perplexity over that before")
    top1: Interval = Field(description="share of tokens that no longer agree with the teacher's")


class CopyScores(Record):
    """What an arm wrote for some requests, beside the teacher's (or other references').

    ``by_text``: a value for each of ``requests``: ``n_words``, ``self_bleu`` (0 to 100),
    ``repeated`` (share of runs of four words that came before), ``passed`` (1: no check drops it);
    beside references also ``chrf`` (0 to 100), ``identical``, ``n_as_reference`` (tokens before the
    first that differs), and where their packages are installed ``similarity`` (a cosine) and
    ``same_language``. ``intervals`` has their means.
    """

    requests: list[str]
    by_text: dict[str, list[Measured]]
    intervals: dict[str, Interval]
    distinct_1: FiniteFloat = Field(description="distinct words over all words, of all texts")
    distinct_2: FiniteFloat = Field(description="the same of runs of two words")
    n_as_reference: Measured = Field(
        default=None, description="median of tokens before the first that differs"
    )
    failed: dict[str, int] = Field(default={}, description="texts that a check drops, by reason")
    against: dict[str, Interval] = Field(
        default={}, description="mean less the references', paired; covers 0: within noise"
    )
