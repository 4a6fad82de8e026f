import pytest

from kdexport.content.briefs import Brief
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
