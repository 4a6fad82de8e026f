import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer

from kdexport.train.data import Encoded, collate
from kdexport.train.losses import Targets
from kdexport.train.model import load_model, load_tokenizer, read_targets, swap_folder


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
        reading = read_targets(model, batch.ids, batch.targets)
        some = read_targets(model, batch.ids, batch.targets, torch.tensor([7, 3]))
    torch.testing.assert_close(reading.logits, whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(some.logits, whole[:, [7, 3]], rtol=1e-4, atol=1e-5)


def test_plain_attention_computes_what_the_tiled_kind_does(llama: Path) -> None:
    batch = collate([Encoded("a", torch.arange(5, 15).numpy(), 4, 4)])
    with torch.no_grad():
        one, other = (
            read_targets(load_model(llama, attention=kind), batch.ids, batch.targets).logits
            for kind in ("sdpa", "eager")
        )
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
