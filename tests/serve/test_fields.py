"""Whatever a request holds, it is taken within its bounds or refused by name."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from kdexport.serve.fields import ChatRequest, CompletionRequest, CopyRequest
from kdexport.serve.refusals import refusal_of

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
BASES: list[tuple[type[BaseModel], dict[str, Any]]] = [
    (CompletionRequest, {"model": "m", "prompt": "a"}),
    (ChatRequest, {"model": "m", "messages": [{"role": "user", "content": "a"}]}),
    (CopyRequest, {"brief": {"product": "a"}}),
]
NUMBERS = {  # least, most
    "temperature": (0, 2),
    "top_p": (1e-6, 1),
    "min_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "repetition_penalty": (0.01, 100),
}
COUNTS = {"n": (1, 128), "top_k": (0, 1_000_000), "seed": (-(2**63), 2**63 - 1)}


@pytest.mark.parametrize(("kind", "base"), BASES)
@given(data=st.data())
def test_anything_is_taken_or_refused_in_a_line(
    kind: type[BaseModel], base: dict[str, Any], data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from([*kind.model_fields, "other"]))
    value = data.draw(ANY)
    try:
        kind.model_validate(base | {name: value})
    except ValidationError as error:
        body = refusal_of(error).body["error"]
        assert body["message"] and "\n" not in body["message"]
        assert json.dumps(body, allow_nan=False)
    else:
        assert value is None or name in kind.model_fields


@pytest.mark.parametrize(("kind", "base"), BASES)
@given(name=st.sampled_from(sorted(NUMBERS)), value=st.floats())
def test_a_number_is_within_its_bounds(
    kind: type[BaseModel], base: dict[str, Any], name: str, value: float
) -> None:
    low, high = NUMBERS[name]
    is_good = low <= value <= high
    try:
        asked: Any = kind.model_validate(base | {name: value})
    except ValidationError as error:
        assert not is_good and refusal_of(error).param == name
    else:
        assert is_good
        asked.sampler()


@given(st.sampled_from(sorted(COUNTS)), st.integers() | st.integers(-2, 130))
def test_a_count_is_within_its_bounds(name: str, value: int) -> None:
    low, high = COUNTS[name]
    try:
        CompletionRequest.model_validate({"model": "m", "prompt": "a", name: value})
    except ValidationError as error:
        assert not low <= value <= high and refusal_of(error).param == name
    else:
        assert low <= value <= high


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_a_prompt_has_four_forms(prompt: Any, prompts: list[Any]) -> None:
    asked = CompletionRequest.model_validate({"model": "m", "prompt": prompt})
    assert asked.prompts == prompts


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        ([], "prompt.text"),
        ([[]], "prompt.lists of ids.0"),
        ([1, "a"], "prompt.ids.1"),
        (["a", 1], "prompt.texts.1"),
        (["a"] * 129, "prompt.texts"),
        (5, "prompt.text"),
        ({"a": 1}, "prompt.text"),
    ],
)
def test_a_prompt_that_is_none_is_named(prompt: Any, param: str) -> None:
    with pytest.raises(ValidationError) as refused:
        CompletionRequest.model_validate({"model": "m", "prompt": prompt})
    assert refusal_of(refused.value).param == param


def test_several_copies_are_drawn_warmer() -> None:
    one, several = ({"brief": {"product": "a", "variants": n}} for n in (None, 3))
    asked: list[dict[str, Any]] = [one, several, several | {"temperature": 0.1}]
    found = [CopyRequest.model_validate(one).temperature for one in asked]
    assert found == [0.0, 0.8, 0.1]


def test_a_seed_that_is_not_given_is_another_each_time() -> None:
    seeds = {CompletionRequest.model_validate({"model": "m", "prompt": "a"}).seed for _ in range(9)}
    assert len(seeds) == 9
