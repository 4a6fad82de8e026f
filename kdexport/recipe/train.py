"""The section of a recipe that says how a student is trained; knows no files and no torch."""

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from kdexport.recipe.sections import Count, Positive, Section, Share

LossName = Literal[
    "forward_kl",
    "reverse_kl",
    "jsd",
    "skew_kl",
    "skew_reverse_kl",
    "total_variation",
    "adaptive_kl",
    "standardised_kl",
    "uld",
]
InnerName = Literal["hidden", "hidden_cosine", "blocks", "relations"]
WHOLE = ("adaptive_kl", "standardised_kl")  # losses that need the teacher's whole distribution
PARTS = ("cached", "sampled", "imported")  # targets that hold a part of it


def _below_one(value: float) -> float:
    if value >= 1:
        raise ValueError("must be below 1")
    return value


Layer = Annotated[int, Field(ge=0)]
Decay = Annotated[Share, AfterValidator(_below_one)]


class Line(Section):
    """A value that goes in a straight line from one end of training to the other."""

    start: float = Field(ge=0)
    end: float = Field(ge=0)


def _one_value(value: Any) -> Any:
    """A number stands for a value that stays."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return value
    if not math.isfinite(value):
        raise ValueError("input should be a finite number")
    if value < 0:
        raise ValueError("input should be greater than or equal to 0")
    return {"start": value, "end": value}


Scheduled = Annotated[
    Line, BeforeValidator(_one_value, json_schema_input_type=Annotated[float, Field(ge=0)] | Line)
]
ONE = Line(start=1, end=1)


def _at_most_one(line: Line) -> Line:
    if max(line.start, line.end) > 1:
        raise ValueError("must be at most 1")
    return line


class OnPolicySection(Section):
    """A share of the batches is written by the student itself, and judged by the teacher."""

    fraction: Annotated[Scheduled, AfterValidator(_at_most_one)] = Field(
        Line(start=0, end=0.5), description="Share of the batches"
    )
    temperature: float = Field(1.0, ge=0.01, le=100, description="Of the samples")
    max_new_tokens: Count = Field(64, description="Of a sample, which also ends where texts do")


class LossTerm(Section):
    """One of several divergences that are added up."""

    name: LossName
    weight: Scheduled = ONE
    parameter: float | None = Field(
        None, gt=0, lt=1, description="β of jsd, α of the skew ones; None: 0.5 and 0.1"
    )


class InnerTerm(Section):
    """One of several losses between a student's layers and its teacher's."""

    name: InnerName
    weight: Scheduled = ONE
    layers: list[tuple[Layer, Layer]] | None = Field(
        None,
        min_length=1,
        description="Pairs of a student's layer and a teacher's, from 0; None: as it was made",
    )
    heads: Count | None = Field(None, description="Relation heads; None: the teacher's heads")

    @model_validator(mode="after")
    def _heads_of_relations(self) -> "InnerTerm":
        if self.heads is not None and self.name != "relations":
            raise ValueError("heads are of relations alone")
        return self


def _terms(value: Any) -> Any:
    """A name alone, one term alone, or a list of either."""
    listed = value if isinstance(value, list) else [value]
    return [{"name": one} if isinstance(one, str) else one for one in listed]


Terms = Annotated[
    list[LossTerm],
    BeforeValidator(_terms, json_schema_input_type=LossName | LossTerm | list[LossName | LossTerm]),
    Field(min_length=1),
]


CHANGE_NOTHING = {"cache_gb", "checkpoint_seconds", "n_samples", "shard_teacher", "tensorboard"}
"""Fields that say what is kept and seen, and make no other student."""

InnerTerms = Annotated[
    list[InnerTerm],
    BeforeValidator(
        _terms, json_schema_input_type=InnerName | InnerTerm | list[InnerName | InnerTerm]
    ),
]


class TrainSection(Section):
    """L = L_task + λ·T²·KL(teacher ‖ student), and how long."""

    loss: Terms = Field(
        [LossTerm(name="forward_kl")], description="A divergence, or a list of them with weights"
    )
    kd_weight: Scheduled = Field(ONE, alias="lambda", description="λ; 0 trains on texts alone")
    task_weight: Scheduled = Field(ONE, description="Weight of the texts' own cross-entropy")
    temperature: float = Field(1.0, ge=0.01, le=100, description="T of the soft targets")
    prompt_weight: float = Field(
        0.0, ge=0, description="Weight of a prompt's tokens in the divergence; a completion's is 1"
    )
    hidden_weight: float = Field(
        0.0, ge=0, description="Weight of the last hidden states' distance beside the divergence"
    )
    inside: InnerTerms = Field(
        [], description="Losses between layers, a name or a list of them with weights, within λ"
    )
    targets: Literal["cached", "sampled", "hidden", "live", "imported"] = Field(
        "cached",
        description="Ask the teacher once and keep its top k tokens, a few that are drawn, or its "
        "last hidden states; or ask at every step; or take what was computed elsewhere",
    )
    top_k: Count = Field(64, description="Cached probabilities a token; the tail's mass is kept")
    n_sampled: Count = Field(12, description="Tokens drawn of each distribution, for sampled")
    cache_gb: Positive = Field(
        20.0, description="What kept targets may take of the disk, in 10^9 bytes"
    )
    shard_teacher: bool = Field(
        False, description="Share the teacher's layers out over all processes while it is asked"
    )
    on_policy: OnPolicySection | None = Field(
        None, description="Learn from the student's own samples, too, which needs the live teacher"
    )
    lr: Positive = 5e-4
    batch_size: Count = 8
    accumulate: Count = Field(1, description="Batches added up before a step")
    packing: bool = Field(
        False,
        description="Put several texts into a row of max_length, blind to one another; batch_size "
        "counts rows",
    )
    epochs: Positive | None = None
    max_steps: Count | None = None
    max_minutes: Positive | None = Field(
        None, description="The schedule ends with the clock, which the teacher's targets start"
    )
    warmup_fraction: Share = 0.05
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    clip_norm: Positive = 1.0
    freeze_embeddings: bool = Field(
        False, description="Keep the token embeddings, and a tied head, as the teacher has them"
    )
    quantize_aware: Share = Field(
        0.0, description="Share of training, at its end, that computes as the quantized bundle will"
    )
    rounded_lr: Positive = Field(
        1e-4, description="Peak of that share: of scales, in shares of each, and of vectors"
    )
    activation_checkpointing: bool = Field(
        False, description="Compute layers again for their gradient: less memory, a fifth more time"
    )
    max_length: Count = Field(256, description="Longer examples are left out, and counted")
    checkpoint_seconds: Positive = 60.0
    evaluate_steps: Count = 100
    n_samples: int = Field(
        2, ge=0, description="Copies that are written greedily at every evaluation, to be read"
    )
    tensorboard: bool = Field(False, description="Write TensorBoard's event files, too")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Of products; auto: bfloat16 where the device computes it itself"
    )
    n_threads: Count | None = None

    @property
    def texts_alone(self) -> bool:
        """Whether λ is 0 throughout: no teacher is asked of the training texts."""
        return self.kd_weight.start == self.kd_weight.end == 0

    @property
    def learns_prompts(self) -> bool:
        """Whether prompts' tokens count."""
        return self.prompt_weight > 0 and not self.texts_alone

    @property
    def fingerprinted(self) -> dict[str, Any]:
        """What a student depends on, as JSON values: all but what is kept and seen."""
        return self.model_dump(mode="json", exclude=CHANGE_NOTHING)

    @property
    def across_tokens(self) -> bool:
        """Whether teacher and student may have different tokenizers."""
        return any(term.name == "uld" for term in self.loss)

    @model_validator(mode="after")
    def _across_tokens(self) -> "TrainSection":
        if not self.across_tokens:
            return self
        if len(self.loss) > 1:
            raise ValueError("uld stands alone: the other losses want one vocabulary")
        if self.targets not in ("hidden", "live"):
            raise ValueError("uld needs targets: hidden, or live")
        if self.prompt_weight or self.hidden_weight:
            raise ValueError("uld compares completions only: no prompt_weight, no hidden_weight")
        if self.on_policy or self.inside:
            raise ValueError("uld takes neither on_policy nor inside: they want one vocabulary")
        return self

    @model_validator(mode="after")
    def _an_end(self) -> "TrainSection":
        if not (self.epochs or self.max_steps or self.max_minutes):
            raise ValueError("say when to stop: epochs, max_steps or max_minutes")
        if self.packing and self.inside:
            raise ValueError(
                "inside compares layers text by text, which packing does not keep apart"
            )
        if self.hidden_weight and self.targets in PARTS:
            raise ValueError("hidden_weight needs targets: hidden, or live")
        if self.targets == "imported" and self.temperature != 1:
            raise ValueError("imported targets are of temperature 1")
        if self.on_policy and self.texts_alone:
            raise ValueError("on_policy needs lambda above 0: own samples have no text to learn")
        if self.inside and self.targets != "live":
            raise ValueError(f"inside: {self.inside[0].name} needs targets: live")
        if self.shard_teacher and self.targets == "imported":
            raise ValueError(
                "shard_teacher is for a teacher that is asked: not for imported targets"
            )
        if self.shard_teacher and self.on_policy and self.targets != "live":
            raise ValueError("shard_teacher with on_policy needs targets: live")
        if self.shard_teacher and self.inside:
            raise ValueError("shard_teacher goes without inside: no process holds a whole layer")
        whole = [term.name for term in self.loss if term.name in WHOLE]
        if whole and self.targets in PARTS:
            raise ValueError(f"{whole[0]} needs targets: hidden, or live")
        return self


class FinetuneSection(Section):
    """`kdexport finetune`: how the teacher is trained on the texts; the rest is `train`'s."""

    lr: Positive = 2e-5
    batch_size: Count = 8
    accumulate: Count = Field(1, description="Batches added up before a step")
    epochs: Positive | None = Field(None, description="1 where no other end is given")
    max_steps: Count | None = None
    max_minutes: Positive | None = None
    freeze_embeddings: bool = Field(False, description="Keep the token embeddings as they are")
    evaluate_steps: Count = 50

    @model_validator(mode="before")
    @classmethod
    def _one_epoch(cls, content: Any) -> Any:
        ends = ("epochs", "max_steps", "max_minutes")
        if not isinstance(content, dict) or any(content.get(end) is not None for end in ends):
            return content
        return {**content, "epochs": 1.0}
