from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors

from kdexport.data.pairs import Pair
from kdexport.data.spans import Span
from kdexport.errors import InputError
from kdexport.train.data import Encoded, collate, encoded, ordered_batches, token_batches
from tests.models import byte_level_bpe

PAIR = Pair("a", "train", ({"role": "user", "content": "Bread?"},), "Fresh bread!")


def example(name: str, n: int, first: int = 1) -> Encoded:
    return Encoded(name, np.arange(n, dtype=np.int64), first, first)


def test_only_the_completion_and_its_end_are_targets() -> None:
    tokenizer = byte_level_bpe()
    batch = collate([encoded(PAIR, tokenizer, lambda m: m[0]["content"] + "\n", eos_id=2)])
    assert batch.labels.tolist() == [*tokenizer.encode("Fresh bread!").ids, 2]


def test_plain_text_learns_all_but_its_first_token() -> None:
    text = Pair("a", "train", (), "Fresh bread!")
    found = encoded(text, byte_level_bpe(), lambda _: "", None)
    assert found.n_targets == len(found.ids) - 1


def test_a_prompt_can_be_learnt_too() -> None:
    tokenizer = byte_level_bpe()
    found = encoded(PAIR, tokenizer, lambda _: "Bread? ", eos_id=2, prompts_too=True)
    batch = collate([found, example("b", 6, first=3)])
    n_prompt = len(tokenizer.encode("Bread? ").ids)
    n_completion = len(tokenizer.encode("Fresh bread!").ids) + 1
    expected = [False] * (n_prompt - 1) + [True] * n_completion + [True] * 3
    assert batch.is_completion.tolist() == expected
    assert batch.n_completion == n_completion + 3
    assert batch.n_targets == len(expected)


@pytest.mark.parametrize(
    ("pair", "eos_id"),
    [
        (Pair("a", "train", (), "B"), None),  # a text's first token is predicted from nothing
        (Pair("a", "train", (), "\u0301"), 2),  # which the normalizer takes away
        (Pair("a", "train", PAIR.messages, "\u0301"), None),
    ],
)
def test_a_pair_of_which_nothing_can_be_learnt_is_refused(pair: Pair, eos_id: int | None) -> None:
    tokenizer = byte_level_bpe()
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    with pytest.raises(InputError, match="no token of it can be learnt") as caught:
        encoded(replace(pair, where="data.csv:7"), tokenizer, lambda _: "Bread? ", eos_id)
    assert caught.value.where == "data.csv:7"
    with pytest.raises(InputError) as caught:
        encoded(pair, tokenizer, lambda _: "Bread? ", eos_id)
    assert caught.value.where == "pair a"


def trimmed() -> Tokenizer:
    """As those of GPT-2 and SmolLM2: the spaces of tokens are no part of their offsets."""
    tokenizer = byte_level_bpe()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def in_digits() -> Tokenizer:
    """As SmolLM2's tokenizer cuts texts."""
    tokenizer = byte_level_bpe()
    cuts = [pre_tokenizers.Digits(individual_digits=True), tokenizer.pre_tokenizer]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    return tokenizer


TOKENIZERS = [byte_level_bpe(), trimmed(), in_digits()]
PIECES = ["Fresh bread", " ", "  ", "\n", "é", "ü", "日本", "🥐", "e\u0301", "20% off", "!", "x"]


@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=9), st.data())
@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=["plain", "trimmed", "digits"])
def test_spans_of_characters_are_those_of_their_tokens(
    tokenizer: Tokenizer, pieces: list[str], data: st.DataObject
) -> None:
    """Against the bytes: a token of this tokenizer spells a byte with each of its letters."""
    text = f"a{''.join(pieces)}a"
    cuts = data.draw(st.lists(st.integers(0, len(text)), unique=True, min_size=2).map(sorted))
    # A span of each second stretch: some touch one another, by a byte of a token or not at all.
    weights = data.draw(st.lists(st.sampled_from([0.0, 0.5, 3.0, None]), min_size=len(cuts)))
    spans = tuple(
        Span(begin, end, weight)
        for begin, end, weight in zip(cuts[:-1], cuts[1:], weights, strict=False)
        if weight is not None
    )
    pair = replace(PAIR, completion=text, weight=2.0, spans=spans)
    found = encoded(pair, tokenizer, lambda _: "Bread? ", eos_id=2, prompts_too=True)
    byte_of = [len(text[:n].encode()) for n in range(len(text) + 1)]
    expected, begin = [], 0
    for token in tokenizer.encode(text).tokens:
        end = begin + len(token)
        touched = [s.weight for s in spans if byte_of[s.begin] < end and byte_of[s.end] > begin]
        expected.append(2 * touched[-1] if touched else 2.0)
        begin = end
    assert begin == byte_of[-1]
    n_prompt = found.n_targets - found.n_completion
    assert n_prompt > 0  # of which the spans say nothing, nor of the text's end
    assert found.target_weights.tolist() == [*[2.0] * n_prompt, *expected, 2.0]


def test_a_normalizer_leaves_characters_in_their_places() -> None:
    """One that makes two letters of a ligature and three of a fraction, as NFKC does."""
    tokenizer = byte_level_bpe()
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    spans = (Span(0, 1, 0.5), Span(4, 9, 3.0), Span(10, 11, 0.0))
    found = encoded(replace(PAIR, completion="ﬁne BREAD ¾", spans=spans), tokenizer, str, 2)
    own = [tokenizer.id_to_token(i) for i in found.ids[found.first_completion :]]
    assert own == ["f", "in", "e", "Ġbrea", "d", "Ġ", "3", "â", "ģ", "Ħ", "4", "<|im_end|>"]
    assert found.target_weights.tolist() == [0.5, 0.5, 1, 3, 3, 1, 0, 0, 0, 0, 0, 1]


def test_an_example_without_spans_weighs_the_same_throughout() -> None:
    found = encoded(replace(PAIR, weight=0.1), byte_level_bpe(), lambda _: "Bread? ", eos_id=2)
    assert found.token_weights is None
    batch = collate([found, example("b", 6, first=3)])
    expected = [np.float32(0.1)] * found.n_targets + [np.float32(1)] * 3
    assert batch.weights.dtype == torch.float32 and batch.weights.tolist() == expected


def test_a_label_is_the_token_after_the_logits_it_is_compared_with() -> None:
    batch = collate([example("a", 5, first=3), example("b", 3)])
    rows, positions = batch.targets.nonzero(as_tuple=True)
    assert torch.equal(batch.labels, batch.ids[rows, positions + 1])
    assert batch.labels.tolist() == [3, 4, 1, 2]
    assert batch.n_targets == 4


@given(
    st.lists(st.integers(2, 40), min_size=1, max_size=60),
    st.integers(1, 9),
    st.integers(0, 5),
    st.data(),
)
def test_an_epoch_has_every_example_once_and_can_begin_anywhere(
    lengths: list[int], batch_size: int, epoch: int, data: st.DataObject
) -> None:
    examples = [example(str(n), length) for n, length in enumerate(lengths)]
    epochs = [list(token_batches(examples, batch_size, seed=3, epoch=epoch)) for _ in range(2)]
    names = [[e.example_id for b in batches for e in b.examples] for batches in epochs]
    assert names[0] == names[1]
    assert sorted(names[0]) == sorted(e.example_id for e in examples)
    start = data.draw(st.integers(0, len(epochs[0])))
    rest = list(token_batches(examples, batch_size, seed=3, epoch=epoch, start=start))
    assert [e.example_id for b in rest for e in b.examples] == [
        e.example_id for b in epochs[0][start:] for e in b.examples
    ]


def test_epochs_are_shuffled_apart() -> None:
    examples = [example(str(n), 5) for n in range(50)]
    orders = [
        [e.example_id for b in token_batches(examples, 4, seed=s, epoch=n) for e in b.examples]
        for s, n in ((0, 0), (0, 1), (1, 0))
    ]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_a_batch_is_of_similar_lengths_and_batches_are_in_no_order_of_them() -> None:
    """16 batches' worth are sorted: of 10 to 200 tokens, a batch of 8 differs by about a 16th."""
    rng = np.random.default_rng(0)
    examples = [example(str(n), int(size)) for n, size in enumerate(rng.integers(10, 200, 512))]
    batches = list(token_batches(examples, 8, seed=0, epoch=0))
    padding = [1 - sum(len(e.ids) for e in b.examples) / b.ids.numel() for b in batches]
    assert sum(padding) / len(padding) < 0.1
    drawn = [examples[i : i + 8] for i in range(0, 512, 8)]
    by_chance = [1 - sum(len(e.ids) for e in b) / (8 * max(len(e.ids) for e in b)) for b in drawn]
    assert sum(by_chance) / len(by_chance) > 0.3
    widths = [b.ids.shape[1] for b in batches]
    assert abs(float(np.corrcoef(widths[1:], widths[:-1])[0, 1])) < 0.3


def test_ordered_batches_hold_all_by_length() -> None:
    examples = [example(str(n), length) for n, length in enumerate((9, 2, 5, 7, 3))]
    lengths = [len(e.ids) for b in ordered_batches(examples, 2) for e in b.examples]
    assert lengths == [2, 3, 5, 7, 9]
