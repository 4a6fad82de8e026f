"""A narrower model computes what the wide one does with the channels silenced that it lacks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdexport.errors import InputError
from kdexport.train.anatomy import Product, parts_of
from kdexport.train.model import load_model
from kdexport.train.width import (
    Kept,
    contributions,
    cut_width,
    most_important,
    n_key_value_heads,
    silenced,
)
from tests.models import make_family

TEXTS = [torch.arange(3, 40)[None], torch.arange(60, 90)[None]]
GROUPED = ("smollm2", "llama-biases", "mistral", "qwen2", "qwen3", "gemma3", "phi3")


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("families")
    return lambda family: load_model(make_family(root / family, family))


def logits(model: Any, ids: torch.Tensor = TEXTS[0]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(ids).logits
    return found


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal but for float32 in another order of summing."""
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def silence(product: Product, inputs: Any) -> None:
    with torch.no_grad():
        product.module.weight.index_fill_(product.inputs, torch.as_tensor(inputs), 0.0)


@pytest.mark.parametrize("family", ["gpt2", *GROUPED])
def test_channels_that_nobody_reads_go_without_a_trace(family: str, model_of: Any) -> None:
    teacher = model_of(family)
    for parts in parts_of(teacher):
        silence(parts.feed_forward.last, range(0, 160, 2))
    kept = most_important(teacher, 80, None, TEXTS)
    assert all(of.channels.tolist() == list(range(1, 160, 2)) for of in kept)  # type: ignore[union-attr]
    student = cut_width(teacher, kept)
    same(logits(student), logits(teacher))
    assert [p.feed_forward.last.n_inputs for p in parts_of(student)] == [80, 80]


@pytest.mark.parametrize("family", GROUPED)
def test_groups_that_nobody_reads_go_without_a_trace(family: str, model_of: Any) -> None:
    """Two query heads to each of two key-value heads; another one goes in each layer."""
    teacher = model_of(family)
    width = parts_of(teacher)[0].attention.last.n_inputs // 2
    for gone, parts in enumerate(parts_of(teacher)):
        silence(parts.attention.last, range(gone * width, (gone + 1) * width))
    kept = most_important(teacher, None, 1, TEXTS)
    assert [of.groups.tolist() for of in kept] == [[1], [0]]  # type: ignore[union-attr]
    student = cut_width(teacher, kept)
    same(logits(student), logits(teacher))
    config = student.config
    assert (config.num_attention_heads, n_key_value_heads(config)) == (2, 1)
    assert config.hidden_size == teacher.config.hidden_size


@settings(max_examples=4)
@given(data=st.data())
def test_what_is_cut_is_what_would_be_silenced(data: st.DataObject, llama: Path) -> None:
    teacher = load_model(llama)
    n = data.draw(st.integers(1, 160))
    channels = [
        sorted(data.draw(st.sets(st.integers(0, 159), min_size=n, max_size=n))) for _ in range(6)
    ]
    groups = [[data.draw(st.integers(0, 1))] for _ in range(6)]
    kept = [Kept(torch.tensor(c), torch.tensor(g)) for c, g in zip(channels, groups, strict=True)]
    with silenced(teacher, kept):
        expected = logits(teacher)
    same(logits(cut_width(teacher, kept)), expected)


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_contributions_are_those_of_the_formula(family: str, model_of: Any) -> None:
    """Mean square of a channel times the squared norm of its weights: against numpy, to 1e-6."""
    teacher = model_of(family)
    products = [parts.feed_forward.last for parts in parts_of(teacher)]
    read: list[list[np.ndarray]] = [[], []]
    for number, product in enumerate(products):
        product.module.register_forward_pre_hook(
            lambda _m, args, number=number: read[number].append(args[0][0].numpy().copy())
        )
    for ids in TEXTS:
        logits(teacher, ids)
    x = [np.concatenate(of).astype(np.float64) for of in read]
    w = [p.module.weight.detach().double().numpy() for p in products]
    expected = [
        (of**2).mean(0) * (weight**2).sum(1 - product.inputs)
        for of, weight, product in zip(x, w, products, strict=True)
    ]
    for found, wanted in zip(contributions(teacher, products, TEXTS), expected, strict=True):
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-6)


def test_the_most_important_stay(model_of: Any) -> None:
    teacher = model_of("smollm2")
    products = [parts.feed_forward.last for parts in parts_of(teacher)]
    for of, keep in zip(
        contributions(teacher, products, TEXTS),
        most_important(teacher, 50, None, TEXTS),
        strict=True,
    ):
        assert keep.channels is not None
        gone = sorted(set(range(160)) - set(keep.channels.tolist()))
        assert of[keep.channels].min() >= of[gone].max()


def test_a_layout_that_is_not_understood_is_refused(
    model_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdexport.train import width

    teacher = model_of("smollm2")
    kept = [Kept(groups=torch.tensor([1]))] * 2
    monkeypatch.setattr(width, "_select", lambda *of: of[0].update(_interleaved(*of)))
    with pytest.raises(InputError, match="cannot be narrowed"):
        cut_width(teacher, kept)


def _interleaved(state: Any, layer: str, block: Any, ranges: Any) -> dict[str, torch.Tensor]:
    """As a family that keeps its heads channel by channel would have to be cut."""
    found = {}
    for product in (*block.makers, block.last):
        axis = product.inputs if product is block.last else 1 - product.inputs
        name = f"{layer}{product.name}.weight"
        n = state[name].shape[axis] // 2
        found[name] = state[name].index_select(axis, torch.arange(0, 2 * n, 2))
    return found
