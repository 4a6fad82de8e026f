"""A recipe: everything that a run depends on, in one YAML file.

Strict: an unknown key, a wrong type or a value out of range is one line with file, line and field.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    ValidationError,
    model_validator,
)

from kdexport.data.yaml_lines import Lines, read_yaml, scalar
from kdexport.errors import InputError
from kdexport.recipe.sections import (
    BenchSection,
    DataSection,
    ExportSection,
    OutputSection,
    Section,
    TeacherSection,
    sections_of,
)
from kdexport.recipe.student import OF_NO_TEACHER, StudentSection
from kdexport.recipe.train import FinetuneSection, TrainSection

PLAIN_WORDS = {
    "tuple_type": "should be a list",
    "path_type": "should be a path",
    "model_type": "should be a section of keys and values",
    "model_attributes_type": "should be a section of keys and values",
    "missing": "is missing",
}  # for what pydantic tells in Python's
DATA_PATHS = ("briefs", "pairs", "own", "channels", "brand", "audiences")  # relative to the recipe
MAX_SEED = 2**63 - 1  # what every random generator takes


def _seed(value: int) -> int:
    if value > MAX_SEED:
        raise ValueError(f"must be at most {MAX_SEED}")
    return value


def _source_alone(value: Any) -> Any:
    return {"source": value} if isinstance(value, str) else value


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
    finetune: FinetuneSection = FinetuneSection()
    export: ExportSection = ExportSection()
    bench: BenchSection = BenchSection()
    output: OutputSection = OutputSection()

    @property
    def opens_teacher(self) -> bool:
        """Whether anything needs the teacher's weights; else configuration and tokenizer will do.

        They can be elsewhere where texts are given, targets imported, and the student is not made
        of them.
        """
        asked = self.train.targets != "imported" or self.train.on_policy is not None
        writes = self.data.pairs is None or self.data.answer_prompts
        return asked or writes or self.student.init not in OF_NO_TEACHER

    @model_validator(mode="after")
    def _rounds_to_something(self) -> "Recipe":
        if self.train.quantize_aware and self.export.scheme == "fp32":
            raise ValueError("train.quantize_aware needs an export.scheme other than fp32")
        return self

    @model_validator(mode="after")
    def _compares_what_differs(self) -> "Recipe":
        if self.train.across_tokens and self.student.init != "checkpoint":
            raise ValueError(
                "train.loss: uld needs student.init: checkpoint, of other tokens than the teacher's"
            )
        return self

    @model_validator(mode="after")
    def _asks_as_it_reads(self) -> "Recipe":
        if self.data.stream and self.train.targets != "live" and not self.train.texts_alone:
            raise ValueError("data.stream needs train.targets: live")
        if self.data.stream and self.train.across_tokens:
            raise ValueError("uld pairs all texts beforehand, which data.stream keeps in no memory")
        return self


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
    for name in DATA_PATHS:
        file = getattr(data, name)
        if file is not None:
            base = Path() if f"data.{name}" in origins else path.parent
            data = data.model_copy(update={name: base / file})
            if not _is_there(base / file, folder=name == "channels"):
                kind = "folder" if name == "channels" else "file"
                where = _where(("data", name), lines, origins, path)
                raise InputError(f"there is no {kind} {base / file}", where=where)
    teacher = recipe.teacher.given_in(_where(("teacher", "source"), lines, origins, path))
    return recipe.model_copy(update={"data": data, "teacher": teacher})


def _is_there(path: Path, *, folder: bool) -> bool:
    try:
        return path.is_dir() if folder else path.is_file()
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
    kinds = field_kinds(key)
    return bool({str, Path, TeacherSection} & kinds) and tuple not in kinds


def field_kinds(key: str) -> set[Any]:
    """The types that a dotted key's field may have; none for a key that is not known."""
    model: type[BaseModel] | None = Recipe
    *above, last = key.split(".")
    for part in above:
        model = sections_of(model).get(part) if model else None
    fields = model.model_fields.items() if model else ()
    kinds = [field.annotation for name, field in fields if last == (field.alias or name)]
    found = {one for kind in kinds for one in (kind, *get_args(kind))}
    return {getattr(one, "__origin__", one) for one in found}


def _check_keys(
    model: type[BaseModel],
    content: Mapping[str, Any],
    above: tuple[str, ...],
    lines: Lines,
    origins: Mapping[str, str],
    path: Path,
) -> None:
    """Refuse unknown keys with the nearest known one."""
    known = sections_of(model)
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
