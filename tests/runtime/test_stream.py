"""Text as it is written: no stop string, no half character, each variant by itself."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdexport.bundle import Bundle
from kdexport.runtime.generate import generate
from kdexport.runtime.sample import make_sampler
from kdexport.runtime.session import Session, open_session
from kdexport.runtime.stream import Piece, TextStream, write_text
from kdexport.runtime.text import TextCodec, load_text


@pytest.fixture(scope="module")
def session(llama_bundle: Bundle) -> Session:
    return open_session(llama_bundle, n_threads=1)


@pytest.fixture(scope="module")
def codec(llama_bundle: Bundle) -> TextCodec:
    return load_text(llama_bundle)


def write(session: Session, codec: TextCodec, **options: Any) -> list[Piece]:
    sampler = make_sampler(temperature=options.pop("temperature", 0.0))
    options = {"max_new_tokens": 24, "seed": 2, **options}
    return list(write_text(session, codec, codec.encode("Fresh bread"), sampler, **options))


def texts(pieces: list[Piece], n: int = 1) -> list[str]:
    return ["".join(piece.text for piece in pieces if piece.variant == v) for v in range(n)]


@given(
    text=st.text("ab é🎉", max_size=20),
    stops=st.lists(st.text("ab é🎉", min_size=1, max_size=4), max_size=2),
)
def test_a_stream_ends_before_its_stop_string(
    codec: TextCodec, text: str, stops: list[str]
) -> None:
    """The text byte by byte, as a tokenizer may cut it."""
    stream, given_out = TextStream(codec, stops), ""
    for token_id in codec.encode(text):
        piece = stream.push(token_id)
        assert "\ufffd" not in piece
        given_out += piece
        assert not any(stop in given_out for stop in stops)
        if stream.stopped:
            break
    given_out += stream.flush()
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    assert given_out == (text[: min(ends)[1]] if ends else text)
    assert stream.stopped == bool(ends)


def test_pieces_join_to_the_decoded_text(session: Session, codec: TextCodec) -> None:
    steps = list(generate(session, codec.encode("Fresh bread"), make_sampler(), max_new_tokens=24))
    pieces = write(session, codec)
    assert [piece.step for piece in pieces] == steps
    assert texts(pieces) == [codec.decode([step.token_id for step in steps if step.in_text])]


def test_a_stop_string_ends_the_writing(session: Session, codec: TextCodec) -> None:
    [whole] = texts(write(session, codec))
    for begin in range(0, len(whole) - 4, 3):
        stop = whole[begin : begin + 3]
        if "\ufffd" in stop:
            continue
        pieces = write(session, codec, stop=["not there", stop])
        assert texts(pieces) == [whole[: whole.index(stop)]]
        assert pieces[-1].step.finish_reason == "stop"
        assert stop in codec.decode([piece.step.token_id for piece in pieces])
        assert stop not in codec.decode([piece.step.token_id for piece in pieces[:-1]])


def test_what_was_held_back_comes_at_the_end(session: Session, codec: TextCodec) -> None:
    [whole] = texts(write(session, codec))
    pieces = write(session, codec, stop=[whole[-2:] + "?"])
    assert texts(pieces) == [whole]
    assert pieces[-1].step.finish_reason == "length"


def test_variants_stop_each_by_itself(session: Session, codec: TextCodec) -> None:
    free = texts(write(session, codec, n=4, temperature=1.0), 4)
    stop = next(letter for letter in free[0][3:] if letter != "\ufffd")
    pieces = write(session, codec, n=4, temperature=1.0, stop=[stop])
    assert texts(pieces, 4) == [text.partition(stop)[0] for text in free]
    reasons = [
        next(p.step.finish_reason for p in reversed(pieces) if p.variant == v) for v in range(4)
    ]
    assert reasons == ["stop" if stop in text else "length" for text in free]


def test_the_caller_s_own_stops_hold_too(session: Session, codec: TextCodec) -> None:
    pieces = write(session, codec, stops=lambda number, token_id: True)
    assert len(pieces) == 1
    assert pieces[0].step.finish_reason == "stop"
