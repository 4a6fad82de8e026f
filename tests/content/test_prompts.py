import hashlib
import json
from pathlib import Path

import pytest

from kdexport.content.brands import Brand
from kdexport.content.briefs import Brief, load_briefs
from kdexport.content.channels import load_channels
from kdexport.content.prompts import (
    brief_messages,
    load_openings,
    opening_of,
    plain_chat,
    split_opening,
)

BRIEF = Brief(
    product="Tern Kettle",
    facts=("one litre", "holds its heat"),
    audience="tea drinkers",
    channel="sms",
    campaign="spring sale",
    tone="elegant",
)
BEGUN = "Spring sale! The finest choice: Tern Kettle:"


def test_the_prompt_holds_all_of_the_brief() -> None:
    system, user, begun = brief_messages(BRIEF, load_channels()["sms"])
    assert system["role"] == "system"
    for word in (*BRIEF.facts, BRIEF.product, BRIEF.audience, BRIEF.campaign, "an elegant", "SMS"):
        assert word in user["content"]
    assert begun == {"role": "assistant", "content": BEGUN}


def test_an_opening_is_given_and_not_asked_for() -> None:
    without = load_channels()["sms"].model_copy(update={"opening": ""})
    asked = brief_messages(BRIEF, without)
    assert [message["role"] for message in asked] == ["system", "user"]
    assert split_opening(asked) == (asked, "")
    assert split_opening(brief_messages(BRIEF, load_channels()["sms"])) == (asked, BEGUN)


@pytest.mark.parametrize(
    ("tone", "campaign", "begun"),
    [
        ("witty", "none", "Spoiler: you want Tern Kettle:"),
        ("warm", "loyalty", "For our regulars! You will love Tern Kettle:"),
        ("deadpan", "World Tea Day", "World Tea Day! Tern Kettle"),  # neither is in the file
    ],
)
def test_the_opening_follows_tone_and_campaign(tone: str, campaign: str, begun: str) -> None:
    brief = BRIEF.model_copy(update={"tone": tone, "campaign": campaign})
    assert opening_of(brief, load_channels()["sms"]) == begun


def test_openings_name_the_product() -> None:
    openings = load_openings()
    assert all("{product}" in greeting for greeting in openings.greetings.values())
    for channel in (channel for channel in load_channels().values() if channel.opening):
        for tone in openings.greetings:
            begun = opening_of(BRIEF.model_copy(update={"tone": tone}), channel)
            assert BRIEF.product in begun and "{" not in begun


def test_no_campaign_leaves_no_trace() -> None:
    brief = BRIEF.model_copy(update={"campaign": "none"})
    assert "none" not in brief_messages(brief, load_channels()["sms"])[1]["content"]


def test_channels_differ_and_are_named_after_their_files() -> None:
    channels = load_channels()
    assert {"social_post", "ad_headline", "ad_description", "email_subject", "sms"} <= set(channels)
    assert len({channel.label for channel in channels.values()}) == len(channels)
    assert all(name == channel.name for name, channel in channels.items())


def test_plain_chat_ends_with_a_new_line() -> None:
    assert plain_chat([{"role": "user", "content": "Hello"}]) == "Hello\n"


def test_the_quickstart_s_prompts_are_what_its_texts_were_written_for() -> None:
    """The teacher's texts depend on each byte: with another hash they have to be written anew."""
    channels, seen = load_channels(), hashlib.sha256()
    briefs = Path(__file__).parents[2] / "recipes" / "data" / "briefs.jsonl"
    for brief in load_briefs(briefs):
        channel = channels[brief.channel]
        asked = [brief_messages(brief, channel), channel.max_new_tokens, channel.one_line]
        seen.update(json.dumps([*asked, channel.label], ensure_ascii=False).encode())
    assert seen.hexdigest() == "dae14ab1a34e7d210569dd8dabc5f20e0808e2f7447ae0d30b4eb43e1f41096d"


def test_what_else_a_brief_wants_is_asked_for() -> None:
    brief = BRIEF.model_copy(
        update={
            "objective": "pre-orders.",
            "call_to_action": "Order now",
            "must_include": ("Tern", "tea"),
            "keywords": ("kettle",),
            "disclosures": ("Ad",),
            "banned": ("=hot",),
        }
    )
    brand = Brand(name="Tern", voice="dry", preferred=("brew",), banned=("cheap",), examples=("x",))
    plain = brief_messages(BRIEF, load_channels()["sms"])[1]["content"]
    asked = brief_messages(brief, load_channels()["sms"], brand)[1]["content"]
    assert asked.split("\n") == [
        *plain.split("\n"),
        "Aim: pre-orders.",
        "Call to action: Order now.",
        "Use these words: Tern, tea.",
        "Work in, where they fit: kettle.",
        "Say word for word: Ad.",
        "Do not use: hot, cheap.",
        "Voice: dry.",
        "Prefer these words: brew.",
        "In the manner of: x",
    ]


@pytest.mark.parametrize(
    ("language", "asked"),
    [
        ("de", "Schreibe auf Deutsch: SMS. Ton: elegant. Für: tea drinkers. Anlass: "
         "Frühlingsangebot. Ein kurzer Satz.\nTern Kettle: one litre, holds its heat."),
        ("fr", "Écris en français : SMS. Ton : élégant. Pour : tea drinkers. Occasion : promotion "
         "de printemps. Une phrase courte.\nTern Kettle : one litre, holds its heat."),
        ("es", "Escribe en español: SMS. Tono: elegante. Para: tea drinkers. Ocasión: rebajas de "
         "primavera. Una frase corta.\nTern Kettle: one litre, holds its heat."),
        ("zh", "用中文写：短信。语气：优雅。面向：tea drinkers。场合：春季促销。一句短话。\n"
         "Tern Kettle：one litre，holds its heat。"),
    ],
)  # fmt: skip
def test_copy_is_asked_for_in_its_language(language: str, asked: str) -> None:
    brief = BRIEF.model_copy(update={"language": language})
    system, user = brief_messages(brief, load_channels()["sms"])
    assert user["content"] == asked
    assert system["content"] != brief_messages(BRIEF, load_channels()["sms"])[0]["content"]


def test_a_channel_may_have_a_prompt_of_its_own() -> None:
    channel = load_channels()["sms"].model_copy(update={"prompt": "{label}! {product}{details}"})
    brief = BRIEF.model_copy(update={"product": "The {label}"})  # what is put in has no places
    assert (
        brief_messages(brief, channel)[1]["content"]
        == "SMS! The {label}: one litre, holds its heat"
    )
