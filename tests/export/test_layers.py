"""What is read of transformers' models, against their configurations and plain formulas."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from kdexport.errors import InputError
from kdexport.export.layers import check_decoder, lengths_that_matter, longest_text, read_model
from kdexport.train.model import load_config
from tests.models import make_family


def frequencies(theta: float, channels: int) -> np.ndarray:
    """Su et al. 2021, section 3.2: theta to the power of -2i / d."""
    return theta ** (-np.arange(0, channels, 2) / channels)


@pytest.mark.parametrize(
    ("family", "theta", "channels", "divisor"),
    [
        ("smollm2", 10000.0, 16, 1),
        ("llama-linear", 10000.0, 16, 2),
        ("llama-dynamic", 10000.0, 16, 1),  # within the model's length it changes nothing
        ("phi4", 10000.0, 48, 1),
        ("phi3-longrope", 10000.0, 16, 1 + np.arange(8) / 10),
    ],
)
def test_rotary_tables_are_the_formula_s(
    tmp_path: Path, family: str, theta: float, channels: int, divisor: float
) -> None:
    config = load_config(make_family(tmp_path / "m", family))
    rotary = read_model(config).layers[0].rotary
    assert rotary is not None
    angles = np.outer(np.arange(longest_text(config)), frequencies(theta, channels) / divisor)
    # longrope's factor of attention, Ding et al. 2024, section 3.3: of lengths 64 and 256.
    scale = np.sqrt(1 + np.log(4) / np.log(64)) if family == "phi3-longrope" else 1.0
    for found, expected in zip(rotary, (np.cos(angles), np.sin(angles)), strict=True):
        np.testing.assert_allclose(found, expected * scale, atol=2e-5)  # float32 angles to 255


def test_layers_of_two_kinds_have_windows_and_tables_of_their_own(tmp_path: Path) -> None:
    words = read_model(load_config(make_family(tmp_path / "m", "gemma3")))
    local, whole = words.layers
    assert (local.window, whole.window) == (16, None)
    assert local.scale == whole.scale == pytest.approx(24**-0.5)
    assert local.rotary is not None
    assert whole.rotary is not None
    for layer, theta, factor in ((local, 1e4, 1), (whole, 1e6, 8)):
        assert layer.rotary is not None
        angle = 100 * frequencies(theta, 32) / factor
        np.testing.assert_allclose(layer.rotary[0][100], np.cos(angle), atol=2e-5)
    assert words.embedding_scale == pytest.approx(96**0.5)


@pytest.mark.parametrize(
    ("family", "lengths"),
    [
        ("smollm2", []),
        ("mistral", [16]),
        ("gemma3", [16]),
        ("llama-llama3", [64]),
        ("phi3-longrope", []),  # its texts end at 64
        ("qwen3-yarn", [64]),
    ],
)
def test_lengths_that_tell(tmp_path: Path, family: str, lengths: list[int]) -> None:
    assert lengths_that_matter(load_config(make_family(tmp_path / "m", family))) == lengths


def test_no_rotation_and_no_window_in_gpt2(tmp_path: Path) -> None:
    words = read_model(load_config(make_family(tmp_path / "m", "gpt2")))
    assert {(layer.window, layer.rotary) for layer in words.layers} == {(None, None)}
    assert words.embedding_scale is None


def test_a_configuration_without_a_length_is_refused() -> None:
    config = SimpleNamespace(num_hidden_layers=2, vocab_size=9, hidden_size=8)
    with pytest.raises(InputError, match="says no max_position_embeddings"):
        check_decoder(config)
