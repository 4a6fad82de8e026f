import json
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from kdexport.data.pairs import (
    Pair,
    by_split,
    draw_split,
    load_pairs,
    read_pairs,
    within_limits,
    write_pairs,
)
from kdexport.data.spans import Span
from kdexport.errors import InputError

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
        ({"text": "x", "id": "line-1"}, r"used at .*data\.jsonl:1 already"),
        ({"prompt": 1, "completion": "x"}, "prompt is no text"),
        ({"messages": "[1", "completion": "x"}, "messages is not JSON"),
        ({"text": "x", "weight": 0}, "weight is 0; use a number above 0"),
        ({"text": "x", "weight": "heavy"}, "weight is 'heavy'"),
        ({"text": "x", "weight": 1e9}, r"weight is 1000000000\.0"),
        ({"text": "x", "weight": float("nan")}, "weight is nan"),
        ({"text": "x", "weight": True}, "weight is True"),
        ({"text": "x", "language": 1}, "language is no text; use a code"),
        ({"text": "x", "weights": [[0, 2, 2]]}, "weights: .* not within the text of 1 char"),
        ({"prompt": "xyz", "completion": "x", "weights": [[0, 2, 2]]}, "not within the text of 1"),
        ({"text": "x", "weights": 0}, "weights must be a list"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, row: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_pairs(write(tmp_path, {"text": "fine"}, row))
    assert caught.value.where.endswith("data.jsonl:2")


def test_a_table_holds_every_form(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    messages = json.dumps([USER, ANSWER]).replace('"', '""')
    path.write_text(
        "id,prompt,completion,text,messages,weight,weights,split\n"
        'a,Write an SMS.,Bread!,,,0.5,"[[0, 5, 2]]",test\n'
        ",,,Bread!,,,,train\n"
        f',,,,"{messages}",,,train\n',
        "utf-8",
    )
    one, two, three = load_pairs(path)
    assert one == Pair("a", "test", (USER,), "Bread!", 0.5, spans=(Span(0, 5, 2.0),))
    assert two == Pair("line-3", "train", (), "Bread!")
    assert three == Pair("line-4", "train", (USER,), "Bread!")
    assert [pair.where for pair in (one, two, three)] == [f"{path}:{n}" for n in (2, 3, 4)]


def test_parquet_holds_messages_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    rows = [
        {"id": 7, "messages": [USER, ANSWER], "weight": 2, "weights": [[0.0, 5.0, 0.5]]},
        {"id": 8, "messages": [USER], "weight": None},
    ]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    with pytest.raises(InputError, match="last message must be the assistant's") as caught:
        load_pairs(path)
    assert caught.value.where == f"{path}, row 2"
    parquet.write_table(pyarrow.Table.from_pylist(rows[:1] + rows[:1]), path)
    with pytest.raises(InputError, match=r"id '7' was used at .*, row 1 already"):
        load_pairs(path)
    parquet.write_table(pyarrow.Table.from_pylist(rows[:1]), path)
    (pair,) = load_pairs(path)
    assert (pair.id, pair.messages, pair.completion, pair.weight) == ("7", (USER,), "Bread!", 2.0)
    assert pair.spans == (Span(0, 5, 0.5),)


texts = st.text(min_size=1).filter(lambda text: text.strip())


weights = st.one_of(st.just(1.0), st.floats(0, 1000, exclude_min=True))
of_a_span = st.one_of(st.none(), weights)


@given(st.lists(st.tuples(texts, texts, weights, of_a_span), min_size=1, max_size=5))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, float, float | None]]
) -> None:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    pairs = [
        Pair(
            str(n),
            "train",
            ({"role": "user", "content": prompt},) * (n % 2),
            completion,
            weight,
            ("", "de")[n % 2],
            () if of_span is None else (Span(0, len(completion), of_span),),
        )
        for n, (prompt, completion, weight, of_span) in enumerate(rows)
    ]
    write_pairs(path, pairs)
    assert load_pairs(path) == pairs


def test_equal_prompts_share_a_split(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{n % 40}", "completion": f"c{n}"} for n in range(400)]
    pairs = list(read_pairs(write(tmp_path, *rows), validation_fraction=0.2, test_fraction=0.2))
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
