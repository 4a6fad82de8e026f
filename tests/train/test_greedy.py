from pathlib import Path
from typing import Any

import pytest
import torch

from kdexport.train.greedy import write_greedily
from kdexport.train.model import load_model


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_it_writes_what_transformers_writes(request: Any, family: str) -> None:
    folder: Path = request.getfixturevalue(family)
    model = load_model(folder)
    prompt = torch.arange(5, 12)
    expected = model.generate(
        prompt[None],
        attention_mask=torch.ones(1, 7),
        do_sample=False,
        max_new_tokens=9,
        eos_token_id=None,
        pad_token_id=0,
    )[0, 7:].tolist()
    assert write_greedily(model, prompt, 9, ()) == expected
    end = expected[4]
    assert write_greedily(model, prompt, 9, (end,)) == expected[: expected.index(end)]


def test_it_leaves_the_random_state_and_the_mode(gpt2: Path) -> None:
    model = load_model(gpt2).train()
    before = torch.get_rng_state()
    one = write_greedily(model, torch.arange(5, 12), 4, ())
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert one == write_greedily(model, torch.arange(5, 12), 4, ())  # no dropout in it
