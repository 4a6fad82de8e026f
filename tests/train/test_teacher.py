from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from kdexport.errors import InputError
from kdexport.train.data import Encoded, collate
from kdexport.train.losses import distance
from kdexport.train.model import load_model, read_batch
from kdexport.train.teacher import (
    cached_targets,
    check_vocabularies,
    fill_cache,
    fingerprint_examples,
    hidden_columns,
    live_targets,
    seconds_asked,
    targets_of_hidden,
    top_k_columns,
    top_k_targets,
)

ALL = slice(None)


@pytest.fixture
def examples() -> list[Encoded]:
    rng = np.random.default_rng(0)
    sizes = rng.integers(6, 20, size=150)  # more than one shard
    return [
        Encoded(f"e{n}", rng.integers(3, 300, size=size), int(size) // 2, int(size) // 2)
        for n, size in enumerate(sizes)
    ]


def test_live_targets_are_the_model_s_own_distribution(llama: Path) -> None:
    model = load_model(llama)
    batch = collate([Encoded("a", np.arange(5, 15), 4, 4)])
    targets = live_targets(model, None, temperature=2.0)(batch).rows(ALL)
    with torch.no_grad():
        logits = model(torch.arange(5, 15)[None]).logits[0, 3:9]
    expected = torch.log_softmax(logits / 2.0, -1)
    torch.testing.assert_close(targets.logprobs, expected, rtol=1e-4, atol=1e-5)


def test_the_tail_holds_what_the_top_k_leave(llama: Path) -> None:
    batch = collate([Encoded("a", np.arange(5, 15), 4, 4)])
    model = load_model(llama)
    whole = live_targets(model, None, 1.0)(batch).rows(ALL).logprobs.exp()
    top = top_k_targets(live_targets(model, None, 1.0), 8)(batch).rows(ALL)
    assert top.tail is not None
    expected = 1 - whole.topk(8).values.sum(-1)
    torch.testing.assert_close(top.tail.exp(), expected, rtol=1e-3, atol=1e-5)


def test_draws_come_from_the_tail_and_stay_the_same(llama: Path, tmp_path: Path) -> None:
    example = Encoded("a", np.arange(5, 15), 4, 4)
    batch = collate([example])
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
    fill_cache(tmp_path / "cache", [example], top_k_columns(ask), batch_size=4)
    assert cached_targets(tmp_path / "cache", 16)(batch).rows(ALL).n_drawn == 16


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


def test_the_cache_gives_what_was_asked_live(
    llama: Path, examples: list[Encoded], tmp_path: Path
) -> None:
    model = load_model(llama)
    ask = top_k_targets(live_targets(model, None, 1.0), 64)
    fill_cache(tmp_path / "cache", examples, top_k_columns(ask), batch_size=16)
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 2
    batch = collate(examples[3:9])
    live, cached = ask(batch).rows(ALL), cached_targets(tmp_path / "cache")(batch).rows(ALL)
    with torch.no_grad():
        student = read_batch(model, batch).to_logits(model) * 0.7
    # Half precision: 2^-11 of a log-probability of about 6 is 3e-3.
    torch.testing.assert_close(
        distance("forward_kl", student, live, 1.0),
        distance("forward_kl", student, cached, 1.0),
        rtol=2e-2,
        atol=3e-3,
    )


def test_hidden_states_give_the_whole_distribution_again(
    llama: Path, examples: list[Encoded], tmp_path: Path
) -> None:
    model = load_model(llama)
    kept = list(range(0, 300, 2))
    seen = [replace(e, ids=e.ids % len(kept)) for e in examples]
    columns = hidden_columns(model, kept, "float32")
    fill_cache(tmp_path / "cache", seen, columns, batch_size=16)
    batch = collate(seen[3:9])
    found = targets_of_hidden(tmp_path / "cache", model, kept, 2.0)(batch).rows(ALL)
    expected = live_targets(model, kept, 2.0)(batch).rows(ALL)
    assert found.ids is None and found.hidden is not None and expected.hidden is not None
    # Half precision: 2^-11 of each of 64 products, of logits that reach 10.
    torch.testing.assert_close(found.logprobs, expected.logprobs, rtol=0, atol=2e-2)
    torch.testing.assert_close(found.hidden, expected.hidden, rtol=1e-3, atol=1e-3)


def test_whole_shards_are_not_asked_again(
    llama: Path, examples: list[Encoded], tmp_path: Path
) -> None:
    ask = top_k_columns(top_k_targets(live_targets(load_model(llama), None, 1.0), 4))
    folder = tmp_path / "cache"

    def refuse(_batch: object) -> None:
        raise AssertionError("asked again")

    def killed(done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill_cache(folder, examples, ask, batch_size=16, progress=killed)
    first = next(folder.glob("*.safetensors")).stat().st_mtime_ns
    fill_cache(folder, examples, ask, batch_size=16)
    assert sorted(folder.glob("*.safetensors"))[0].stat().st_mtime_ns == first
    fill_cache(folder, examples, refuse, batch_size=16)  # type: ignore[arg-type]


@pytest.mark.parametrize("n_bytes", [0, 5, 200, -1])
def test_a_damaged_shard_is_written_anew(
    llama: Path, examples: list[Encoded], tmp_path: Path, n_bytes: int
) -> None:
    ask = top_k_columns(top_k_targets(live_targets(load_model(llama), None, 1.0), 4))
    fill_cache(tmp_path, examples, ask, batch_size=16)
    shard = sorted(tmp_path.glob("*.safetensors"))[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:n_bytes])
    fill_cache(tmp_path, examples, ask, batch_size=16)
    assert shard.stat().st_size == len(whole)
    cached_targets(tmp_path)(collate(examples))


def test_a_cache_knows_how_long_the_teacher_took(
    llama: Path, examples: list[Encoded], tmp_path: Path
) -> None:
    ask = top_k_columns(top_k_targets(live_targets(load_model(llama), None, 1.0), 4))
    assert seconds_asked(tmp_path) == 0
    fill_cache(tmp_path, examples, ask, batch_size=16)
    took = seconds_asked(tmp_path)
    assert took > 0
    fill_cache(tmp_path, examples, ask, batch_size=16)  # nothing is asked, nothing added
    assert seconds_asked(tmp_path) == took


def test_a_missing_example_is_named(examples: list[Encoded], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no cached targets for example 'e0'"):
        cached_targets(tmp_path)(collate(examples[:1]))


def test_equal_sizes_do_not_make_equal_vocabularies() -> None:
    check_vocabularies({"a": 0, "b": 1}, {"a": 0, "b": 1}, None)
    check_vocabularies({"a": 0, "b": 1, "c": 2}, {"c": 0, "a": 1}, [2, 0])
    with pytest.raises(InputError, match="do not match"):
        check_vocabularies({"a": 0, "b": 1}, {"b": 0, "a": 1}, None)
    with pytest.raises(InputError, match="do not match"):
        check_vocabularies({"a": 0, "b": 1}, {"a": 0, "b": 1}, [0])


def test_the_fingerprint_sees_ids_and_targets(examples: list[Encoded]) -> None:
    one = examples[0]
    for others in ((1, one.first_completion), (one.first_target, one.first_completion + 1)):
        assert fingerprint_examples([one]) != fingerprint_examples(
            [Encoded(one.example_id, one.ids, *others)]
        )
    assert fingerprint_examples(examples) != fingerprint_examples(examples[::-1])
