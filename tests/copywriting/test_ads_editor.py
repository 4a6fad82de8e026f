"""Ads come out under the editor's columns, each where its placement says."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdexport.content.briefs import Brief
from kdexport.content.channels import load_channels
from kdexport.content.parts import join_parts
from kdexport.copywriting.ads_editor import (
    COLUMNS,
    Placement,
    ads_of,
    check_placements,
    load_placements,
)
from kdexport.copywriting.rows import Row, write_copies
from kdexport.data.tables import read_rows
from kdexport.errors import InputError

CHANNELS = load_channels()
TO = Placement("Spring", "Kettles", "https://example.com/kettles")
words = st.sampled_from(["fresh", "tea", "50 %", "Wasser", "水", '"now"', "a,b"])
texts = st.lists(words, min_size=1, max_size=4).map(" ".join)


def row(copy: str, status: str = "pass", brief: str = "a", channel: str = "google_rsa") -> Row:
    return {"brief": brief, "status": status, "channel": channel, "language": "en", "copy": copy}


@given(
    st.lists(texts, min_size=3, max_size=15),
    st.lists(texts, min_size=2, max_size=4),
    st.lists(texts, max_size=2),
)
def test_an_ad_is_its_parts_in_their_order(
    tmp_path_factory: pytest.TempPathFactory,
    headlines: list[str],
    descriptions: list[str],
    paths: list[str],
) -> None:
    parts = {"headline": headlines, "description": descriptions, "path": paths}
    copy = join_parts(parts, CHANNELS["google_rsa"], "en")
    out = tmp_path_factory.mktemp("ads") / "ads.csv"
    write_copies(out, ads_of([row(copy)], {"a": TO}, CHANNELS), COLUMNS)
    assert out.read_text("utf-8").splitlines()[0] == (
        "Campaign,Ad group,"
        + "".join(f"Headline {n}," for n in range(1, 16))
        + "Description 1,Description 2,Description 3,Description 4,Path 1,Path 2,Final URL"
    )
    (ad,) = [found.cells for found in read_rows(out)]
    assert (ad["Campaign"], ad["Ad group"]) == ("Spring", "Kettles")
    assert ad["Final URL"] == "https://example.com/kettles"
    assert [ad.get(f"Headline {n}") for n in range(1, len(headlines) + 1)] == headlines
    assert [ad.get(f"Description {n}") for n in range(1, len(descriptions) + 1)] == descriptions
    assert [ad.get(f"Path {n}") for n in range(1, len(paths) + 1)] == paths
    assert len(ad) == 3 + len(headlines) + len(descriptions) + len(paths)


def test_only_ads_that_pass_are_written() -> None:
    copy = "Headline: Tea"
    rows = [
        row(copy, "fail"),
        row(copy, "error"),
        row("Tea", channel="sms"),
        row(copy, "warn", brief="b"),
    ]
    ads = ads_of(rows, {"b": TO}, CHANNELS)
    assert [(ad["Headline 1"], ad["Headline 2"]) for ad in ads] == [("Tea", "")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"final_url": ""}, "has no final_url"),
        ({"final_url": "example.com"}, "begins neither with https:// nor http://"),
        ({"path": "tea"}, "unknown column 'path'"),
        ({"brief": "b"}, "'b' stands there twice"),
    ],
)
def test_a_placement_that_cannot_be_is_refused_with_its_line(
    changes: dict[str, str], message: str, tmp_path: Path
) -> None:
    good = {"brief": "b", "campaign": "c", "ad_group": "g", "final_url": "https://example.com"}
    path = tmp_path / "groups.jsonl"
    path.write_text(json.dumps(good) + "\n" + json.dumps({**good, "brief": "a", **changes}) + "\n")
    with pytest.raises(InputError, match=message) as caught:
        load_placements(path)
    assert caught.value.where.endswith("groups.jsonl:2")


def test_ads_without_a_place_and_briefs_without_ads_are_refused() -> None:
    sms = Brief(id="s", product="Tea", channel="sms")
    ads = [Brief(id=name, product="Tea", channel="google_rsa") for name in "abc"]
    check_placements(dict.fromkeys("abc", TO), [sms, *ads], CHANNELS, Path("groups.csv"))
    with pytest.raises(InputError, match="has no row for brief 'b' and 1 more"):
        check_placements({"a": TO}, ads, CHANNELS, Path("groups.csv"))
    with pytest.raises(InputError, match="no brief is for a channel with headlines"):
        check_placements({}, [sms], CHANNELS, Path("groups.csv"))
