"""What people approved is asked for as it was, and answered as they left it."""

import json
from pathlib import Path

import pytest

from kdexport.content.channels import load_channels
from kdexport.content.prompts import brief_messages, opening_of
from kdexport.copywriting.approved import approved_pairs
from kdexport.copywriting.copywriter import Beside
from kdexport.data.pairs import load_pairs
from kdexport.errors import InputError
from tests.calling import call

BRIEFS = (
    "id,product,channel,language,split,segment\n"
    "a,Tea,sms,,,\nb,Tee,email_subject,de,,\nc,Tea,sms,,test,old\n"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "briefs.csv").write_text(BRIEFS)
    (tmp_path / "segments.csv").write_text("name\nold\n")
    return tmp_path


def table(folder: Path, *rows: str) -> Path:
    (folder / "copies.csv").write_text("brief,place,copy,approved\n" + "".join(rows))
    return folder / "copies.csv"


def test_approved_copies_become_the_pairs_that_wrote_them(folder: Path) -> None:
    beside = Beside(audiences=folder / "segments.csv")
    briefs = {one.brief.id: one.brief for one in beside.briefs(folder / "briefs.csv")}
    sms = load_channels()["sms"]
    opening = opening_of(briefs["a"], sms)
    copies = table(
        folder,
        f"a,1,Ad: {opening} and hot.,Yes\n",
        "a,2,Ad: Something of my own.,x\n",
        "a,3,Ad: no,no\n",
        "a,4,Ad: not looked at,\n",
        "b,1,Tee!,yes\n",
        f"c/old,1,{opening} tea.,yes\n",
    )
    found = approved_pairs(copies, folder / "briefs.csv", beside, "Ad:")
    asked = tuple(brief_messages(briefs["a"], sms))
    assert asked[-1]["content"] == opening
    assert [(pair.id, pair.messages, pair.completion) for pair in found[:2]] == [
        ("a-1", asked, " and hot."),
        ("a-2", asked[:-1], "Something of my own."),
    ]
    assert [(pair.id, pair.language, pair.split) for pair in found[2:]] == [
        ("b-1", "de", "train"),
        ("c/old-1", "en", "test"),
    ]


def test_the_command_writes_them(folder: Path) -> None:
    copies, out = table(folder, "a,1,Tea!,yes\n"), folder / "pairs.jsonl"
    assert call("content", "pairs", copies, folder / "briefs.csv", "-o", out) == (0, "")
    assert [pair.completion for pair in load_pairs(out)] == ["Tea!"]
    assert json.loads(out.read_text())["language"] == "en"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("a,1,Tea!,perhaps\n", ":2: approved is 'perhaps'; use yes or no"),
        ("z,1,Tea!,yes\n", ":2: there is no brief 'z'"),
        ("a,1,,yes\n", ":2: is approved and has no copy"),
        ("a,1,Tea!,no\n", ": nothing in it is approved; put yes into that column"),
    ],
)
def test_what_cannot_be_used_is_one_line(folder: Path, row: str, said: str) -> None:
    copies = table(folder, row)
    with pytest.raises(InputError) as caught:
        approved_pairs(copies, folder / "briefs.csv", Beside())
    assert str(caught.value) == f"{copies}{said}"
