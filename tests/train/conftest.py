from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdexport.train.data import Encoded
from kdexport.train.model import load_model
from kdexport.train.sizes import StudentSpec
from kdexport.train.student import Origin, prune
from tests.models import make_gpt2, make_llama


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("models") / "llama", n_layers=6)


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gpt2(tmp_path_factory.mktemp("models") / "gpt2", n_layers=4)


@pytest.fixture
def examples() -> list[Encoded]:
    rng = np.random.default_rng(1)
    return [
        Encoded(f"e{n}", rng.integers(3, 300, size=int(size)), 3, 3)
        for n, size in enumerate(rng.integers(8, 16, size=24))
    ]


@pytest.fixture
def student(llama: Path) -> Any:
    torch.manual_seed(0)
    origin = Origin(load_model(llama), None, [torch.arange(40)[None]])
    return prune(origin, StudentSpec(n_layers=3)).model
