"""Targets that were kept are those that were asked for, within what half precision leaves."""

from dataclasses import replace
from pathlib import Path

import torch

from kdexport.train.cache import TargetCache, fill_cache
from kdexport.train.columns import Form, hidden_form, id_type, sampled_form, top_k_form
from kdexport.train.data import Batch, Encoded, collate
from kdexport.train.losses import distance
from kdexport.train.model import load_model, read_batch
from kdexport.train.sampled import sampled
from kdexport.train.targets import TargetRows
from kdexport.train.teacher import live_targets, top_k_targets

ALL = slice(None)


def kept(form: Form, examples: list[Encoded], folder: Path, batch: Batch) -> TargetRows:
    fill_cache(folder, examples, form.ask, batch_size=16)
    n_tokens = sum(example.n_targets for example in examples)
    n_bytes = sum(v.nbytes for v in TargetCache(folder).columns(collate(examples)).values())
    assert n_bytes == form.bytes_per_token * n_tokens
    return form.targets(TargetCache(folder))(batch)


def test_the_cache_gives_what_was_asked_live(
    llama: Path, examples: list[Encoded], tmp_path: Path
) -> None:
    model = load_model(llama)
    ask = live_targets(model, None, 1.0)
    batch = collate(examples[3:9])
    live = top_k_targets(ask, 64)(batch).rows(ALL)
    cached = kept(top_k_form(ask, 320, 64), examples, tmp_path, batch).rows(ALL)
    with torch.no_grad():
        student = read_batch(model, batch).to_logits(model) * 0.7
    # Half precision: 2^-11 of a log-probability of about 6 is 3e-3.
    torch.testing.assert_close(
        distance("forward_kl", student, live, 1.0),
        distance("forward_kl", student, cached, 1.0),
        rtol=2e-2,
        atol=3e-3,
    )


def test_draws_are_kept_as_draws(llama: Path, examples: list[Encoded], tmp_path: Path) -> None:
    ask = live_targets(load_model(llama), None, 1.0)
    batch = collate(examples)
    cached = kept(top_k_form(ask, 320, 8, 16), examples, tmp_path, batch).rows(ALL)
    assert cached.n_drawn == 16 and cached.logprobs.shape[-1] == 24


def test_hidden_states_give_the_whole_distribution_again(
    llama: Path, examples: list[Encoded], tmp_path: Path
) -> None:
    model = load_model(llama)
    ids = list(range(0, 300, 2))
    seen = [replace(e, ids=e.ids % len(ids)) for e in examples]
    batch = collate(seen[3:9])
    form = hidden_form(model, ids, 2.0, "float32")
    found = kept(form, seen, tmp_path, batch).rows(ALL)
    expected = live_targets(model, ids, 2.0)(batch).rows(ALL)
    assert found.ids is None and found.hidden is not None and expected.hidden is not None
    # Half precision: 2^-11 of each of 64 products, of logits that reach 10.
    torch.testing.assert_close(found.logprobs, expected.logprobs, rtol=0, atol=2e-2)
    torch.testing.assert_close(found.hidden, expected.hidden, rtol=1e-3, atol=1e-3)


def test_a_vocabulary_over_16_bits_has_wider_ids() -> None:
    assert id_type(65536) == torch.uint16 and id_type(65537) == torch.int32
    last = torch.tensor([65535])
    assert int(last.to(id_type(65536)).long()) == 65535
    form = top_k_form(lambda batch: None, 70_000, 64)  # type: ignore[arg-type, return-value]
    assert form.bytes_per_token == 64 * (4 + 2) + 2


def test_drawn_tokens_are_kept_with_what_they_are_worth(
    llama: Path, examples: list[Encoded], tmp_path: Path
) -> None:
    model = load_model(llama)
    ask = live_targets(model, None, 1.0)
    batch = collate(sorted(examples, key=lambda example: len(example.ids))[:16])  # asked as one
    drawn = sampled(ask, 12)(batch).targets()
    cached = kept(sampled_form(ask, 320, 12), examples, tmp_path, batch).rows(ALL)
    assert drawn.ids is not None and cached.ids is not None
    assert torch.equal(drawn.ids, cached.ids)
    with torch.no_grad():
        student = read_batch(model, batch).to_logits(model) * 0.7
    # Half precision, as above.
    torch.testing.assert_close(
        distance("forward_kl", student, drawn, 1.0),
        distance("forward_kl", student, cached, 1.0),
        rtol=2e-2,
        atol=6e-3,
    )
