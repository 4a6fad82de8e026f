"""Texts that follow a JSON schema, a regular expression or a choice, whatever the model prefers.

llguidance says at each token which may come next, from the grammar's derivatives and a trie of the
vocabulary; the sampler chooses among these. Knows tokens and grammars; no model.
"""

import json
import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

import numpy as np

from kdexport.errors import InputError, first_words, require_extras
from kdexport.runtime.sample import Row, Sampler
from kdexport.runtime.text import TextCodec

JSON_FORM: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""No white space of the model's own: a small one may write nothing else."""
MOST_REMAINDERS = 10_000
"""Of ``multipleOf``: the grammar has a state for each, which llguidance does not bound."""
Array = np.ndarray[Any, Any]
NEVER = np.float32(-np.inf)


@dataclass(frozen=True)
class TextForm:
    """What a text has to be: ``wanted`` is a JSON schema, a regular expression, or some texts."""

    kind: Literal["json", "regex", "choice"]
    wanted: Any


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

    def keep_to(self, sampler: Sampler, form: TextForm) -> "Constrained":
        """A sampler for texts of a form. Raises InputError for one that is none."""
        make: Mapping[str, Callable[[Sampler, Any], Constrained]] = {
            "json": self.json_schema,
            "regex": self.regex,
            "choice": self.choice,
        }
        return make[form.kind](sampler, form.wanted)

    def json_schema(self, sampler: Sampler, schema: Mapping[str, Any]) -> "Constrained":
        """A sampler for texts that are JSON by a schema. Raises InputError for one that is none.

        A text that ends for its length is only the beginning of such JSON.
        """
        from llguidance import LLMatcher

        if math.lcm(*_multiples(schema)) > MOST_REMAINDERS:
            raise InputError(f"multipleOf may come to {MOST_REMAINDERS:,} at most, all together")
        grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=JSON_FORM)
        return self._constrained(sampler, grammar)

    def regex(self, sampler: Sampler, pattern: str) -> "Constrained":
        """A sampler for texts that match a regular expression (of Rust's kind) as a whole."""
        from llguidance import LLMatcher

        return self._constrained(sampler, LLMatcher.grammar_from_regex(pattern))

    def choice(self, sampler: Sampler, texts: Sequence[str]) -> "Constrained":
        """A sampler for texts that are one of several."""
        from llguidance import LLMatcher

        words = " | ".join(json.dumps(text) for text in texts)
        return self._constrained(sampler, LLMatcher.grammar_from_lark(f"start: {words}"))

    def _constrained(self, sampler: Sampler, grammar: str) -> "Constrained":
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise InputError(f"no grammar can be made of it ({_first_line(matcher.get_error())})")
        return Constrained(sampler, matcher, self._vocab_size)


def _multiples(schema: Any) -> Iterator[int]:
    """What numbers of a schema have to be multiples of, whatever their power of ten."""
    waiting = [schema]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Mapping):
            waiting += one.values()
            found = one.get("multipleOf")
            if isinstance(found, bool) or not isinstance(found, int | float):
                continue
            if math.isfinite(found):
                digits = Decimal(str(found)).normalize().as_tuple().digits
                yield int("".join(map(str, digits)))
        elif isinstance(one, list):
            waiting += one


class Constrained:
    """A `Sampler` that knows how far each text has come, and what it may go on with.

    Made by `Grammars`.
    """

    def __init__(self, sampler: Sampler, matcher: Any, vocab_size: int) -> None:
        self._sampler = sampler
        self._matcher = matcher  # where every text begins
        self._texts: dict[int, _Text] = {}
        self._mask = np.zeros((vocab_size + 31) // 32, dtype=np.int32)

    def __call__(self, logits: Array, rows: Sequence[Row]) -> Array:
        """The next tokens, int64 [B], of logits, float32 [B, V]."""
        allowed = [self._allowed(row, logits.shape[1]) for row in rows]
        tokens = np.array([int(one.argmax()) for one in allowed])
        open_ = [at for at, one in enumerate(allowed) if np.count_nonzero(one) != 1]
        if open_:  # what is certain needs no sampler: it draws no number for it
            masked = np.where(np.stack([allowed[at] for at in open_]), logits[open_], NEVER)
            tokens[open_] = self._sampler(masked, [rows[at] for at in open_])
        return tokens

    def _allowed(self, row: Row, size: int) -> Array:
        """Which tokens may follow in a text, bool [size]."""
        matcher = self._text_of(row).take(row.ids[row.n_prompt :])
        matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        if matcher.is_error():
            reason = _first_line(matcher.get_error())
            raise InputError(f"the grammar cannot be followed further ({reason})")
        may_come = np.unpackbits(self._mask.view(np.uint8), bitorder="little")
        return may_come[:size].astype(bool)

    def _text_of(self, row: Row) -> "_Text":
        known = self._texts.get(id(row))
        if known is None or known.row() is not row:
            self._texts = {key: one for key, one in self._texts.items() if one.row() is not None}
            known = self._texts[id(row)] = _Text(weakref.ref(row), self._matcher.deep_copy())
        return known


@dataclass
class _Text:
    """One text under way, as far as its grammar has read it."""

    row: weakref.ref[Row]
    matcher: Any
    n_taken: int = 0

    def take(self, written: Sequence[int]) -> Any:
        """The matcher after all that is written."""
        self.matcher.consume_tokens(written[self.n_taken :])
        self.n_taken = len(written)
        return self.matcher


def _first_line(text: str) -> str:
    return first_words(ValueError(text.partition("\n")[0]))
