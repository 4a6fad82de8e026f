"""Trimming keeps every text exact, and the tokens of the texts that it was made for."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from kdexport.errors import InputError
from kdexport.train.vocabulary import Said, trim_tokenizer
from tests.models import CORPUS, byte_level_bpe

FULL = byte_level_bpe(420)
TRIMMED, KEPT = trim_tokenizer(FULL, map(Said, CORPUS[:2]), 330)


def test_size_and_order() -> None:
    assert TRIMMED.get_vocab_size() == len(KEPT) == 330
    assert sorted(KEPT) == KEPT
    for token, new in TRIMMED.get_vocab().items():
        assert FULL.id_to_token(KEPT[new]) == token


@given(st.text())
def test_any_text_round_trips(text: str) -> None:
    ids = TRIMMED.encode(text).ids
    assert TRIMMED.decode(ids, skip_special_tokens=False) == FULL.decode(
        FULL.encode(text).ids, skip_special_tokens=False
    )


def test_texts_whose_tokens_are_kept_are_cut_as_before() -> None:
    trimmed, kept = trim_tokenizer(FULL, map(Said, CORPUS), 400)
    for text in CORPUS:
        before = FULL.encode(text).ids
        if set(before) <= set(kept):
            assert [kept[i] for i in trimmed.encode(text).ids] == before
    assert any(set(FULL.encode(text).ids) <= set(kept) for text in CORPUS)


def test_special_tokens_stay_whole() -> None:
    ids = TRIMMED.encode("<|im_start|>user\nhi<|im_end|>").ids
    assert ids[0] == TRIMMED.token_to_id("<|im_start|>")
    assert ids[-1] == TRIMMED.token_to_id("<|im_end|>")


def test_a_template_that_inserts_ids_is_renumbered() -> None:
    spec = json.loads(FULL.to_str())
    spec["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<|im_end|>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            "<|im_end|>": {"id": "<|im_end|>", "ids": [2], "tokens": ["<|im_end|>"]}
        },
    }
    trimmed, _ = trim_tokenizer(Tokenizer.from_str(json.dumps(spec)), map(Said, CORPUS), 300)
    assert trimmed.encode("x").ids[0] == trimmed.token_to_id("<|im_end|>")


def test_too_small_is_refused() -> None:
    with pytest.raises(InputError, match="too small"):
        trim_tokenizer(FULL, map(Said, CORPUS), 100)


def test_other_kinds_are_refused() -> None:
    wordlevel = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    with pytest.raises(InputError, match="cannot be trimmed"):
        trim_tokenizer(wordlevel, [Said("a")], 2)


ENGLISH = ["Fresh bread from our oven, and the kettle is on its way to your door."] * 40
GERMAN = ["Frisches Brot und heißer Kaffee für Frühaufsteher, jeden Morgen ab sechs Uhr."]
CHINESE = ["清晨的面包与咖啡送到您的门口。", "面包店今天开门咖啡免费续杯。"]
MIXED = byte_level_bpe(700, [*ENGLISH[:1], *GERMAN, *CHINESE])


def n_tokens(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.encode(text).ids)


def test_a_language_of_few_texts_keeps_its_tokens() -> None:
    """Of one text among forty, none would be kept if all counted alike."""
    texts = [Said(text, "en") for text in ENGLISH] + [Said(GERMAN[0], "de")]
    apart, _ = trim_tokenizer(MIXED, texts, 350)
    alike, _ = trim_tokenizer(MIXED, [Said(one.text) for one in texts], 350)
    assert n_tokens(apart, GERMAN[0]) < 0.8 * n_tokens(alike, GERMAN[0])
    assert n_tokens(apart, ENGLISH[0]) < 2 * n_tokens(MIXED, ENGLISH[0])
    assert n_tokens(apart, GERMAN[0]) == n_tokens(MIXED, GERMAN[0])


def test_what_is_filled_up_has_the_scripts_of_the_texts() -> None:
    """The second Chinese text is not seen; its characters are kept before rare English words."""
    texts = [Said(ENGLISH[0][:10], "en"), Said(CHINESE[0], "zh")]
    both, kept = trim_tokenizer(MIXED, texts, 400)
    alone, _ = trim_tokenizer(MIXED, [Said(ENGLISH[0][:10])], 400)
    assert n_tokens(both, CHINESE[1]) < n_tokens(alone, CHINESE[1])
    assert trim_tokenizer(MIXED, texts, 400)[1] == kept


def test_special_tokens_that_stand_in_no_vocabulary_are_counted() -> None:
    spec = json.loads(MIXED.to_str())
    for token in spec["added_tokens"]:
        del spec["model"]["vocab"][token["content"]]
    texts = [Said(f"<|im_start|>{GERMAN[0]}", "de"), Said(CHINESE[0], "zh")]
    trimmed, _ = trim_tokenizer(Tokenizer.from_str(json.dumps(spec)), texts, 400)
    assert trimmed.encode("<|im_start|>").ids == [trimmed.token_to_id("<|im_start|>")]
