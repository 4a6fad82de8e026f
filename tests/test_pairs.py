import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdexport.errors import InputError
from kdexport.pairs import Pair, by_split, draw_split, load_pairs, within_limits, write_pairs

USER = {"role": "user", "content": "Write an SMS."}
ANSWER = {"role": "assistant", "content": "Bread!"}


def write(folder: Path, *rows: object) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Write an SMS.", "completion": "Bread!"},
        {"messages": [USER, ANSWER]},
        {"messages": [USER], "completion": "Bread!"},
    ],
)
def test_the_forms_of_data_mean_the_same(tmp_path: Path, row: object) -> None:
    (pair,) = load_pairs(write(tmp_path, row))
    assert (pair.messages, pair.completion) == ((USER,), "Bread!")


def test_plain_text_has_no_prompt(tmp_path: Path) -> None:
    (pair,) = load_pairs(write(tmp_path, {"text": "Bread!"}))
    assert (pair.messages, pair.completion) == ((), "Bread!")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x"}, "completion is missing"),
        ({"prompt": "x", "completion": " "}, "completion is missing or empty"),
        ({"words": "x"}, "neither messages"),
        ({"messages": [USER]}, "last message must be the assistant's"),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, "message 2, the assistant's"),
        ({"messages": []}, "messages must be a list"),
        ({"text": "x", "split": ["train"]}, "split is"),
        ({"messages": [{"role": "cat", "content": "x"}]}, "messages must be a list"),
        ({"text": "x", "split": "dev"}, "split is 'dev'"),
        ({"text": "x", "id": "line-1"}, "used in line 1 already"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, row: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_pairs(write(tmp_path, {"text": "fine"}, row))
    assert caught.value.where.endswith("data.jsonl:2")


texts = st.text(min_size=1).filter(lambda text: text.strip())


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=5))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    pairs = [
        Pair(str(n), "train", ({"role": "user", "content": prompt},) * (n % 2), completion)
        for n, (prompt, completion) in enumerate(rows)
    ]
    write_pairs(path, pairs)
    assert load_pairs(path) == pairs


def test_equal_prompts_share_a_split(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{n % 40}", "completion": f"c{n}"} for n in range(400)]
    pairs = load_pairs(write(tmp_path, *rows), validation_fraction=0.2, test_fraction=0.2)
    split_of: dict[str, set[str]] = {}
    for pair in pairs:
        split_of.setdefault(pair.messages[0]["content"], set()).add(pair.split)
    assert all(len(splits) == 1 for splits in split_of.values())
    assert by_split(pairs, "train", 3) == [p for p in pairs if p.split == "train"][:3]


def test_plain_text_is_written_as_it_was_given(tmp_path: Path) -> None:
    pairs = load_pairs(write(tmp_path, {"text": "Bread!", "split": "test"}))
    write_pairs(tmp_path / "own.jsonl", pairs)
    assert load_pairs(tmp_path / "own.jsonl") == pairs
    row = json.loads((tmp_path / "own.jsonl").read_text("utf-8"))
    assert row == {"id": "line-1", "split": "test", "text": "Bread!"}


def test_limits_hold_in_each_split() -> None:
    pairs = [Pair(str(n), ("test", "train")[n % 2], (), "x") for n in range(10)]
    limits = {"train": 2, "validation": 1, "test": None}
    assert [p.id for p in within_limits(pairs, limits)] == ["1", "3", "0", "2", "4", "6", "8"]


def test_shares_of_splits() -> None:
    splits = [draw_split(str(n), 0, 0.1, 0.2) for n in range(4000)]
    assert abs(splits.count("test") / 4000 - 0.2) < 0.03
    assert abs(splits.count("validation") / 4000 - 0.1) < 0.03
