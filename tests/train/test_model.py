import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from kdexport.errors import InputError
from kdexport.train.cache import fill_cache
from kdexport.train.checkpoint import save_checkpoint
from kdexport.train.data import Encoded, collate
from kdexport.train.model import (
    load_config,
    load_model,
    load_tokenizer,
    read_batch,
    recompute_activations,
    save_model,
    swap_folder,
)
from kdexport.train.targets import Targets


def test_a_tokenizer_saved_with_truncation_cuts_no_text(llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "model"))
    saved = Tokenizer.from_file(str(folder / "tokenizer.json"))
    whole = saved.encode("Fresh bread from our oven").ids
    saved.enable_truncation(3)
    saved.enable_padding(length=20)
    saved.save(str(folder / "tokenizer.json"))
    found = load_tokenizer(folder).backend_tokenizer.encode("Fresh bread from our oven").ids
    assert found == whole


def test_marked_positions_alone_are_read(llama: Path) -> None:
    model = load_model(llama)
    batch = collate([Encoded("a", torch.arange(5, 15).numpy(), 4, 4)])
    with torch.no_grad():
        whole = model(batch.ids).logits[0, 3:9]
        reading = read_batch(model, batch)
        every, some = reading.to_logits(model), reading.to_logits(model, torch.tensor([7, 3]))
    torch.testing.assert_close(every, whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(some, whole[:, [7, 3]], rtol=1e-4, atol=1e-5)


def test_plain_attention_computes_what_the_tiled_kind_does(llama: Path) -> None:
    batch = collate([Encoded("a", torch.arange(5, 15).numpy(), 4, 4)])
    with torch.no_grad():
        models = [load_model(llama, attention=kind) for kind in ("sdpa", "eager")]
        one, other = (read_batch(model, batch).to_logits(model) for model in models)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_targets_move_as_a_whole() -> None:
    targets = Targets(torch.zeros(2, 3), torch.zeros(2, 3).long(), torch.zeros(2), 1)
    moved = targets.to(torch.device("meta"))
    assert moved.logprobs.is_meta and moved.ids is not None and moved.ids.is_meta
    assert moved.hidden is None and moved.n_drawn == 1


def test_a_folder_is_swapped_whole(tmp_path: Path) -> None:
    for name in ("new", "place"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    swap_folder(tmp_path / "new", tmp_path / "place")
    assert [path.name for path in (tmp_path / "place").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


@contextmanager
def small_disk() -> Iterator[None]:
    """No file may grow beyond 1000 bytes: what a full disk is to those who write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def fill_a_cache(_model: Path, place: Path) -> None:
    examples = [Encoded("a", torch.arange(5, 15).numpy(), 4, 4)]
    fill_cache(place, examples, lambda _: {"x": torch.zeros(6, 200)}, batch_size=1)


def save_a_model(model: Path, place: Path) -> None:
    save_model(load_model(model), place, tokenizer_from=model)


def save_a_checkpoint(model: Path, place: Path) -> None:
    loaded = load_model(model)
    save_checkpoint(place, 1, loaded, torch.optim.AdamW(loaded.parameters()), {})


@pytest.mark.parametrize("write", [fill_a_cache, save_a_model, save_a_checkpoint])
def test_a_full_disk_is_one_line_and_leaves_what_was_there(
    llama: Path, tmp_path: Path, write: Callable[[Path, Path], None]
) -> None:
    write(llama, tmp_path / "place")
    if write is fill_a_cache:  # of what is there already, nothing is written again
        (tmp_path / "place" / "00000.safetensors").unlink()
    before = sorted(tmp_path.rglob("*"))
    with (
        small_disk(),
        pytest.raises(InputError, match=r"cannot be written \(.*too large") as caught,
    ):
        write(llama, tmp_path / "place")
    assert caught.value.where.startswith(str(tmp_path / "place"))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "load"), [("config.json", load_config), ("tokenizer.json", load_tokenizer)]
)
def test_what_cannot_be_loaded_is_one_line(
    llama: Path, tmp_path: Path, name: str, load: Callable[[Path], object]
) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "model"))
    (folder / name).write_text(json.dumps({"model_type": 5, "model": {"type": "x", "vocab": {}}}))
    with pytest.raises(InputError, match=r"^[^\n]*cannot be loaded[^\n]*$") as caught:
        load(folder)
    assert caught.value.where == str(folder / name)


def test_a_size_of_nothing_is_one_line_too(llama: Path, tmp_path: Path) -> None:
    """transformers divides by it; every check before a run reads the configuration."""
    folder = Path(shutil.copytree(llama, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_attention_heads": 0}))
    with pytest.raises(InputError, match="cannot be loaded"):
        load_config(folder)


@pytest.mark.filterwarnings("error::FutureWarning")  # of a name that is going to be removed
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_layers_computed_again_give_the_same_gradient(
    family: str, request: pytest.FixtureRequest
) -> None:
    """With dropout, too: the second time draws what the first drew."""
    batch = collate([Encoded("a", torch.arange(5, 25).numpy(), 4, 4)])
    found = {}
    for again in (False, True):
        model = load_model(request.getfixturevalue(family)).train()
        if again:
            recompute_activations(model)
        calls: list[int] = []
        part = next(m for m in model.modules() if type(m).__name__.endswith("MLP"))  # of a layer
        part.register_forward_pre_hook(
            lambda *_, calls=calls: calls.append(1) if torch.is_grad_enabled() else None
        )
        torch.manual_seed(0)
        read_batch(model, batch).to_logits(model).square().sum().backward()
        grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found[again] = (len(calls), grads)
    assert (found[False][0], found[True][0]) == (1, 2)
    torch.testing.assert_close(found[True][1], found[False][1], rtol=1e-6, atol=1e-7)
