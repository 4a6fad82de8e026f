"""A model with fewer channels in its stream computes what the whole one does without the others."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdexport.errors import InputError
from kdexport.export.bundles import export_bundle
from kdexport.train.anatomy import parts_of
from kdexport.train.model import load_model, save_model
from kdexport.train.residual import (
    channel_importance,
    cut_stream,
    most_important_channels,
    silenced_stream,
    stream_norms,
)
from kdexport.train.sizes import StudentSpec
from kdexport.train.student import Origin, check_pruning, prune
from tests.models import make_family

TEXTS = [torch.arange(3, 40)[None], torch.arange(60, 90)[None]]
SMALL_EPS = {"rms_norm_eps": 1e-6}  # as real ones: it counts for more where channels are fewer


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("families")
    return lambda family: make_family(root / family, family, **SMALL_EPS)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(TEXTS[0]).logits
    return found


def silence(model: Any, gone: torch.Tensor) -> None:
    """Nothing writes into these channels any more."""
    with torch.no_grad():
        model.get_input_embeddings().weight[:, gone] = 0.0
        for parts in parts_of(model):
            for last in (parts.attention.last, parts.feed_forward.last):
                last.module.weight.index_fill_(1 - last.inputs, gone, 0.0)
                if last.module.bias is not None:
                    last.module.bias[gone] = 0.0


@pytest.mark.parametrize("family", ["smollm2", "llama-biases", "qwen2", "qwen3", "phi3"])
def test_channels_that_nothing_writes_go_without_a_trace(family: str, folder_of: Any) -> None:
    teacher = load_model(folder_of(family))
    gone = torch.arange(0, 64, 4)
    silence(teacher, gone)
    kept = most_important_channels(teacher, 48, TEXTS)
    assert not set(kept.tolist()) & set(gone.tolist())
    student = cut_stream(teacher, kept, TEXTS)
    # float32, and the epsilon of a norm counts for a third more
    torch.testing.assert_close(logits(student), logits(teacher), rtol=2e-3, atol=2e-3)
    assert student.config.hidden_size == 48
    assert (
        parts_of(student)[0].attention.last.n_inputs == parts_of(teacher)[0].attention.last.n_inputs
    )


def test_norms_see_what_is_left_as_large_as_before(folder_of: Any) -> None:
    """The first norm reads the embeddings themselves: what it makes of a kept channel stays."""
    teacher = load_model(folder_of("smollm2"))
    kept = most_important_channels(teacher, 32, TEXTS)
    student = cut_stream(teacher, kept, TEXTS)
    made: list[torch.Tensor] = []
    for model in (teacher, student):
        norm = stream_norms(model)["model.layers.0.input_layernorm"]
        handle = norm.register_forward_hook(lambda _m, _a, output: made.append(output[0]))
        logits(model)
        handle.remove()
    whole, narrow = made[0][:, kept], made[1]
    assert float(narrow.norm() / whole.norm()) == pytest.approx(1.0, rel=0.1)
    with silenced_stream(teacher, kept):
        logits(teacher)


def test_importance_is_the_mean_size_of_what_norms_make(folder_of: Any) -> None:
    """Against numpy in float64, to 1e-6."""
    teacher = load_model(folder_of("qwen2"))
    made: list[np.ndarray] = []
    for norm in stream_norms(teacher).values():
        norm.register_forward_hook(lambda _m, _a, output: made.append(output[0].double().numpy()))
    with torch.no_grad():
        for ids in TEXTS:
            teacher(ids)
    expected = sum(np.abs(of).sum(0) for of in made) / sum(ids.numel() for ids in TEXTS)
    np.testing.assert_allclose(channel_importance(teacher, TEXTS).numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("family", ["gemma3"])
def test_norms_of_another_kind_are_refused(family: str, folder_of: Any) -> None:
    teacher = load_model(folder_of(family))
    with pytest.raises(InputError, match="cannot be narrowed"):
        cut_stream(teacher, torch.arange(48), TEXTS)


def test_widths_of_families_with_heads_of_its_share_stay(gpt2: Path) -> None:
    teacher = load_model(gpt2)
    with pytest.raises(InputError, match="hidden_size / n_heads wide") as caught:
        check_pruning(teacher.config, StudentSpec(hidden_size=32))
    assert caught.value.where == "student.hidden_size"


def test_a_student_cut_everywhere_can_be_exported(folder_of: Any, tmp_path: Path) -> None:
    folder = folder_of("qwen2")
    teacher = load_model(folder)
    spec = StudentSpec(hidden_size=32, n_heads=2, intermediate_size=96)
    kept_ids = list(range(teacher.config.vocab_size))
    student = prune(Origin(teacher, kept_ids, TEXTS), spec).model
    save_model(student, tmp_path / "s", tokenizer_from=folder)
    bundle = export_bundle(tmp_path / "s", tmp_path / "b", name="student")  # checks parity
    facts = bundle.manifest.model
    assert (facts.hidden_size, facts.n_kv_heads, facts.head_dim) == (32, 1, 16)
