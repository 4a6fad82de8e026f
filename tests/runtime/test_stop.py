"""Stop strings, wherever the text is cut into pieces."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kdexport.errors import InputError
from kdexport.runtime.stop import StopScanner

stops_of_few_letters = st.lists(st.text("ab.", min_size=1, max_size=4), max_size=3)
pieces_of_few_letters = st.lists(st.text("ab.", max_size=5), max_size=12)


def up_to_the_first(text: str, stops: list[str]) -> tuple[str, bool]:
    """Letter by letter: the text before the longest stop string that is complete first."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


def scan(pieces: list[str], stops: list[str]) -> tuple[list[str], bool]:
    scanner = StopScanner(stops)
    given_out = [scanner.push(piece) for piece in pieces]
    return [*given_out, scanner.flush()], scanner.stopped


@example(["abab"], ["abab", "ba"])
@given(pieces_of_few_letters, stops_of_few_letters)
def test_pieces_join_to_the_text_before_the_first(pieces: list[str], stops: list[str]) -> None:
    given_out, stopped = scan(pieces, stops)
    assert ("".join(given_out), stopped) == up_to_the_first("".join(pieces), stops)


@given(pieces_of_few_letters, stops_of_few_letters)
def test_no_more_is_held_back_than_may_become_one(pieces: list[str], stops: list[str]) -> None:
    """After each piece: all but the longest end of the text that begins a stop string."""
    scanner, given_out, text = StopScanner(stops), "", ""
    for piece in pieces:
        given_out += scanner.push(piece)
        text += piece
        if scanner.stopped:
            return
        starts = [stop[:n] for stop in stops for n in range(1, len(stop))]
        held = max((len(start) for start in starts if text.endswith(start)), default=0)
        assert given_out == text[: len(text) - held]


def test_half_of_one_that_does_not_come_is_given_out() -> None:
    scanner = StopScanner(["END"])
    assert [scanner.push(piece) for piece in ("an E", "N", "d.", " EN")] == ["an ", "", "ENd.", " "]
    assert scanner.flush() == "EN"
    assert not scanner.stopped


def test_nothing_comes_after_it() -> None:
    scanner = StopScanner(["\n\n", "##"])
    assert [scanner.push(piece) for piece in ("one\n", "\ntwo", "three")] == ["one", "", ""]
    assert scanner.flush() == ""
    assert scanner.stopped


def test_an_empty_one_is_refused() -> None:
    with pytest.raises(InputError, match="empty"):
        StopScanner(["x", ""])
