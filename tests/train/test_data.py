from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers

from kdexport.data.pairs import Pair
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
