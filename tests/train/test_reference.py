"""The reference that is written, and what is measured by it, against PyTorch itself."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdexport.errors import InputError
from kdexport.export.bundles import export_bundle
from kdexport.runtime.quality import FORMAT, load_reference, measure_quality
from kdexport.runtime.session import open_session
from kdexport.train import targets as targets_module
from kdexport.train.data import Encoded
from kdexport.train.model import load_model, save_model
from kdexport.train.reference import write_reference
from kdexport.train.sizes import StudentSpec
from kdexport.train.student import Origin, prune
from tests.train.shortage import reads_at_most
from tests.train.test_objective import Largest


@pytest.fixture(scope="module")
def teacher(llama: Path) -> Any:
    model = load_model(llama)
    with torch.no_grad():  # random heads are nearly uniform: this one has opinions
        model.get_output_embeddings().weight.mul_(12)
    return model


def write(path: Path, teacher: Any, examples: list[Encoded], kept: list[int] | None) -> None:
    write_reference(
        path,
        teacher,
        examples,
        kept,
        vocab_size=len(kept or range(320)),
        top_k=400,  # all but one: exact
        n_drawn=4,
        batch_size=8,
        meta={"teacher": "t"},
    )


def test_where_memory_ends_a_reference_is_asked_of_fewer_texts_at_once(
    teacher: Any, examples: list[Encoded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "whole.npz", teacher, examples, None)
    reads_at_most(3, teacher, monkeypatch)
    write(tmp_path / "short.npz", teacher, examples, None)
    one, other = (np.load(tmp_path / name) for name in ("whole.npz", "short.npz"))
    assert one.files == other.files
    for name in ("ids", "offsets", "target", "kept_ids", "kept_mass", "meta"):
        assert np.array_equal(one[name], other[name])
    for name in ("topk_logprobs", "tail_logprob", "target_logprobs"):
        assert one[name].shape == other[name].shape
        np.testing.assert_allclose(other[name], one[name], rtol=1e-4, atol=1e-4)


def direct(model: Any, texts: list[np.ndarray], kept: torch.Tensor) -> torch.Tensor:
    """Log-probabilities over the kept tokens at every target, [M, V], by PyTorch alone."""
    parts = []
    for ids in texts:
        with torch.no_grad():
            logits = model(torch.from_numpy(ids)[None]).logits[0, 2:-1]
        parts.append(torch.log_softmax(logits[:, kept].double(), -1))
    return torch.cat(parts)


@pytest.mark.parametrize("step", [1, 2])
def test_kl_and_perplexity_ratio_are_pytorch_s(
    llama: Path, teacher: Any, examples: list[Encoded], tmp_path: Path, step: int
) -> None:
    """With a step of 2 the student knows every other token, and reads texts under its own ids."""
    path = tmp_path / "r.npz"
    kept = torch.arange(0, 320, step)
    own = [Encoded(e.example_id, e.ids // step, 3, 3) for e in examples]
    write(path, teacher, own, kept.tolist() if step > 1 else None)
    student = prune(Origin(teacher, None, [torch.arange(40)[None]]), StudentSpec(n_layers=3)).model
    save_model(student, tmp_path / "student", tokenizer_from=llama)
    bundle = export_bundle(tmp_path / "student", tmp_path / "bundle", name="x")
    found = measure_quality(
        open_session(bundle, n_threads=1), load_reference(path), teacher_vocabulary=step > 1
    )
    texts = [example.ids * step for example in own]  # in the teacher's ids
    p, q = direct(teacher, texts, kept), direct(student, texts, kept)
    kl = (p.exp() * (p - q)).sum(-1)
    assert kl.mean() > 0.05
    assert found.kl_mean == pytest.approx(float(kl.mean()), abs=1e-4)
    assert found.kl_max == pytest.approx(float(kl.max()), abs=1e-4)
    labels = torch.from_numpy(np.concatenate([example.ids[3:] for example in own]))
    gained = (p - q).gather(1, labels[:, None]).mean()
    assert found.ppl_ratio == pytest.approx(float(gained.exp()), rel=1e-4)
    top5 = (q.argmax(-1)[:, None] == p.topk(5).indices).any(-1).double().mean()
    assert found.top5 == pytest.approx(float(top5))


def test_targets_are_told_over_the_student_s_vocabulary(
    teacher: Any, examples: list[Encoded], tmp_path: Path
) -> None:
    kept = list(range(0, 320, 2))
    halved = [Encoded(e.example_id, e.ids // 2, 3, 3) for e in examples]
    write(tmp_path / "r.npz", teacher, halved, kept)
    reference = load_reference(tmp_path / "r.npz")
    assert reference.meta == {"format": FORMAT, "teacher": "t"}
    texts = [
        reference.ids[begin:end].astype(np.int64) * 2  # in the teacher's ids
        for begin, end in zip(reference.offsets, reference.offsets[1:], strict=False)
    ]
    labels = torch.from_numpy(reference.ids[reference.target].astype(np.int64))
    expected = direct(teacher, texts, torch.tensor(kept)).gather(1, labels[:, None])[:, 0]
    np.testing.assert_allclose(reference.target_logprobs, expected, atol=1e-4)


@pytest.mark.parametrize("is_plain", [True, False])
def test_a_text_is_read_once_and_its_logits_exist_a_chunk_at_a_time(
    teacher: Any,
    examples: list[Encoded],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_plain: bool,
) -> None:
    """The share of the kept tokens needs the logits of all; only a plain head gives some alone."""
    kept = list(range(0, 320, 2))
    halved = [Encoded(e.example_id, e.ids // 2, 3, 3) for e in examples]
    write(tmp_path / "whole.npz", teacher, halved, kept)
    monkeypatch.setattr(targets_module, "CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(targets_module, "LEAST_ROWS", 70)  # more than a head has
    monkeypatch.setattr(teacher, "_kdexport_plain_head", is_plain)
    reads: list[int] = []
    hook = teacher.base_model.register_forward_hook(lambda *_: reads.append(1))
    with Largest(320) as largest:
        write(tmp_path / "chunks.npz", teacher, halved, kept)
    hook.remove()
    assert len(reads) == 3  # 24 texts by 8
    assert (largest.n_rows == 70) == is_plain
    one, other = (np.load(tmp_path / name) for name in ("whole.npz", "chunks.npz"))
    np.testing.assert_allclose(other["kept_mass"], one["kept_mass"], rtol=1e-5)
    assert one["kept_mass"].min() < 0.1 and one["kept_mass"].max() > 0.9


def test_references_of_other_formats(teacher: Any, examples: list[Encoded], tmp_path: Path) -> None:
    path = tmp_path / "r.npz"
    write(path, teacher, examples[:2], None)
    with np.load(path) as file:
        arrays = dict(file)

    def save(format_: int | None, **changed: np.ndarray) -> None:
        meta = json.dumps({} if format_ is None else {"format": format_}).encode()
        np.savez(path, **(arrays | changed | {"meta": np.frombuffer(meta, dtype=np.uint8)}))

    save(FORMAT + 1, novelty=np.zeros(3))
    with pytest.raises(InputError, match=rf"reads up to {FORMAT}; upgrade kdexport"):
        load_reference(path)
    save(FORMAT, target_logprobs=np.zeros(3))
    with pytest.raises(InputError, match="not what belongs to each"):
        load_reference(path)
    del arrays["target_logprobs"]
    save(None)
    assert load_reference(path).target_logprobs is None
