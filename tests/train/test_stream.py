"""A file is read again in each epoch: every line once, in an order that can be gone on with."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdexport.train.data import Batch, Encoded
from kdexport.train.stream import Lines, Stream

TOO_LONG = 20


def read(line: bytes) -> Encoded | None:
    """A line is a name and a length."""
    name, length = line.split()
    if int(length) > TOO_LONG:
        return None
    return Encoded(name.decode(), np.arange(int(length), dtype=np.int64), 1, 1)


def write(path: Path, lengths: list[int]) -> Path:
    lines = [f"{number} {length}\n" for number, length in enumerate(lengths)]
    path.write_text("".join([*lines, "held out, and no training text\n"]))
    return path


def names(batches: list[Batch]) -> list[list[str]]:
    return [[example.example_id for example in batch.examples] for batch in batches]


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[int], int, int, int | None]:
    lengths = draw(st.lists(st.integers(2, TOO_LONG + 4), min_size=1, max_size=90))
    lengths.append(2)  # at least one that fits
    row_length = draw(st.sampled_from([None, TOO_LONG]))
    return lengths, draw(st.integers(1, 3)), draw(st.integers(1, 100)), row_length


@given(streams(), st.data())
def test_epochs_have_every_line_once_and_can_be_gone_on_with(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: tuple[list[int], int, int, int | None],
    data: st.DataObject,
) -> None:
    lengths, batch_size, buffer, row_length = drawn
    path = write(tmp_path_factory.mktemp("stream") / "data", lengths)
    lines = Lines(path, len(lengths), read)

    def stream() -> Stream:
        return Stream(lines, batch_size, 3, buffer, row_length=row_length)

    fitting = sorted(str(n) for n, length in enumerate(lengths) if length <= TOO_LONG)
    whole = stream()
    first = whole.group(whole.n_batches)
    assert sorted(itertools.chain(*names(first))) == fitting
    assert all(len(batch.ids) <= batch_size for batch in first)
    states, batches = [], []
    again = stream()
    for _ in range(2 * again.n_batches):
        states.append(again.state())
        batches += again.group(1)
    assert names(batches[: len(first)]) == names(first)
    place = data.draw(st.integers(0, len(states) - 1))
    rest = stream()
    rest.restore(states[place])
    assert names(rest.group(len(batches) - place)) == names(batches[place:])


def test_no_line_is_drawn_long_before_its_turn(tmp_path: Path) -> None:
    """The buffer is bounded: what is drawn nth was among the first n + buffer lines."""
    path = write(tmp_path / "data", [2] * 500)
    order = [int(name) for [name] in names(Stream(Lines(path, 500, read), 1, 0, 20).group(320))]
    # Batches of a group of 16 are shuffled once more.
    assert all(name < place + 20 + 16 for place, name in enumerate(order))
    assert order != sorted(order)
    # A line waits for about as long as the buffer is, which spreads places by as much.
    assert 10 < np.std([place - name for place, name in enumerate(order)]) < 40


def test_epochs_and_seeds_are_shuffled_apart(tmp_path: Path) -> None:
    path = write(tmp_path / "data", [2] * 50)
    stream = Stream(Lines(path, 50, read), 1, 0, 1000)
    one, two = names(stream.group(50)), names(stream.group(50))
    other = names(Stream(Lines(path, 50, read), 1, 1, 1000).group(50))
    assert one != two and one != other and two != other


def test_only_some_batches_are_held(tmp_path: Path) -> None:
    """Texts are read when their turn comes: 16 batches at a time."""
    path = write(tmp_path / "data", [2] * 1000)
    n_read = 0

    def counted(line: bytes) -> Encoded | None:
        nonlocal n_read
        n_read += 1
        return read(line)

    stream = Stream(Lines(path, 1000, counted), 2, 0, 500)
    stream.group(1)
    assert n_read == 32
    stream.group(15)
    assert n_read == 32
    stream.group(1)
    assert n_read == 64
    stream.restore(stream.state())
    stream.group(1)
    assert n_read == 96
