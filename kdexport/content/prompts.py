"""The words in which a model is asked for copy.

Short on purpose: on a small model, reading the prompt costs more than writing the answer.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files

import yaml
from pydantic import BaseModel, ConfigDict

from kdexport.content.brands import Brand
from kdexport.content.briefs import Brief
from kdexport.content.channels import Channel, Wording
from kdexport.content.languages import Language, load_languages

Message = dict[str, str]
ASKING: Mapping[str, bool] = {"add_generation_prompt": True, "enable_thinking": False}
"""What chat templates are told: the answer comes now; Qwen3's would leave room for thoughts first.
"""


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
    opening = channel.wording_in(brief.language).opening
    for place, text in words.items():
        opening = opening.replace(place, text)
    return opening.replace("{product}", brief.product)


def brief_messages(brief: Brief, channel: Channel, brand: Brand | None = None) -> list[Message]:
    """The chat that asks for the copy of a brief, in the brief's language and the brand's voice.

    Where the channel has an opening, the last message is the assistant's, begun with it: what the
    model writes goes on from there.
    """
    language = load_languages()[brief.language]
    template = channel.prompt or language.request
    lines = [_filled(template, _places(brief, channel.wording_in(brief.language), language))]
    for name, texts in _wishes(brief, brand).items():
        words = language.between.join(text.removeprefix("=") for text in texts)
        if words:
            lines.append(_filled(language.asks[name], {"words": words.rstrip(".。")}))
    request = "\n".join(lines)
    messages = [
        {"role": "system", "content": language.system},
        {"role": "user", "content": request},
    ]
    if opening := opening_of(brief, channel):
        messages.append({"role": "assistant", "content": opening})
    return messages


def _places(brief: Brief, wording: Wording, language: Language) -> dict[str, str]:
    """What stands in the places of a request. English words of a brief are put into its language.

    ``occasion`` and ``details`` are empty where the brief has none.
    """
    campaign = language.words.get(brief.campaign, brief.campaign)
    facts = language.between.join(brief.facts)
    return {
        "article": "an" if brief.tone[:1].lower() in "aeiou" else "a",
        "tone": language.words.get(brief.tone, brief.tone),
        "occasion": ""
        if brief.campaign == "none"
        else _filled(language.occasion, {"words": campaign}),
        "label": wording.label,
        "audience": language.words.get(brief.audience, brief.audience),
        "instruction": wording.instruction,
        "product": brief.product,
        "details": _filled(language.details, {"words": facts}) if facts else "",
    }


def _wishes(brief: Brief, brand: Brand | None) -> dict[str, Sequence[str]]:
    """What is asked for beside the facts, by the key of ``asks``, in the order of the prompt."""
    wishes: dict[str, Sequence[str]] = {
        "objective": [brief.objective],
        "call_to_action": [brief.call_to_action],
        "must_include": brief.must_include,
        "keywords": brief.keywords,
        "disclosures": brief.disclosures + (brand.disclosures if brand else ()),
        "banned": brief.banned + (brand.banned if brand else ()),
    }
    if brand:
        wishes |= {"voice": [brand.voice], "preferred": brand.preferred, "examples": brand.examples}
    return wishes


def _filled(template: str, places: Mapping[str, str]) -> str:
    """A template with its places in braces filled, each once: what is put in has none."""
    return re.sub(r"\{(\w+)\}", lambda match: places[match[1]], template)


def split_opening(messages: Sequence[Mapping[str, str]]) -> tuple[list[Message], str]:
    """The messages to answer, and the words that the answer has begun with ("" for none)."""
    copied = [dict(message) for message in messages]
    if copied and copied[-1]["role"] == "assistant":
        return copied[:-1], copied[-1]["content"]
    return copied, ""


def plain_chat(messages: Sequence[Message]) -> str:
    """Messages as plain text, for a model without a chat template: contents, then a new line."""
    return "\n\n".join(message["content"] for message in messages) + "\n"
