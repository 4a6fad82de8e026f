"""What a report says of quality: the forms of its numbers. Knows no models and no arithmetic."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    model_validator,
)

from kdexport.verdict.bootstrap import Interval
from kdexport.verdict.pass_rates import Group


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


class TokenQuality(Record):
    """How well a model foretells given tokens, and how near it is to a teacher, where there is one.

    What each number is: `kdexport.runtime.token_scores.Quality`.
    """

    perplexity: Measured = None
    perplexity_se: Measured = Field(default=None, description="standard error, over tokens")
    ppl_ratio: Measured = Field(default=None, description="perplexity over the teacher's")
    ppl_ratio_se: Measured = Field(default=None, description="standard error, paired by token")
    ece: Measured = Field(default=None, description="expected calibration error, 0 to 1")
    kl_mean: Measured = Field(default=None, description="KL(teacher || arm), nats per token")
    kl_p50: Measured = None
    kl_p90: Measured = None
    kl_p99: Measured = None
    kl_max: Measured = None
    top1: Measured = Field(default=None, description="share of tokens, 0 to 1")
    top5: Measured = Field(
        default=None, description="share of tokens: the arm's likeliest is of the teacher's five"
    )
    n_quality_tokens: NonNegativeInt = 0
    texts: TextSums | None = Field(default=None, description="quality text by text, for pairing")


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
    ``repeated`` (share of runs of four words that came before), ``passed`` (1: no check of the data
    drops it); of briefs ``pass_rate`` (1: it passes all checks of copy); beside references also
    ``chrf`` (0 to 100), ``identical``, ``n_as_reference`` (tokens before the first that differs),
    and where their packages are installed ``similarity`` (a cosine) and ``same_language``.
    ``intervals`` has their means.
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
    reasons: dict[str, str] = Field(default={}, description="request -> why a check drops its text")
    against: dict[str, Interval] = Field(
        default={}, description="mean less the references', paired; covers 0: within noise"
    )
    pass_rates: list[Group] = Field(
        default=[],
        description="how often copy for briefs passes all checks; teacher: the references'",
    )
    faults: dict[str, list[str]] = Field(
        default={}, description="request -> what all checks find that must not be published"
    )


class Judged(Record):
    """What one model makes of someone's own texts."""

    model: str
    quality: TokenQuality
    copies: CopyScores | None = Field(default=None, description="beside the completions")


class Evaluation(Record):
    """`kdexport eval`: a bundle, and its teacher where one was named, on a file of texts."""

    data: str
    n_texts: NonNegativeInt
    n_too_long: NonNegativeInt = Field(description="texts left out for the model's length")
    judged: list[Judged] = Field(description="the bundle, then the teacher")
