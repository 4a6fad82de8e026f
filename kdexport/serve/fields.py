"""What may stand in a request, each field with its bounds. Unknown fields are refused by name.

The fields are OpenAI's; ``top_k``, ``min_p``, ``repetition_penalty``, ``min_tokens`` and
``structured_outputs`` are as in vLLM. null stands for a field's default.
"""

import secrets
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from kdexport.content.briefs import Brief
from kdexport.runtime.constrain import TextForm
from kdexport.runtime.sample import TokenSampler, make_sampler

LONGEST_TEXT = 1_000_000  # characters; the model's length is the bound that users meet
MOST_TEXTS = 128
MOST_CANDIDATES = 64
MOST_TOKENS = 1_000_000
LONGEST_PATTERN = 10_000  # characters
MOST_CHOICES = 1_000

LongText = Annotated[str, Field(max_length=LONGEST_TEXT)]
ShortText = Annotated[str, Field(min_length=1, max_length=256)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=MOST_TOKENS)]
Stops = Annotated[list[ShortText], Field(max_length=16)]
Choice = Annotated[str, Field(min_length=1, max_length=1024)]
Bias = Annotated[float, Field(ge=-100, le=100)]


class Asked(BaseModel):
    """A request's body."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {name: given for name, given in value.items() if given is not None}


class StreamOptions(Asked):
    """``include_usage``: a last event with the counts of tokens."""

    include_usage: bool = False


class Sampling(Asked):
    """How tokens are chosen."""

    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, ge=1e-6, le=1)
    top_k: int = Field(default=0, ge=0, le=MOST_TOKENS)
    min_p: float = Field(default=0.0, ge=0, le=1)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    repetition_penalty: float = Field(default=1.0, ge=0.01, le=100)
    logit_bias: dict[TokenId, Bias] = Field(default={}, max_length=1024)
    seed: int = Field(default_factory=lambda: secrets.randbits(31), ge=-(2**63), lt=2**63)

    def sampler(self) -> TokenSampler:
        """The sampler that these ask for."""
        return make_sampler(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            logit_bias=self.logit_bias,
        )


class StructuredOutputs(Asked):
    """The form that the whole answer has to have: JSON by a schema, a pattern, or a choice."""

    json_: dict[str, Any] | None = Field(default=None, alias="json")
    regex: Annotated[str, Field(min_length=1, max_length=LONGEST_PATTERN)] | None = None
    choice: Annotated[list[Choice], Field(min_length=1, max_length=MOST_CHOICES)] | None = None

    @model_validator(mode="after")
    def _is_one(self) -> "StructuredOutputs":
        if len(self.model_fields_set) != 1:
            raise ValueError("one of json, regex and choice is wanted")
        return self

    @property
    def form(self) -> TextForm:
        """The form that it asks for."""
        if self.json_ is not None:
            return TextForm("json", self.json_)
        return TextForm("regex", self.regex) if self.regex else TextForm("choice", self.choice)


class Generating(Sampling):
    """What both of OpenAI's routes share."""

    model: str = Field(min_length=1, max_length=256)
    n: int = Field(default=1, ge=1, le=MOST_TEXTS)
    stop: Stops = []
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    min_tokens: int = Field(default=0, ge=0, le=MOST_TOKENS)
    user: str = Field(default="", max_length=256)
    structured_outputs: StructuredOutputs | None = None

    @property
    def form(self) -> tuple[str, TextForm] | None:
        """The form that the answer has to have, and the field that says so."""
        given = self.structured_outputs
        return ("structured_outputs", given.form) if given else None

    @model_validator(mode="after")
    def _may_end(self) -> "Generating":
        if self.min_tokens and self.form:
            raise ValueError(f"min_tokens: a text of {self.form[0]} ends where its form does")
        return self

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


def _kind_of_prompt(value: Any) -> str:
    """The tag of the form that a prompt has, for errors that speak of it alone."""
    if not isinstance(value, list) or not value:
        return "text"
    return {int: "ids", list: "lists of ids"}.get(type(value[0]), "texts")


Prompt = Annotated[
    Annotated[LongText, Tag("text")]
    | Annotated[TokenIds, Tag("ids")]
    | Annotated[list[LongText], Field(max_length=MOST_TEXTS), Tag("texts")]
    | Annotated[list[TokenIds], Field(max_length=MOST_TEXTS), Tag("lists of ids")],
    Discriminator(_kind_of_prompt),
]


class CompletionRequest(Generating):
    """The body of /v1/completions. ``best_of``: only what ``n`` is."""

    prompt: Prompt
    max_tokens: int = Field(default=16, ge=0, le=MOST_TOKENS)
    echo: bool = False
    logprobs: int | None = Field(default=None, ge=0, le=20)
    best_of: int = Field(default=1, ge=1, le=MOST_TEXTS)

    @model_validator(mode="after")
    def _makes_sense(self) -> "CompletionRequest":
        if self.best_of not in (1, self.n):
            raise ValueError("best_of is not supported; n texts can be asked for")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens is 0; that makes sense with echo only")
        return self

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        """The prompts, each as text or as token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt


class TextPart(Asked):
    """A part of a message."""

    type: Literal["text"]
    text: LongText


class Message(Asked):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: LongText | Annotated[list[TextPart], Field(max_length=64)]
    name: str = Field(default="", max_length=64)

    @property
    def as_read(self) -> dict[str, str]:
        """As a chat template reads it."""
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class JsonSchema(Asked):
    """A schema that the answer has to follow."""

    name: str = Field(default="", max_length=64)
    description: str = Field(default="", max_length=LONGEST_TEXT)
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool = True


class ResponseFormat(Asked):
    """Which form the answer has to have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema belongs to type json_schema, which needs it")
        return self

    @property
    def form(self) -> TextForm | None:
        """The form that it asks for."""
        if self.type == "text":
            return None
        schema = self.json_schema.schema_ if self.json_schema else {"type": "object"}
        return TextForm("json", schema)


class ChatRequest(Generating):
    """The body of /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=512)
    max_tokens: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=20)
    response_format: ResponseFormat = ResponseFormat(type="text")

    @model_validator(mode="after")
    def _makes_sense(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs is of logprobs, which is not true")
        if self.response_format.form and self.structured_outputs:
            raise ValueError("response_format and structured_outputs do not go together")
        return self

    @property
    def form(self) -> tuple[str, TextForm] | None:
        """The form that the answer has to have, and the field that says so."""
        form = self.response_format.form
        return ("response_format", form) if form else super().form

    @property
    def n_new(self) -> int | None:
        """How many tokens are asked for; None: as many as there is room for."""
        return self.max_completion_tokens or self.max_tokens


class CopyStreamOptions(Asked):
    """``include_lengths``: each event has its copy's lengths so far, and the number of tokens."""

    include_lengths: bool = False


class CopyRequest(Sampling):
    """The body of /v1/copy: a brief, whose ``variants`` and ``seed`` hold.

    ``candidates``: so many texts are written, the likeliest and drawn ones, and the best of them
    are the variants. ``temperature``: 0 for one text, 0.8 for several, when not given; ``top_p``
    and ``top_k`` are those of `kdexport write` for candidates.
    """

    brief: Brief
    candidates: int | None = Field(default=None, ge=1, le=MOST_CANDIDATES)
    model: str = Field(default="", max_length=256)
    max_tokens: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    stream: bool = False
    stream_options: CopyStreamOptions = CopyStreamOptions()

    @property
    def n_texts(self) -> int:
        """How many texts are written."""
        return max(self.brief.variants or 1, self.candidates or 1)

    @model_validator(mode="after")
    def _warm_where_several(self) -> "CopyRequest":
        defaults = {"temperature": 0.8 if self.n_texts > 1 else 0.0}
        if self.candidates:
            defaults |= {"top_p": 0.95, "top_k": 50}
        for name, value in defaults.items():
            if name not in self.model_fields_set:
                object.__setattr__(self, name, value)
        return self
