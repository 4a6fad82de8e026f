"""The words in which a model is asked for copy.

Short on purpose: on a small model, reading the prompt costs more than writing the answer.
"""

from collections.abc import Mapping, Sequence

from kdexport.content.briefs import Brief
from kdexport.content.channels import Channel

SYSTEM = "You write short marketing copy."
Message = dict[str, str]


def brief_messages(brief: Brief, channel: Channel) -> list[Message]:
    """The chat that asks for the copy of a brief.

    Where the channel has an opening, the last message is the assistant's, begun with it: what the
    model writes goes on from there.
    """
    occasion = "" if brief.campaign == "none" else f" {brief.campaign}"
    article = "an" if brief.tone[:1].lower() in "aeiou" else "a"
    request = (
        f"Write {article} {brief.tone}{occasion} {channel.label} for {brief.audience}. "
        f"{channel.instruction}\n{brief.product}: {', '.join(brief.facts)}."
    )
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": request}]
    if channel.opening:
        opening = channel.opening.replace("{product}", brief.product)
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
