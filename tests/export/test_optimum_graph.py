"""Without optimum-onnx, its backend is refused in a line; tests/optimum has what it does."""

from importlib.metadata import distributions
from pathlib import Path

import pytest

from kdexport.errors import InputError
from kdexport.pipeline.stages import export_checkpoint


def test_the_remedy_is_told_where_it_is_missing(
    checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    assert "optimum-onnx" not in {found.name for found in distributions()}
    with pytest.raises(InputError) as told:
        export_checkpoint(checkpoints["llama"], tmp_path / "b", None, backend="optimum")
    assert "optimum-onnx is missing" in str(told.value)
    assert "pip install 'kdexport[optimum]' in an environment of its own" in str(told.value)
    assert not list(tmp_path.iterdir())
