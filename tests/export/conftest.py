from pathlib import Path

import pytest

from tests.models import make_gpt2, make_llama


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        "llama": make_llama(folder / "llama"),
        "llama-untied": make_llama(folder / "untied", tied=False),
        "gpt2": make_gpt2(folder / "gpt2"),
    }
