"""`kdexport briefs check`, as it is typed."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from kdexport.commands.main import cli
from tests.calling import call

GOOD = '{"product": "Tern Kettle", "channel": "sms"}\n'
CHANNEL = "label: billboard\ninstruction: At most six words.\nmax_new_tokens: 24\n"


def check(*arguments: object) -> tuple[int, str]:
    ran = CliRunner().invoke(cli, ["briefs", "check", *map(str, arguments)])
    return ran.exit_code, ran.output


def test_good_briefs_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "briefs.jsonl"
    path.write_text(GOOD + '{"product": "Tern Cup", "language": "de"}\n')
    assert check(path) == (0, f"{path}: 2 good, 0 bad (1 sms, 1 social_post)\n")
    code, told = check(path, "--json")
    assert (code, json.loads(told)) == (
        0,
        {
            "good": 2,
            "bad": 0,
            "channel": {"sms": 1, "social_post": 1},
            "language": {"de": 1, "en": 1},
            "split": {"train": 2},
            "problems": [],
        },
    )


def test_each_bad_line_is_named_and_ends_with_2(tmp_path: Path) -> None:
    path = tmp_path / "briefs.csv"
    path.write_text("product,chanel,seed\nTern Kettle,,\nTern Cup,sms,x\nTern Pan\n")
    code, told = check(path)
    assert code == 2
    assert told.splitlines() == [
        f"{path}:3: seed: should be a whole number",
        f"{path}:3: unknown key 'chanel'; did you mean 'channel'?",
        f"{path}:4: has 1 cells under a header of 3; put a cell that holds delimiters in quotes",
        f"{path}: 1 good, 2 bad (1 social_post)",
    ]
    code, told = check(path, "--json")
    assert code == 2
    assert json.loads(told)["problems"][0] == {
        "where": f"{path}:3",
        "field": "seed",
        "message": "should be a whole number",
    }


def test_channels_of_one_s_own_are_known_where_their_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "channels").mkdir()
    (tmp_path / "channels" / "billboard.yaml").write_text(CHANNEL)
    path = tmp_path / "briefs.jsonl"
    path.write_text('{"product": "Tern Kettle", "channel": "billbord"}\n')
    assert (
        "unknown channel 'billbord'; did you mean 'billboard'?"
        in check(path, "--channels", tmp_path / "channels")[1]
    )
    path.write_text('{"product": "Tern Kettle", "channel": "billboard"}\n')
    assert check(path, "--channels", tmp_path / "channels")[0] == 0
    assert check(path)[0] == 2


def test_segments_are_checked_beside_the_briefs(tmp_path: Path) -> None:
    path, segments = tmp_path / "briefs.csv", tmp_path / "segments.csv"
    segments.write_text("name,tone,past.may.sends,past.may.clicks\nparents,warm,10,1\nnew,,,\n")
    path.write_text("product,segment\nTern Kettle,all\nTern Cup,parents; new\nTern Pan,\n")
    code, told = check(path, "--audiences", segments)
    assert code == 0
    assert told.splitlines()[1] == f"{segments}: copy for 1 no segment, 2 new, 2 parents"
    counted = json.loads(check(path, "--audiences", segments, "--json")[1])
    assert counted["segment"] == {"": 1, "new": 2, "parents": 2}
    assert "segment" not in json.loads(check(path, "--json")[1])
    path.write_text("product,segment\nTern Kettle,parent\n")
    code, told = check(path, "--audiences", segments)
    assert code == 2
    assert told.splitlines()[0] == (
        f"{path}:2: segment: unknown segment 'parent'; did you mean 'parents'?"
    )
    segments.write_text("name,tone,past.may.sends,past.may.clicks\nparents,warm,10,11\n")
    code, told = check(path, "--audiences", segments)
    assert (code, told.splitlines()) == (
        2,
        [
            f"{segments}:2: past.may: has 11 clicks of 10 sends",
            f"{path}: 1 good, 0 bad (1 social_post)",
        ],
    )


@pytest.mark.parametrize("name", ["none.jsonl", "briefs.txt", "channels"])
def test_a_file_that_is_none_is_one_problem(tmp_path: Path, name: str) -> None:
    (tmp_path / "briefs.txt").write_text(GOOD)
    (tmp_path / "channels").mkdir()
    code, told = check(tmp_path / name)
    assert code == 2
    assert len(told.splitlines()) == 2 and told.startswith(str(tmp_path / name))


def test_a_bad_channel_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "briefs.jsonl"
    path.write_text(GOOD)
    (tmp_path / "x.yaml").write_text(CHANNEL + "limits:\n  emojis: {hard: 3}\n")
    code, said = call("briefs", "check", path, "--channels", tmp_path)
    assert code == 2
    assert said.startswith(f"kdexport: {tmp_path / 'x.yaml'}:4: limits: unknown counter 'emojis'")
    assert len(said.splitlines()) == 1
