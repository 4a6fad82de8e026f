"""TensorBoard's event files of a training. Knows names and numbers, and nothing of training."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdexport.errors import require_extras


class Board:
    """The event files in a folder. Raises MissingExtraError where tensorboard is not installed."""

    def __init__(self, folder: Path) -> None:
        require_extras("tensorboard")
        self._folder = folder
        self._writer: Any = None

    def begins(self, step: int) -> None:
        """Go on after a step: what earlier files tell of later ones is not shown any more."""
        from torch.utils.tensorboard import SummaryWriter

        if step == 0:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._writer = SummaryWriter(str(self._folder), purge_step=step + 1, flush_secs=10)

    def add(self, step: int, row: Mapping[str, Any]) -> None:
        """Numbers of a step, each under its name; what is none is left out."""
        for name, value in row.items():
            if isinstance(value, (int, float)) and name != "step":
                self._writer.add_scalar(name, value, step)

    def text(self, step: int, name: str, text: str) -> None:
        """A text of a step."""
        self._writer.add_text(name, text, step)

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()
