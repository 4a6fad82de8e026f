from kdexport.content.briefs import Brief
from kdexport.content.channels import load_channels
from kdexport.content.prompts import brief_messages, plain_chat, split_opening

BRIEF = Brief(
    product="Tern Kettle",
    facts=("one litre", "holds its heat"),
    audience="tea drinkers",
    channel="sms",
    campaign="spring sale",
    tone="elegant",
)


def test_the_prompt_holds_all_of_the_brief() -> None:
    system, user, begun = brief_messages(BRIEF, load_channels()["sms"])
    assert system["role"] == "system"
    for word in (*BRIEF.facts, BRIEF.product, BRIEF.audience, BRIEF.campaign, "an elegant", "SMS"):
        assert word in user["content"]
    assert begun == {"role": "assistant", "content": "Tern Kettle"}


def test_an_opening_is_given_and_not_asked_for() -> None:
    without = load_channels()["sms"].model_copy(update={"opening": ""})
    asked = brief_messages(BRIEF, without)
    assert [message["role"] for message in asked] == ["system", "user"]
    assert split_opening(asked) == (asked, "")
    assert split_opening(brief_messages(BRIEF, load_channels()["sms"])) == (asked, "Tern Kettle")


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
