"""Streaming gives the text that decoding gives; templates render in a sandbox."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdexport.bundle import Bundle, TextFacts
from kdexport.errors import InputError
from kdexport.runtime.text import TextCodec, load_text, pieces


@pytest.fixture(scope="module")
def codec(llama_bundle: Bundle) -> TextCodec:
    return load_text(llama_bundle)


@given(text=st.text())
def test_pieces_join_to_the_text(codec: TextCodec, text: str) -> None:
    ids = codec.encode(text)
    assert "".join(pieces(codec, ids)) == codec.decode(ids)


@given(ids=st.lists(st.integers(3, 319), max_size=40))
def test_pieces_of_any_tokens_join_to_their_decoding(codec: TextCodec, ids: list[int]) -> None:
    assert "".join(pieces(codec, ids)) == codec.decode(ids)


def test_no_piece_ends_within_a_character(codec: TextCodec) -> None:
    ids = codec.encode("é🎉你")
    given_out = list(pieces(codec, ids))[:-1]
    assert all("\ufffd" not in piece for piece in given_out)
    assert len(ids) > 3  # the bytes really came one by one


def test_bos_is_added_once() -> None:
    import tempfile
    from pathlib import Path

    from tests.models import byte_level_bpe

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        byte_level_bpe().save(str(path))
        codec = TextCodec(path, TextFacts(bos_token_id=1, add_bos=True), None)
        assert codec.encode("hi")[0] == 1
        assert codec.encode("<|im_start|>hi").count(1) == 1


def test_a_begun_answer_is_gone_on_with(codec: TextCodec) -> None:
    asked = [{"role": "user", "content": "x"}]
    begun = [*asked, {"role": "assistant", "content": "Tern Kettle"}]
    assert codec.render_chat(begun) == codec.render_chat(asked) + "Tern Kettle"
    plain = TextCodec.__new__(TextCodec)
    plain.facts, plain.template = TextFacts(), None
    assert plain.render_chat(begun) == plain.render_chat(asked) + "Tern Kettle"


def test_a_line_ends_at_any_token_that_breaks_it(codec: TextCodec) -> None:
    assert set(codec.encode("\n")) <= codec.line_end_ids
    assert not set(codec.encode("no break")) & codec.line_end_ids


def test_a_template_cannot_reach_python(codec: TextCodec) -> None:
    evil = TextCodec.__new__(TextCodec)
    evil.facts, evil.template = TextFacts(), "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(InputError, match="refuses"):
        evil.render_chat([{"role": "user", "content": "x"}])


def test_a_template_may_refuse(codec: TextCodec) -> None:
    strict = TextCodec.__new__(TextCodec)
    strict.facts, strict.template = TextFacts(), "{{ raise_exception('no system role') }}"
    with pytest.raises(InputError, match="no system role"):
        strict.render_chat([{"role": "system", "content": "x"}])
