"""Everything a run needs to go on where it stopped, as safetensors and JSON in one folder.

A checkpoint is written beside and swapped in, so that a kill at any moment leaves a whole one.
"""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from kdexport.errors import InputError
from kdexport.train.model import staged_folder

State = dict[str, Any]


def save_checkpoint(
    folder: Path, model: Any, optimizer: torch.optim.Optimizer, state: State
) -> None:
    """Write weights, optimizer moments, the random generator and ``state`` (JSON values)."""
    with staged_folder(folder) as staging:
        save_file(_own_tensors(model), staging / "model.safetensors")
        save_file(_moments(optimizer), staging / "optimizer.safetensors")
        save_file(_random_states(), staging / "random.safetensors")
        with (staging / "state.json").open("w", encoding="utf-8") as file:
            json.dump(state, file)
            file.flush()
            os.fsync(file.fileno())


def load_checkpoint(
    folder: Path, model: Any, optimizer: torch.optim.Optimizer, fingerprint: str
) -> State | None:
    """Bring model, optimizer and random generator back; None where there is no checkpoint.

    A checkpoint of another ``fingerprint`` (other data, recipe or student) is passed over.
    """
    old = folder.with_name(f".{folder.name}.old")
    if not folder.exists() and old.exists():  # killed between the two renames
        old.rename(folder)
    if not (folder / "state.json").exists():
        return None
    try:
        state: State = json.loads((folder / "state.json").read_text("utf-8"))
        if state.get("fingerprint") != fingerprint:
            return None
        weights = load_file(folder / "model.safetensors")
        moments = load_file(folder / "optimizer.safetensors")
        random = load_file(folder / "random.safetensors")
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise InputError(
            f"the checkpoint is damaged ({error})",
            where=str(folder),
            remedy="remove the folder to begin anew",
        ) from error
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)
    _restore_moments(optimizer, moments)
    torch.set_rng_state(random.pop("cpu"))
    if random and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(list(random.values()))
    return state


def _random_states() -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda{n:02d}": s for n, s in enumerate(torch.cuda.get_rng_state_all())}
    return states


def _own_tensors(model: Any) -> dict[str, torch.Tensor]:
    """Each parameter once: tied weights share one entry."""
    return {name: p.detach().contiguous() for name, p in model.named_parameters()}


def _moments(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Optimizer state as flat tensors named NUMBER/KEY."""
    state = optimizer.state_dict()["state"]
    return {
        f"{number}/{key}": torch.as_tensor(value).detach().contiguous()
        for number, values in state.items()
        for key, value in values.items()
    }


def _restore_moments(optimizer: torch.optim.Optimizer, moments: dict[str, torch.Tensor]) -> None:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in moments.items():
        number, key = name.split("/", 1)
        state.setdefault(int(number), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
