"""Everything a run needs to go on where it stopped, as safetensors and JSON in folders by step.

A checkpoint is written beside, synced and renamed into place, and carries the sha256 of each of its
files. The newest and the one before are kept: a kill at any moment leaves two whole ones, once two
were written.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from kdexport.errors import InputError
from kdexport.system.console import say
from kdexport.system.journal import file_sha256, fingerprint
from kdexport.train.model import recover_folder, staged_folder

State = dict[str, Any]
STATE = "state.json"
KEPT = 2


class BrokenError(ValueError):
    """A checkpoint that is not what was written."""


def save_checkpoint(
    folder: Path, step: int, model: Any, optimizer: torch.optim.Optimizer, state: State
) -> Path:
    """Write weights, optimizer moments, the random generator and ``state`` (JSON values).

    The checkpoint is ``folder``/step-NUMBER. Older ones but the last go, and so do those of later
    steps, which are of something else or broken. Raises InputError where the disk takes no more.
    """
    place = folder / f"step-{step:06d}"
    with staged_folder(place) as staging:
        for name, part in PARTS.items():
            save_file(part(model, optimizer), staging / name)
        _write_state(staging, state)
    before = [other for other in list_checkpoints(folder) if _step(other) < step]
    kept = {place, *before[: KEPT - 1]}
    for other in list_checkpoints(folder):
        if other not in kept:
            (other / STATE).unlink()  # from here on it is no checkpoint, however far the rest gets
            shutil.rmtree(other)
    return place


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, the newest first, whole or not."""
    found = [place for place in folder.glob("step-*") if (place / STATE).is_file()]
    own = [place for place in found if place.name.removeprefix("step-").isdecimal()]
    return sorted(own, key=_step, reverse=True)


def load_checkpoint(
    folder: Path, model: Any, optimizer: torch.optim.Optimizer, fingerprint: str
) -> State | None:
    """Bring model, optimizer and random generator back from the newest whole checkpoint, if any.

    Checkpoints of another ``fingerprint`` (other data, recipe or student) are passed over, and so
    are broken ones, with a line. Raises InputError where all that there are were broken.
    """
    broken: list[Path] = []
    _tidy(folder)
    for place in list_checkpoints(folder):
        try:
            state = _read_state(place)
            if state["fingerprint"] != fingerprint:
                continue
            parts = _read_parts(place, state["files"])
        except (BrokenError, OSError, SafetensorError) as error:
            broken.append(place)
            say(f"    {place} is passed over: it is not as it was written ({error})")
            continue
        _restore(model, optimizer, *parts)
        for other in broken:
            shutil.rmtree(other, ignore_errors=True)
        return state
    if broken:
        raise InputError(
            "no whole checkpoint is left",
            where=str(folder),
            remedy="remove the folder to begin anew",
        )
    return None


def _tidy(folder: Path) -> None:
    """Finish or undo what a kill while saving left half done."""
    for partial in folder.glob(".step-*.partial"):
        shutil.rmtree(partial, ignore_errors=True)
    for old in folder.glob(".step-*.old"):
        recover_folder(old.with_name(old.name[1:].removesuffix(".old")))


def _step(place: Path) -> int:
    return int(place.name.removeprefix("step-"))


def _write_state(staging: Path, state: State) -> None:
    files = {name: file_sha256(staging / name) for name in PARTS}
    content = json.loads(json.dumps({**state, "files": files}))
    content["sha256"] = fingerprint(content)
    (staging / STATE).write_text(json.dumps(content, indent=1), "utf-8")


def _read_state(place: Path) -> State:
    try:
        state = json.loads((place / STATE).read_text("utf-8"))
        sha256 = state.pop("sha256")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise BrokenError(f"{STATE} cannot be read") from error
    if fingerprint(state) != sha256:
        raise BrokenError(f"{STATE} has changed")
    return dict(state)


def _read_parts(place: Path, files: dict[str, str]) -> list[dict[str, torch.Tensor]]:
    for name, sha256 in files.items():
        if file_sha256(place / name) != sha256:
            raise BrokenError(f"{name} has changed")
    return [load_file(place / name) for name in PARTS]


def _restore(
    model: Any,
    optimizer: torch.optim.Optimizer,
    weights: dict[str, torch.Tensor],
    moments: dict[str, torch.Tensor],
    random: dict[str, torch.Tensor],
) -> None:
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            own[name].copy_(value)
    _restore_moments(optimizer, moments)
    torch.set_rng_state(random.pop("cpu"))
    if random and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(list(random.values()))


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


PARTS: dict[str, Callable[[Any, torch.optim.Optimizer], dict[str, torch.Tensor]]] = {
    "model.safetensors": lambda model, optimizer: _own_tensors(model),
    "optimizer.safetensors": lambda model, optimizer: _moments(optimizer),
    "random.safetensors": lambda model, optimizer: _random_states(),
}
"""What a checkpoint holds: file -> its tensors, by name."""
