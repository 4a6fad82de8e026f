"""Texts of a random model keep to their grammar, and end by themselves."""

import json
import re
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdexport.bundle import Bundle
from kdexport.errors import InputError
from kdexport.runtime.constrain import Grammars, TextForm
from kdexport.runtime.generate import generate, generate_variants
from kdexport.runtime.sample import Sampler, make_sampler
from kdexport.runtime.session import Session, open_session
from kdexport.runtime.text import TextCodec, load_text

SCHEMA = {
    "type": "object",
    "properties": {
        "subject": {"type": "string", "minLength": 3, "maxLength": 12},
        "tone": {"enum": ["warm", "dry"]},
        "count": {"type": "integer", "minimum": 1, "maximum": 30},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 4}, "maxItems": 2},
    },
    "required": ["subject", "tone", "count", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def session(llama_bundle: Bundle) -> Session:
    return open_session(llama_bundle, n_threads=1)


@pytest.fixture(scope="module")
def codec(llama_bundle: Bundle) -> TextCodec:
    return load_text(llama_bundle)


@pytest.fixture(scope="module")
def grammars(codec: TextCodec, session: Session) -> Grammars:
    return Grammars(codec, session.vocab_size)


def written(session: Session, codec: TextCodec, sampler: Sampler, seed: int) -> str:
    steps = list(generate(session, codec.encode("Fresh"), sampler, max_new_tokens=200, seed=seed))
    assert steps[-1].finish_reason == "stop"
    return codec.decode([step.token_id for step in steps if step.in_text])


def drawn() -> Any:
    return make_sampler(temperature=1.3, top_p=0.95, logit_bias={40: 5, 2: -3})


@settings(max_examples=12)
@given(seed=st.integers(0, 99))
def test_json_keeps_to_its_schema(
    session: Session, codec: TextCodec, grammars: Grammars, seed: int
) -> None:
    found = json.loads(written(session, codec, grammars.json_schema(drawn(), SCHEMA), seed))
    assert list(found) == SCHEMA["required"]
    assert 3 <= len(found["subject"]) <= 12 and found["tone"] in ("warm", "dry")
    assert 1 <= found["count"] <= 30 and isinstance(found["count"], int)
    assert len(found["tags"]) <= 2 and all(len(tag) <= 4 for tag in found["tags"])


@settings(max_examples=12)
@given(seed=st.integers(0, 99))
def test_a_pattern_and_a_choice_are_kept_to(
    session: Session, codec: TextCodec, grammars: Grammars, seed: int
) -> None:
    pattern = r"[A-Z][a-z]{2,5}( -?[0-9]{1,2} %)?"
    assert re.fullmatch(pattern, written(session, codec, grammars.regex(drawn(), pattern), seed))
    texts = ['say "yes"', "no\n", "пока"]
    assert written(session, codec, grammars.choice(drawn(), texts), seed) in texts


def test_the_likeliest_allowed_token_is_taken(
    session: Session, codec: TextCodec, grammars: Grammars
) -> None:
    """The first token, beside a reference that tries every one."""
    logits = session.score(codec.encode("Fresh"))[-1]
    starts = [codec.decode([i]) for i in range(session.vocab_size)]
    allowed = [i for i, text in enumerate(starts) if re.fullmatch("[a-z]{1,9}", text)]
    best = max(allowed, key=lambda token: logits[token])
    sampler = grammars.regex(make_sampler(), "[a-z]{1,9}")
    first = next(generate(session, codec.encode("Fresh"), sampler, max_new_tokens=9))
    assert first.token_id == best


def test_texts_of_a_batch_keep_to_it_each_for_itself(
    session: Session, codec: TextCodec, grammars: Grammars
) -> None:
    """One sampler for all: a text is what it is alone."""
    pattern = "[A-Z][a-z]{2,9}"
    form = TextForm("regex", pattern)
    ids = codec.encode("Fresh")

    def texts(sampler: Sampler, n: int) -> list[str]:
        found: list[list[int]] = [[] for _ in range(n)]
        for number, step in generate_variants(
            session, ids, sampler, n=n, max_new_tokens=99, seed=3
        ):
            found[number] += [step.token_id] * step.in_text
        return [codec.decode(one) for one in found]

    sampler = grammars.keep_to(drawn(), form)
    together = texts(sampler, 4)
    assert all(re.fullmatch(pattern, text) for text in together) and len(set(together)) > 1
    assert texts(sampler, 4) == together  # what was written before is forgotten
    assert len(sampler._texts) <= 8
    assert texts(grammars.keep_to(drawn(), form), 1) == together[:1]


@pytest.mark.parametrize("schema", [{"type": "no such"}, {"allOf": 5}, {"$ref": "#/nowhere"}])
def test_what_is_no_schema_is_refused(grammars: Grammars, schema: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="no grammar can be made"):
        grammars.json_schema(make_sampler(), schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "multipleOf": 99_999_989},
        {"type": "number", "multipleOf": 0.99999989},
        {"allOf": [{"type": "integer", "multipleOf": n} for n in (9967, 9973)]},
        {"type": "object", "properties": {"n": {"type": "array", "items": {"multipleOf": 10_007}}}},
    ],
)
def test_a_schema_that_would_take_hours_is_refused(
    grammars: Grammars, schema: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match="multipleOf may come to 10,000"):
        grammars.json_schema(make_sampler(), schema)


@pytest.mark.parametrize("step", [0.01, 5, 1000, 2.5])
def test_a_usual_step_is_kept_to(
    session: Session, codec: TextCodec, grammars: Grammars, step: float
) -> None:
    schema = {"type": "number", "minimum": 0, "maximum": 90000, "multipleOf": step}
    found = json.loads(written(session, codec, grammars.json_schema(drawn(), schema), 1))
    assert 0 <= found <= 90000 and Decimal(str(found)) % Decimal(str(step)) == 0


def test_what_is_no_pattern_is_refused(grammars: Grammars) -> None:
    with pytest.raises(InputError, match="no grammar can be made"):
        grammars.regex(make_sampler(), "[a-")
