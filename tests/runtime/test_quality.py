"""Quality from a reference file, against naive numpy with the whole distribution."""

import json
from pathlib import Path

import numpy as np
import pytest

from kdexport.bundle import Bundle
from kdexport.errors import InputError
from kdexport.runtime.quality import load_reference, log_softmax, measure_quality
from kdexport.runtime.session import open_session

TEXTS = [[5, 9, 12, 40, 3], [7, 7, 8, 100, 200, 31, 4]]
FIRST_TARGET = 2


def write(path: Path, logits: list[np.ndarray], k: int, n_drawn: int = 0) -> None:
    """A reference whose teacher has the given logits [len, V] on each text."""
    rng = np.random.default_rng(0)
    target, teacher, offset, offsets = [], [], 0, [0]
    for ids, z in zip(TEXTS, logits, strict=True):
        target += list(range(offset + FIRST_TARGET, offset + len(ids)))
        teacher.append(log_softmax(z.astype(np.float64))[FIRST_TARGET - 1 : -1])
        offset += len(ids)
        offsets.append(offset)
    logprobs = np.concatenate(teacher)
    top = np.argsort(-logprobs, -1)[:, :k]
    best = np.take_along_axis(logprobs, top, -1)
    tail = np.log(np.maximum(1 - np.exp(best).sum(-1), 1e-12))
    rest = np.exp(logprobs)
    np.put_along_axis(rest, top, 0, -1)
    rest /= rest.sum(-1, keepdims=True)
    drawn = np.stack([rng.choice(len(row), size=n_drawn, p=row) for row in rest])
    np.savez(
        path,
        ids=np.concatenate([np.asarray(t, dtype=np.int32) for t in TEXTS]),
        offsets=np.asarray(offsets),
        target=np.asarray(target),
        topk_ids=top.astype(np.int32),
        topk_logprobs=best.astype(np.float32),
        tail_logprob=tail.astype(np.float32),
        drawn_ids=drawn.astype(np.int32),
        drawn_logprobs=np.take_along_axis(logprobs, drawn, -1).astype(np.float32),
        kept_ids=np.arange(logprobs.shape[1], dtype=np.int32),
        kept_mass=np.ones(len(target), dtype=np.float32),
        meta=np.frombuffer(json.dumps({"teacher": "t"}).encode(), dtype=np.uint8),
    )


def test_a_model_is_its_own_best_teacher(llama_bundle: Bundle, tmp_path: Path) -> None:
    session = open_session(llama_bundle, n_threads=1)
    own = [session.score(ids).copy() for ids in TEXTS]
    write(tmp_path / "r.npz", own, k=16)
    found = measure_quality(session, load_reference(tmp_path / "r.npz"), teacher_vocabulary=False)
    assert found.kl_mean == pytest.approx(0, abs=1e-5)
    assert found.top1 == 1
    assert found.n_tokens == sum(len(t) - FIRST_TARGET for t in TEXTS)


@pytest.mark.parametrize("teacher_vocabulary", [False, True])
def test_figures_are_numpys(llama_bundle: Bundle, tmp_path: Path, teacher_vocabulary: bool) -> None:
    session = open_session(llama_bundle, n_threads=1)
    rng = np.random.default_rng(0)
    teacher = [rng.normal(size=(len(t), session.vocab_size)) * 2 for t in TEXTS]
    write(tmp_path / "r.npz", teacher, k=session.vocab_size - 1)  # all but one: exact
    found = measure_quality(
        session, load_reference(tmp_path / "r.npz"), teacher_vocabulary=teacher_vocabulary
    )
    p, q, gold = [], [], []
    for ids, z in zip(TEXTS, teacher, strict=True):
        p.append(log_softmax(z)[FIRST_TARGET - 1 : -1])
        q.append(log_softmax(session.score(ids).astype(np.float64))[FIRST_TARGET - 1 : -1])
        gold += ids[FIRST_TARGET:]
    logp, logq = np.concatenate(p), np.concatenate(q)
    kl = (np.exp(logp) * (logp - logq)).sum(-1)
    assert found.kl_mean == pytest.approx(kl.mean(), rel=1e-4)
    assert found.kl_p50 == pytest.approx(np.median(kl), rel=1e-4)
    assert found.top1 == pytest.approx((logp.argmax(-1) == logq.argmax(-1)).mean())
    nll = -logq[np.arange(len(gold)), gold]
    assert found.perplexity == pytest.approx(np.exp(nll.mean()), rel=1e-5)


def test_draws_stand_for_the_tail(llama_bundle: Bundle, tmp_path: Path) -> None:
    session = open_session(llama_bundle, n_threads=1)
    rng = np.random.default_rng(1)
    teacher = [rng.normal(size=(len(t), session.vocab_size)) for t in TEXTS]
    write(tmp_path / "exact.npz", teacher, k=session.vocab_size - 1)
    write(tmp_path / "drawn.npz", teacher, k=8, n_drawn=20_000)
    exact, drawn = (
        measure_quality(session, load_reference(tmp_path / name), teacher_vocabulary=False)
        for name in ("exact.npz", "drawn.npz")
    )
    # log p/q has a deviation of about 1.5 in the tail: 1.5 / sqrt(20,000) = 0.01 a token.
    assert drawn.kl_mean == pytest.approx(exact.kl_mean, abs=0.03)


def test_without_draws_the_tail_is_one_event(llama_bundle: Bundle, tmp_path: Path) -> None:
    session = open_session(llama_bundle, n_threads=1)
    rng = np.random.default_rng(1)
    teacher = [rng.normal(size=(len(t), session.vocab_size)) for t in TEXTS]
    write(tmp_path / "r.npz", teacher, k=8)
    found = measure_quality(session, load_reference(tmp_path / "r.npz"), teacher_vocabulary=False)
    expected = []
    for ids, z in zip(TEXTS, teacher, strict=True):
        rows = (log_softmax(z), log_softmax(session.score(ids).astype(np.float64)))
        p, q = (np.exp(x)[FIRST_TARGET - 1 : -1] for x in rows)
        best = np.argsort(-p, -1)[:, :8]
        p, q = (np.take_along_axis(x, best, -1) for x in (p, q))
        p, q = (np.concatenate([x, 1 - x.sum(-1, keepdims=True)], -1) for x in (p, q))
        expected.append((p * np.log(p / q)).sum(-1))
    assert found.kl_mean == pytest.approx(np.concatenate(expected).mean(), rel=1e-4)


def test_what_is_no_reference_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"not a zip")
    with pytest.raises(InputError, match="no quality reference"):
        load_reference(tmp_path / "x.npz")
    np.savez(tmp_path / "y.npz", ids=np.asarray([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match="no quality reference"):
        load_reference(tmp_path / "y.npz")
    (tmp_path / "z.npz").write_bytes(b"")
    with pytest.raises(InputError, match="no quality reference"):
        load_reference(tmp_path / "z.npz")


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("ids", np.full(12, 320), "ids are out of range"),
        ("ids", np.full(12, -1), "ids are out of range"),
        ("ids", np.full(12, 1.5), "ids are out of range"),
        ("topk_ids", np.full((8, 4), 999), "topk_ids are out of range"),
        ("target", np.full(8, 12), "target are out of range|first token"),
        ("target", np.zeros(0, dtype=np.int64), "no targets"),
        ("target", np.arange(8), "first token of a text is a target"),
        ("tail_logprob", np.zeros(3), "what belongs to each"),
        ("offsets", np.zeros(0, dtype=np.int64), "index 0"),
        ("offsets", np.asarray([0, 12, 5]), "do not follow"),
        ("kept_ids", np.arange(5), "out of range"),
        ("ids", np.int64(3), "len"),
    ],
)
def test_a_reference_that_contradicts_itself_is_one_line(
    tmp_path: Path, name: str, value: np.ndarray, reason: str
) -> None:
    write(
        tmp_path / "r.npz",
        [np.random.default_rng(0).normal(size=(len(t), 320)) for t in TEXTS],
        k=4,
    )
    with np.load(tmp_path / "r.npz") as file:
        arrays = dict(file)
    np.savez(tmp_path / "r.npz", **(arrays | {name: value}))
    with pytest.raises(InputError, match=rf"r\.npz: is no quality reference.*({reason})"):
        load_reference(tmp_path / "r.npz")


def test_a_reference_of_another_vocabulary_is_one_line(
    llama_bundle: Bundle, tmp_path: Path
) -> None:
    session = open_session(llama_bundle, n_threads=1)
    write(
        tmp_path / "r.npz",
        [np.random.default_rng(0).normal(size=(len(t), 310)) for t in TEXTS],
        k=4,
    )
    with pytest.raises(InputError, match="of 310 tokens, the model of 320"):
        measure_quality(session, load_reference(tmp_path / "r.npz"), teacher_vocabulary=False)


def test_a_teacher_without_one_of_the_tokens_is_one_line(
    llama_bundle: Bundle, tmp_path: Path
) -> None:
    """No text has the token, but the distribution is over it."""
    session = open_session(llama_bundle, n_threads=1)
    write(tmp_path / "r.npz", [session.score(ids).copy() for ids in TEXTS], k=4)
    with np.load(tmp_path / "r.npz") as file:
        arrays = dict(file)
    arrays["kept_ids"][-1] = 999
    np.savez(tmp_path / "r.npz", **arrays)
    with pytest.raises(InputError, match="is of token 999 too, the model of 320 tokens"):
        measure_quality(session, load_reference(tmp_path / "r.npz"), teacher_vocabulary=True)
