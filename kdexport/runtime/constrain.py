"""Texts that follow a JSON schema, a regular expression or a choice, whatever the model prefers.

llguidance says at each token which may come next, from the grammar's derivatives and a trie of the
vocabulary; the sampler chooses among these. Knows tokens and grammars; no model.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from kdexport.errors import InputError, first_words, require_extras
from kdexport.runtime.sample import Row, Sampler
from kdexport.runtime.text import TextCodec

JSON_FORM: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""No white space of the model's own: a small one may write nothing else."""
Array = np.ndarray[Any, Any]


class Grammars:
    """Grammars over the tokens of one model; making it goes through its whole vocabulary.

    Raises MissingExtraError where llguidance is not installed.
    """

    def __init__(self, codec: TextCodec, vocab_size: int) -> None:
        require_extras("constrained")
        from llguidance import LLTokenizer

        self._vocab_size = vocab_size
        self._tokenizer = LLTokenizer(
            codec.tokenizer.to_str(),
            n_vocab=vocab_size,
            eos_token=list(codec.facts.eos_token_ids),
        )

    def json_schema(self, sampler: Sampler, schema: dict[str, Any]) -> "Constrained":
        """A sampler for one text that is JSON by a schema. Raises InputError for one that is none.

        A text that ends for its length is only the beginning of such JSON.
        """
        from llguidance import LLMatcher

        grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=JSON_FORM)
        return self._constrained(sampler, grammar)

    def regex(self, sampler: Sampler, pattern: str) -> "Constrained":
        """A sampler for one text that matches a regular expression (of Rust's kind) as a whole."""
        from llguidance import LLMatcher

        return self._constrained(sampler, LLMatcher.grammar_from_regex(pattern))

    def choice(self, sampler: Sampler, texts: Sequence[str]) -> "Constrained":
        """A sampler for one text that is one of several."""
        from llguidance import LLMatcher

        words = " | ".join(json.dumps(text) for text in texts)
        return self._constrained(sampler, LLMatcher.grammar_from_lark(f"start: {words}"))

    def _constrained(self, sampler: Sampler, grammar: str) -> "Constrained":
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise InputError(f"no grammar can be made of it ({_first_line(matcher.get_error())})")
        return Constrained(sampler, matcher, self._vocab_size)


class Constrained:
    """A `Sampler` of one text, with what the text may go on with. Made by `Grammars`."""

    def __init__(self, sampler: Sampler, matcher: Any, vocab_size: int) -> None:
        self._sampler = sampler
        self._matcher = matcher
        self._n_taken = 0
        self._mask = np.zeros((vocab_size + 31) // 32, dtype=np.int32)

    def __call__(self, logits: Array, rows: Sequence[Row]) -> Array:
        """The next token, int64 [1], of logits, float32 [1, V]."""
        (row,) = rows
        written = row.ids[row.n_prompt :]
        self._matcher.consume_tokens(written[self._n_taken :])
        self._n_taken = len(written)
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        if self._matcher.is_error():
            reason = _first_line(self._matcher.get_error())
            raise InputError(f"the grammar cannot be followed further ({reason})")
        may_come = np.unpackbits(self._mask.view(np.uint8), bitorder="little")
        allowed = may_come[: logits.shape[1]].astype(bool)
        return self._sampler(np.where(allowed, logits, np.float32(-np.inf)), rows)


def _first_line(text: str) -> str:
    return first_words(ValueError(text.partition("\n")[0]))
