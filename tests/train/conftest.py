from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdexport.train.case import Case
from kdexport.train.data import Encoded
from kdexport.train.model import load_model
from kdexport.train.objective import Objective
from kdexport.train.schedule import Schedule
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


KEPT = list(range(0, 320, 2))


@pytest.fixture(scope="module")
def models(llama: Path) -> tuple[Any, Any]:
    """A teacher, and a student of half of its tokens."""
    whole = load_model(llama)
    probe = [torch.arange(40)[None]]
    return whole, prune(Origin(whole, KEPT, probe), StudentSpec(n_layers=2)).model


@pytest.fixture
def case(models: tuple[Any, Any], llama: Path, tmp_path: Path) -> Case:
    rng = np.random.default_rng(1)
    return Case(
        teacher=models[0],
        student=models[1],
        kept_ids=KEPT,
        examples=[
            Encoded(
                f"e{n}",
                rng.integers(2, 160, size=int(size)),
                1,
                4,
                1.0 + n / 2,
                token_weights=np.linspace(0, 2, size, dtype=np.float32) if n % 2 else None,
            )
            for n, size in enumerate((9, 19, 14, 24))
        ],
        objective=Objective(
            kd_weight=Schedule(1.0, 5.0), temperature=2.0, prompt_weight=0.5, hidden_weight=0.2
        ),
        folder=tmp_path,
        top_k=64,
        teacher_tokens={i: f"t{i}" for i in range(320)},
        student_tokens={new: f"t{old}" for new, old in enumerate(KEPT)},
        tokenizer_from=llama,
        splits={"train": ["Fresh bread", "Tea"], "validation": ["Cake"], "test": ["Milk "]},
        row_length=33,
    )
