"""The words in which a model is asked for copy.

Short on purpose: on a small model, reading the prompt costs more than writing the answer.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files

import yaml
from pydantic import BaseModel, ConfigDict

from kdexport.content.briefs import Brief
from kdexport.content.channels import Channel

SYSTEM = "You write short marketing copy."
Message = dict[str, str]


class Openings(BaseModel):
    """First words of copy, by tone (with ``{product}`` in them) and by campaign."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    greetings: dict[str, str]
    occasions: dict[str, str]


@cache
def load_openings() -> Openings:
    """The openings of ``openings.yaml``; read once."""
    text = files("kdexport.content").joinpath("openings.yaml").read_text("utf-8")
    return Openings.model_validate(yaml.safe_load(text))


def opening_of(brief: Brief, channel: Channel) -> str:
    """The words that the copy of a brief begins with."""
    openings = load_openings()
    occasion = f"{brief.campaign[:1].upper()}{brief.campaign[1:]}! "
    words = {
        "{greeting}": openings.greetings.get(brief.tone, "{product}"),
        "{occasion}": openings.occasions.get(brief.campaign, occasion),
    }
    opening = channel.opening
    for place, text in words.items():
        opening = opening.replace(place, text)
    return opening.replace("{product}", brief.product)


def brief_messages(brief: Brief, channel: Channel) -> list[Message]:
    """The chat that asks for the copy of a brief.

    Where the channel has an opening, the last message is the assistant's, begun with it: what the
    model writes goes on from there.
    """
    occasion = "" if brief.campaign == "none" else f" {brief.campaign}"
    article = "an" if brief.tone[:1].lower() in "aeiou" else "a"
    details = f": {', '.join(brief.facts)}" if brief.facts else ""
    request = (
        f"Write {article} {brief.tone}{occasion} {channel.label} for {brief.audience}. "
        f"{channel.instruction}\n{brief.product}{details}."
    )
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": request}]
    if opening := opening_of(brief, channel):
        messages.append({"role": "assistant", "content": opening})
    return messages


def split_opening(messages: Sequence[Mapping[str, str]]) -> tuple[list[Message], str]:
    """The messages to answer, and the words that the answer has begun with ("" for none)."""
    copied = [dict(message) for message in messages]
    if copied and copied[-1]["role"] == "assistant":
        return copied[:-1], copied[-1]["content"]
    return copied, ""


def plain_chat(messages: Sequence[Message]) -> str:
    """Messages as plain text, for a model without a chat template: contents, then a new line."""
    return "\n\n".join(message["content"] for message in messages) + "\n"
