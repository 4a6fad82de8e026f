"""docs/scaling.md says what bench/scaling.py computes, and that follows from its inputs."""

import numpy as np
import pytest
import torch

from bench import scaling
from kdexport.train.columns import top_k_form
from kdexport.train.data import Encoded, collate
from kdexport.train.targets import Targets


def test_the_document_has_the_tables_of_the_script() -> None:
    text = scaling.DOCUMENT.read_text("utf-8")
    assert scaling.with_tables(text) == text, "python bench/scaling.py --write"


def test_a_gpu_of_the_teacher_by_hand() -> None:
    assert scaling.reading_rate() == pytest.approx(989e12 * 0.4 / 141.2e9)
    # 141.2 GB of weights and 256 x 250 tokens of 327,680 bytes, at 6.7 TB/s
    assert scaling.writing_rate() == pytest.approx(256 / (162.2e9 / 6.7e12) / 4, rel=1e-3)


@pytest.mark.parametrize("vocab_size", [32_768, 128_256])
def test_bytes_are_those_that_a_cache_writes(vocab_size: int) -> None:
    batch = collate([Encoded("e", np.arange(3, 9), 1, 1)])
    whole = torch.log_softmax(torch.randn(batch.n_targets, 512), -1)
    form = top_k_form(lambda _: Targets(whole), vocab_size, 64)
    written = sum(values.nbytes for values in form.ask(batch).values())
    assert written == scaling.top_k_bytes(vocab_size, 64) * batch.n_targets
    assert form.bytes_per_token == scaling.top_k_bytes(vocab_size, 64)
