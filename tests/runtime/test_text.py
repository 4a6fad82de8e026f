"""Streaming gives the text that decoding gives; templates render in a sandbox."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from kdexport.bundle import Bundle, TextFacts, commit_bundle, staged_bundle
from kdexport.errors import InputError
from kdexport.pipeline.splits import renderer
from kdexport.runtime.text import TextCodec, first_line, load_text, pieces
from tests.models import byte_level_bpe, save_tokenizer


@pytest.fixture(scope="module")
def codec(llama_bundle: Bundle) -> TextCodec:
    return load_text(llama_bundle)


def with_template(codec: TextCodec, template: str | None) -> TextCodec:
    """The same tokenizer with another chat template."""
    return TextCodec(Path(codec.where) / "tokenizer.json", TextFacts(), template)


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
    plain = with_template(codec, None)
    assert plain.render_chat(begun) == plain.render_chat(asked) + "Tern Kettle"


THINKING = (  # the end of Qwen3's
    "{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
)


def test_a_model_that_thinks_aloud_is_asked_not_to(codec: TextCodec, tmp_path: Path) -> None:
    """Here, and where its texts are learnt."""
    asked = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "Tern Kettle"}]
    wanted = "<|im_start|>assistant\n<think>\n\n</think>\n\nTern Kettle"
    assert with_template(codec, THINKING).render_chat(asked) == wanted
    save_tokenizer(tmp_path, byte_level_bpe())
    (tmp_path / "chat_template.jinja").write_text(THINKING)
    assert renderer(AutoTokenizer.from_pretrained(tmp_path))(asked) == wanted


def test_a_line_ends_at_any_token_that_breaks_it(codec: TextCodec, tmp_path: Path) -> None:
    assert set(codec.encode("\n")) <= codec.line_end_ids
    assert not set(codec.encode("no break")) & codec.line_end_ids
    tokenizer = byte_level_bpe()
    tokenizer.add_tokens([".\n", "!\n\n"])  # as Qwen's and Llama 3's merges make them
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    merged = TextCodec(tmp_path / "tokenizer.json", TextFacts(), None)
    for end in (".\n", "!\n\n"):
        ids = merged.encode(f"Bread{end}")
        assert ids[-1] in merged.line_end_ids
        assert not set(ids[:-1]) & merged.line_end_ids
        assert first_line(merged.decode(ids)) == f"Bread{end[0]}"


def test_saved_padding_and_truncation_are_not_applied(tmp_path: Path) -> None:
    tokenizer = byte_level_bpe()
    expected = tokenizer.encode("Fresh bread").ids
    tokenizer.enable_padding(length=64)
    tokenizer.enable_truncation(4)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert TextCodec(tmp_path / "tokenizer.json", TextFacts(), None).encode("Fresh bread") == (
        expected
    )


def test_what_is_no_unicode_is_one_line(codec: TextCodec) -> None:
    with pytest.raises(InputError, match="not valid Unicode"):
        codec.encode("caf\udcff")


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja"])
def test_changed_files_are_refused_before_they_are_read(
    llama_bundle: Bundle, tmp_path: Path, name: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(llama_bundle.path, copy)
    content = bytearray((copy / name).read_bytes())
    content[-1] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name} has changed"):
        load_text(copy)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ raise_exception('no system\n  role') }}", "no system role"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ 'a' + 1 }}", "concatenate"),
        ("{% for i in range(10**9) %}x{% endfor %}", "too big"),
        ("{% include 'x' %}", "no loader"),
        ("{{ strftime_now(5) }}", "str"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{% if %}", "Expected an expression"),
    ],
)
def test_a_template_that_fails_is_one_line(codec: TextCodec, template: str, reason: str) -> None:
    with pytest.raises(InputError, match=f"the chat template refuses.*{reason}") as caught:
        with_template(codec, template).render_chat([{"role": "user", "content": "x"}])
    assert caught.value.where == codec.where
    assert "\n" not in str(caught.value)


def test_a_template_that_is_no_utf8_is_one_line(llama_bundle: Bundle, tmp_path: Path) -> None:
    with staged_bundle(tmp_path / "b") as staging:
        for name in llama_bundle.manifest.files:
            (staging / name).parent.mkdir(exist_ok=True)
            (staging / name).write_bytes(llama_bundle.file(name).read_bytes())
        (staging / "chat_template.jinja").write_bytes(b"caf\xff")
        bundle = commit_bundle(staging, tmp_path / "b", llama_bundle.manifest)
    with pytest.raises(InputError, match=r"chat_template\.jinja: is not UTF-8"):
        load_text(bundle)
