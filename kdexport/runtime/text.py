"""Text to token ids and back, and chat messages to the text that a model reads."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from kdexport.bundle import Bundle, TextFacts, check_files, open_bundle
from kdexport.content.prompts import ASKING, plain_chat, split_opening
from kdexport.errors import InputError, first_words

Message = Mapping[str, str]


class TextCodec:
    """The tokenizer and chat template of one bundle."""

    def __init__(self, tokenizer_json: Path, facts: TextFacts, template: str | None) -> None:
        from tokenizers import Tokenizer

        try:
            self.tokenizer = Tokenizer.from_file(str(tokenizer_json))
        except Exception as error:  # tokenizers raises plain Exception
            raise InputError(
                f"is no tokenizer ({first_words(error)})", where=str(tokenizer_json)
            ) from error
        self.where = str(tokenizer_json.parent)
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.facts = facts
        self.template = template

    def encode(self, text: str) -> list[int]:
        """Token ids; special tokens written out in the text count as such; only BOS is added.

        Raises InputError for text that is no Unicode (it came from bytes that are not UTF-8).
        """
        try:
            ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        except TypeError:  # tokenizers' word for lone surrogates
            raise InputError("the text is not valid Unicode", remedy="give it as UTF-8") from None
        bos = self.facts.bos_token_id
        if self.facts.add_bos and bos is not None and ids[:1] != [bos]:
            return [bos, *ids]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    @cached_property
    def line_end_ids(self) -> frozenset[int]:
        """The tokens with a line break in them: where a line ends, if not at their beginning."""
        size = self.tokenizer.get_vocab_size()
        texts = self.tokenizer.decode_batch([[i] for i in range(size)], skip_special_tokens=True)
        return frozenset(i for i, text in enumerate(texts) if "\n" in text)

    def render_chat(self, messages: Sequence[Message]) -> str:
        """The prompt that asks for an answer to ``messages``.

        Through the model's chat template, as Hugging Face renders it, in a sandbox; a model
        without one reads the messages' contents as plain text. A last message of the assistant's
        is an answer that has begun: the model goes on from its words. Raises InputError for
        messages that the template refuses, and for a template that cannot be rendered.
        """
        asked, opening = split_opening(messages)
        if self.template is None:
            return plain_chat(asked) + opening
        try:
            prompt = self._compiled.render(
                messages=asked,
                **ASKING,
                bos_token=self.facts.bos_token or "",
                eos_token=self.facts.eos_token or "",
            )
        except Exception as error:  # a template is a program: it may fail in any way
            raise InputError(
                f"the chat template refuses the messages ({first_words(error)})", where=self.where
            ) from error
        return f"{prompt}{opening}"

    @cached_property
    def _compiled(self) -> Any:
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _now
        return environment.from_string(self.template or "")

    def stream(self) -> "StreamDecoder":
        """A decoder that is fed one token at a time."""
        return StreamDecoder(self)


class StreamDecoder:
    """Text piece by piece; all pieces together are `TextCodec.decode` of all tokens.

    A piece is held back while it ends within a UTF-8 character. Only the tokens since the last
    pieces are decoded again, so the cost of a token does not grow with the text.
    """

    def __init__(self, codec: TextCodec) -> None:
        self._codec = codec
        self._ids: list[int] = []
        self._begin = 0  # of the window that is decoded again
        self._end = 0  # tokens before it have been given out

    def push(self, token_id: int) -> str:
        """Add a token; return the text that is now certain (often, but not always, its own)."""
        self._ids.append(token_id)
        text = self._new_text()
        if not text or text.endswith("\ufffd"):
            return ""
        self._begin, self._end = self._end, len(self._ids)
        return text

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        text = self._new_text()
        self._begin = self._end = len(self._ids)
        return text

    def _new_text(self) -> str:
        before = self._codec.decode(self._ids[self._begin : self._end])
        return self._codec.decode(self._ids[self._begin :])[len(before) :]


def load_text(bundle: Bundle | Path | str) -> TextCodec:
    """The text side of a bundle; the hashes of its files are checked before they are read."""
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    template = opened.file("chat_template.jinja")
    check_files(opened, {"tokenizer.json", template.name} & opened.manifest.files.keys())
    try:
        read = template.read_text("utf-8") if template.name in opened.manifest.files else None
    except UnicodeDecodeError:
        raise InputError("is not UTF-8", where=str(template)) from None
    return TextCodec(opened.file("tokenizer.json"), opened.manifest.text, read)


def first_line(text: str) -> str:
    """What stands before the first line break."""
    return text.partition("\n")[0]


def pieces(codec: TextCodec, ids: Sequence[int]) -> Iterator[str]:
    """The pieces in which a text would be streamed."""
    decoder = codec.stream()
    for token_id in ids:
        yield decoder.push(token_id)
    yield decoder.flush()


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    # jinja2's own filter escapes for HTML, which a prompt is not.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise(message: str) -> None:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
