from pathlib import Path

import numpy as np
import pytest
import torch

from kdexport.errors import InputError
from kdexport.train.data import Encoded, collate
from kdexport.train.model import load_model, low_precision
from kdexport.train.targets import Targets
from kdexport.train.teacher import check_vocabularies, live_targets, top_k_targets

ALL = slice(None)


def test_live_targets_are_the_model_s_own_distribution(llama: Path) -> None:
    model = load_model(llama)
    batch = collate([Encoded("a", np.arange(5, 15), 4, 4)])
    targets = live_targets(model, None, temperature=2.0)(batch).rows(ALL)
    with torch.no_grad():
        logits = model(torch.arange(5, 15)[None]).logits[0, 3:9]
    expected = torch.log_softmax(logits / 2.0, -1)
    torch.testing.assert_close(targets.logprobs, expected, rtol=1e-4, atol=1e-5)


def test_a_live_teacher_computes_in_the_precision_that_was_asked_for(llama: Path) -> None:
    model = load_model(llama)
    batch = collate([Encoded("a", np.arange(5, 15), 4, 4)])
    exact = live_targets(model, None, 1.0)(batch).rows(ALL).logprobs
    rounded = live_targets(model, None, 1.0, "bfloat16")(batch).rows(ALL).logprobs
    with torch.no_grad(), low_precision(model, "bfloat16"):
        hidden = model.base_model(torch.arange(5, 15)[None]).last_hidden_state[0, 3:9]
    expected = torch.log_softmax(hidden.float() @ model.lm_head.weight.T, -1)
    torch.testing.assert_close(rounded, expected, rtol=1e-4, atol=1e-5)
    assert (rounded - exact).abs().max() > 1e-3


def test_the_tail_holds_what_the_top_k_leave(llama: Path) -> None:
    batch = collate([Encoded("a", np.arange(5, 15), 4, 4)])
    model = load_model(llama)
    whole = live_targets(model, None, 1.0)(batch).rows(ALL).logprobs.exp()
    top = top_k_targets(live_targets(model, None, 1.0), 8)(batch).rows(ALL)
    assert top.tail is not None
    expected = 1 - whole.topk(8).values.sum(-1)
    torch.testing.assert_close(top.tail.exp(), expected, rtol=1e-3, atol=1e-5)


def test_the_tail_of_a_sure_teacher_is_not_lost_in_rounding() -> None:
    """Against float64, down to masses that one has no room for in float32, and to none."""
    logits = torch.randn(6, 200, generator=torch.Generator().manual_seed(0))
    logits[:, :8] += torch.tensor([2.0, 10.0, 20.0, 40.0, 90.0, 10_000.0])[:, None]
    batch = collate([Encoded("a", np.arange(7), 1, 1)])
    ask = top_k_targets(lambda _: Targets(torch.log_softmax(logits, -1)), 8)
    found = ask(batch).rows(ALL).tail
    exact = torch.log_softmax(logits.double(), -1)
    expected = exact.sort(-1).values[:, :-8].logsumexp(-1)
    assert found is not None
    torch.testing.assert_close(found[:5].double(), expected[:5], rtol=0, atol=1e-4)
    assert expected[3] < -30 and found[5] == -100


def test_draws_come_from_the_tail_and_stay_the_same(llama: Path) -> None:
    batch = collate([Encoded("a", np.arange(5, 15), 4, 4)])
    model = load_model(llama)
    ask = top_k_targets(live_targets(model, None, 1.0), 8, 16)
    targets = ask(batch).rows(ALL)
    assert targets.ids is not None
    top, drawn = targets.ids[:, :8], targets.ids[:, 8:]
    assert drawn.shape[-1] == targets.n_drawn == 16
    assert not (drawn[:, :, None] == top[:, None]).any()
    whole = live_targets(model, None, 1.0)(batch).rows(ALL).logprobs
    torch.testing.assert_close(targets.logprobs, whole.gather(1, targets.ids))
    again = ask(batch).rows(ALL).ids
    assert again is not None and torch.equal(again, targets.ids)


def test_a_trimmed_student_sees_the_teacher_renormalised(llama: Path) -> None:
    model = load_model(llama)
    kept = [7, 3, 50, 60, 70, 80]
    batch = collate([Encoded("a", np.array([0, 1, 2, 3, 4]), 2, 2)])
    targets = live_targets(model, kept, 1.0)(batch).rows(ALL)
    with torch.no_grad():
        logits = model(torch.tensor([[7, 3, 50, 60, 70]])).logits[0, 1:4][:, kept]
    torch.testing.assert_close(
        targets.logprobs, torch.log_softmax(logits, -1), rtol=1e-4, atol=1e-5
    )


def test_equal_sizes_do_not_make_equal_vocabularies() -> None:
    check_vocabularies({"a": 0, "b": 1}, {"a": 0, "b": 1}, None)
    check_vocabularies({"a": 0, "b": 1, "c": 2}, {"c": 0, "a": 1}, [2, 0])
    with pytest.raises(InputError, match="do not match"):
        check_vocabularies({"a": 0, "b": 1}, {"b": 0, "a": 1}, None)
    with pytest.raises(InputError, match="do not match"):
        check_vocabularies({"a": 0, "b": 1}, {"a": 0, "b": 1}, [0])
