from pathlib import Path

import pytest

from kdexport.content.channels import Channel, load_channels
from kdexport.content.counting import COUNTERS
from kdexport.content.languages import load_languages
from kdexport.errors import InputError

MINE = "label: billboard\nmax_new_tokens: 24\n"
BUILT_IN = load_channels()


def folder(tmp_path: Path, **files: str) -> Path:
    for name, content in files.items():
        (tmp_path / f"{name}.yaml").write_text(content, "utf-8")
    return tmp_path


def test_every_channel_that_is_promised_is_there() -> None:
    assert set(BUILT_IN) >= {
        *("google_rsa", "x_post", "sms", "email_subject", "email_preheader", "push_note"),
        *("meta_title", "meta_description", "product_description", "instagram_caption"),
        *("wechat_post", "xiaohongshu_post"),
    }


@pytest.mark.parametrize("channel", BUILT_IN.values(), ids=lambda channel: channel.name)
def test_a_channel_has_limits_and_says_where_they_are_written(channel: Channel) -> None:
    limits = [channel.limits, *(part.limits for part in channel.parts.values())]
    assert any(limits)
    assert channel.sources
    assert all(source.title and source.date for source in channel.sources)
    assert {"zh"} <= set(channel.wordings) <= set(load_languages())


def test_limits_are_those_of_the_documents() -> None:
    ad = BUILT_IN["google_rsa"].parts
    assert {name: (part.min, part.max) for name, part in ad.items()} == {
        "headline": (3, 15),
        "description": (2, 4),
        "path": (0, 2),
    }
    hard = {name: part.limits["google_ads"].hard for name, part in ad.items()}
    assert hard == {"headline": 30, "description": 90, "path": 15}
    assert BUILT_IN["x_post"].limits["x"].hard == 280
    assert BUILT_IN["sms"].limits["sms_segments"].soft == 1


def test_a_folder_adds_channels_and_may_replace_built_in_ones(tmp_path: Path) -> None:
    channels = load_channels(folder(tmp_path, billboard=MINE, mine=f"name: sms\n{MINE}"))
    assert channels["billboard"].label == channels["sms"].label == "billboard"
    assert set(channels) == {*BUILT_IN, "billboard"}
    assert BUILT_IN["sms"].label == "SMS"


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        ("label: billboard\n", "", "max_new_tokens: is missing"),
        (MINE + "lable: x\n", ":3", "unknown key 'lable'; did you mean 'label'?"),
        (MINE + "limits: {characters: {hrad: 3}}\n", ":3", "did you mean 'hard'?"),
        (MINE + "limits: {characters: {}}\n", ":3", "limits.characters: name min, soft or hard"),
        (MINE + "limits:\n  characters: {soft: 9, hard: 3}\n", ":4", "must not fall"),
        (MINE + "limits: {letters: {hard: 3}}\n", ":3", "unknown counter 'letters'"),
        (MINE + "prompt: Write {lable}.\n", ":3", "unknown place {lable}; did you mean 'label'?"),
        (MINE + "opening: '{label}'\n", ":3", "unknown place {label}"),
        (MINE + "wordings: {tlh: {label: x}}\n", ":3", "unknown language 'tlh'"),
        (MINE + "parts: {a: {label: A}}\n", "", "set one_line: false"),
        (MINE + "one_line: false\nparts: {a: {label: A}, b: {label: a}}\n", "", "the same label"),
        (MINE + "one_line: false\nparts: {a: {label: A, min: 3}}\n", "", "max is below min"),
        (MINE + "sources: [{title: x, url: x, date: 2026-01-01}]\n", ":3", "sources.0.url: "),
        (MINE + "name: My Board\n", ":3", "name: "),
        (MINE + "max_new_tokens: 3\n", ":3", "is given twice"),
        ("[\n", "", "is not YAML"),
        ("", "", "is empty"),
    ],
)  # fmt: skip
def test_a_bad_channel_is_one_line_with_its_place(
    tmp_path: Path, content: str, line: str, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        load_channels(folder(tmp_path, board=content))
    told = str(caught.value)
    assert message in told and "\n" not in told
    assert told.startswith(f"{tmp_path / 'board.yaml'}{line}")


def test_folders_without_channels_and_names_used_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such folder"):
        load_channels(tmp_path / "none")
    with pytest.raises(InputError, match="holds no channel"):
        load_channels(tmp_path)
    with pytest.raises(InputError, match=r"'a' stands in a\.yaml too"):
        load_channels(folder(tmp_path, a=MINE, b=f"name: a\n{MINE}"))


def test_words_of_a_prompt_are_english_where_a_channel_has_no_others(tmp_path: Path) -> None:
    board = load_channels(folder(tmp_path, board=MINE + "opening: '{product}:'\n"))["board"]
    assert board.wording_in("en").opening == "{product}:"
    assert (board.wording_in("de").label, board.wording_in("de").opening) == ("billboard", "")
    assert BUILT_IN["sms"].wording_in("zh").label == "短信"


def test_every_counter_can_be_a_limit(tmp_path: Path) -> None:
    limits = "".join(f"  {name}: {{hard: 1}}\n" for name in COUNTERS)
    board = load_channels(folder(tmp_path, board=f"{MINE}limits:\n{limits}"))["board"]
    assert set(board.limits) == set(COUNTERS)
