"""A brand's style: how it speaks, words it uses and avoids, what it must say and may not claim."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from kdexport.content.data_files import load_model


class Brand(BaseModel):
    """A style pack. Words and phrases match as `kdexport.content.matching.find_phrase` says.

    ``voice`` and ``examples``: for the prompt. ``preferred``: words to use, for the prompt.
    ``banned``: words that copy must not have. ``disclosures``: texts that it must have, word for
    word. ``claims``: what it may say only where a fact or a disclosure of the brief says so.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    name: str = Field(min_length=1)
    voice: str = ""
    preferred: tuple[str, ...] = ()
    banned: tuple[str, ...] = ()
    disclosures: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()


def load_brand(path: Path) -> Brand:
    """The style pack of a YAML file. Raises InputError with the line of what is wrong in it."""
    return load_model(path, Brand)
