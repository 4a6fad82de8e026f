import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdexport.content.briefs import examine_briefs, load_briefs, split_of
from kdexport.content.channels import load_channels
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
        ({"facts": ["x"]}, "product: is missing"),
        ({**GOOD, "product": "  "}, "product: is empty"),
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


def test_a_brief_says_all_that_copy_has_to_keep_to(tmp_path: Path) -> None:
    path = tmp_path / "briefs.csv"
    path.write_text(
        "product,language,call_to_action,must_include,banned,disclosures,variants,seed\n"
        'Tern Kettle,de,Jetzt bestellen,Tern; leise,"[""billig; gratis""]",Anzeige,3,7\n'
    )
    (brief,) = load_briefs(path)
    assert (brief.language, brief.variants, brief.seed) == ("de", 3, 7)
    assert brief.must_include == ("Tern", "leise")
    assert (brief.banned, brief.disclosures) == (("billig; gratis",), ("Anzeige",))


@pytest.mark.parametrize("name", ["briefs.yaml", "briefs.yml"])
def test_briefs_are_read_from_yaml(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text(
        "- product: Tern Kettle\n  facts: [one litre]\n- product: Tern Cup\n  channel: sms\n"
    )
    assert [(brief.id, brief.product, brief.facts) for brief in load_briefs(path)] == [
        ("line-1", "Tern Kettle", ("one litre",)),
        ("line-3", "Tern Cup", ()),
    ]


def test_a_channel_of_the_user_s_own_is_known_where_it_is_given(tmp_path: Path) -> None:
    path = write(tmp_path, {**GOOD, "channel": "billboard"})
    billboard = load_channels()["sms"].model_copy(update={"name": "billboard"})
    assert load_briefs(path, {"billboard": billboard})[0].channel == "billboard"
    with pytest.raises(InputError, match="unknown channel 'billboard'"):
        load_briefs(path)


def test_every_problem_of_a_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "briefs.jsonl"
    rows = [
        json.dumps(GOOD),
        '{"product"',
        json.dumps({"produkt": "Tern Cup", "variants": 0, "language": "tlh"}),
        json.dumps({**GOOD, "id": "line-1"}),
        json.dumps({**GOOD, "facts": "one litre", "keywords": [1]}),
        json.dumps({**GOOD, "product": "Tern Cup"}),
    ]
    path.write_text("\n".join(rows) + "\n")
    briefs, problems = examine_briefs(path)
    assert [brief.id for brief in briefs] == ["line-1", "line-6"]
    assert [(problem.where.rpartition(":")[2], problem.field) for problem in problems] == [
        ("2", ""),
        ("3", "product"),
        ("3", "language"),
        ("3", "variants"),
        ("3", ""),
        ("4", "id"),
        ("5", "keywords.0"),
    ]
    told = "\n".join(map(str, problems))
    assert f"{path}:2: is not JSON" in told
    assert f"{path}:3: unknown key 'produkt'; did you mean 'product'?" in told
    assert f"{path}:3: language: unknown language 'tlh'; known are de, en, es, fr, zh" in told
    assert f"{path}:4: id: 'line-1' stands in line 1 too" in told
    assert f"{path}:5: keywords.0: should be a text" in told


def test_no_more_than_was_asked_for_is_read(tmp_path: Path) -> None:
    path = tmp_path / "many.csv"
    path.write_text("product\n" + "Tea\n" * 4)
    assert len(examine_briefs(path, most=4)[0]) == 4
    briefs, problems = examine_briefs(path, most=3)
    assert (len(briefs), [str(one) for one in problems]) == (
        3,
        [f"{path}: goes on after the 3 that are read"],
    )


def test_a_file_that_cannot_be_read_is_one_problem(tmp_path: Path) -> None:
    briefs, problems = examine_briefs(tmp_path / "none.csv")
    assert (briefs, len(problems)) == ([], 1)
    (tmp_path / "half.csv").write_text('product\nTern Kettle\n"Tern Cup\n')
    briefs, problems = examine_briefs(tmp_path / "half.csv")
    assert len(briefs) == 1
    assert [problem.where for problem in problems] == [f"{tmp_path / 'half.csv'}:3"]
