import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdexport.content.briefs import load_briefs, split_of
from kdexport.errors import InputError

GOOD = {"product": "Tern Kettle", "facts": ["one litre"], "channel": "sms"}


def write(folder: Path, *rows: object) -> Path:
    path = folder / "briefs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_a_brief_is_read_with_its_defaults(tmp_path: Path) -> None:
    (brief,) = load_briefs(write(tmp_path, GOOD))
    assert (brief.id, brief.product, brief.channel) == ("line-1", "Tern Kettle", "sms")
    assert (brief.campaign, brief.tone, brief.split) == ("none", "friendly", "train")


def test_a_table_holds_facts_in_one_cell(tmp_path: Path) -> None:
    path = tmp_path / "briefs.csv"
    path.write_text(
        "product,facts,channel,tone\n"
        "Tern Kettle,one litre; holds its heat,sms,\n"
        'Tern Cup,"[""red; blue""]",,warm\n'
        "Tern Pan,,,\n"
    )
    kettle, cup, pan = load_briefs(path)
    assert (kettle.facts, kettle.channel, kettle.tone) == (
        ("one litre", "holds its heat"),
        "sms",
        "friendly",
    )
    assert (cup.facts, cup.channel, cup.tone) == (("red; blue",), "social_post", "warm")
    assert (pan.facts, pan.id) == ((), "line-4")


def test_facts_that_are_no_list_are_named(tmp_path: Path) -> None:
    path = tmp_path / "briefs.tsv"
    path.write_text("product\tfacts\nTern Kettle\t[one litre\n")
    with pytest.raises(InputError, match=r"briefs\.tsv:2: facts is not JSON"):
        load_briefs(path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"facts": ["x"]}, "has no product"),
        ({**GOOD, "product": "  "}, "product is empty"),
        ({**GOOD, "chanel": "sms"}, "did you mean 'channel'"),
        ({**GOOD, "channel": "smss"}, "did you mean 'sms'"),
        ({**GOOD, "split": "dev"}, "split"),
    ],
)
def test_a_bad_brief_is_named_by_its_line(
    tmp_path: Path, row: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_briefs(write(tmp_path, GOOD, row))
    assert caught.value.where.endswith("briefs.jsonl:2")


def test_an_id_is_used_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="stands in line 1 too"):
        load_briefs(write(tmp_path, {**GOOD, "id": "a"}, {**GOOD, "id": "a"}))


@given(st.text(min_size=1))
def test_a_product_is_always_in_one_split(product: str) -> None:
    assert split_of(product) == split_of(product)
    assert split_of(product, validation=0.0, test=0.0) == "train"
    assert split_of(product, validation=0.0, test=1.0) == "test"


def test_splits_have_about_the_shares_asked_for() -> None:
    splits = [split_of(f"product {n}", 0.1, 0.2) for n in range(4000)]
    assert abs(splits.count("test") / 4000 - 0.2) < 0.03  # 4.7 standard deviations
    assert abs(splits.count("validation") / 4000 - 0.1) < 0.03


def test_a_language_that_copy_cannot_be_written_in_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "briefs.jsonl"
    path.write_text(json.dumps({"product": "Tee", "language": "de"}))
    with pytest.raises(InputError, match=r"briefs\.jsonl:1: language: .*'en'"):
        load_briefs(path)
