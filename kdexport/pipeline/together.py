"""A command in several processes, which torchrun started: the first does it, the others help.

They help to train and with nothing else. What comes before and after is the first process's work,
while they wait; they read its files, print nothing but their own errors, and write only their share
of the teacher's targets.
"""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from pydantic import TypeAdapter

from kdexport.errors import require_extras
from kdexport.pipeline.run import Run
from kdexport.system.console import muted
from kdexport.system.interrupts import Interrupted

if TYPE_CHECKING:
    from kdexport.train.world import World

Result = TypeVar("Result")


def together(work: Callable[[], Result]) -> Result:
    """Do a command's work, with the help of all processes that torchrun started.

    Returns in the first only; the others end where it does.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return work()
    require_extras("train")
    from kdexport.train.world import joined, present

    with joined() as world:
        if world.is_first:
            try:
                return work()
            finally:
                present().told()  # nothing more to do
        _help(world)
    raise SystemExit(0)


def train_together(task: str, run: Run) -> None:
    """Do one of `TASKS` in this process and in those that wait."""
    from kdexport.train.trainer import DivergedError
    from kdexport.train.world import leave, present

    world = present()
    if world.size > 1:
        asked = {"task": task, "run": TypeAdapter(Run).dump_python(run, mode="json")}
        world.told(json.dumps(asked))
    try:
        TASKS[task](run, world)
    except (DivergedError, Interrupted):  # they have seen it, and wait again
        raise
    except BaseException:
        leave()
        raise


def _help(world: "World") -> None:
    from kdexport.train.trainer import DivergedError

    with muted():
        while told := world.told():
            asked = json.loads(told)
            with suppress(DivergedError, Interrupted):  # the first process tells of these
                TASKS[asked["task"]](TypeAdapter(Run).validate_python(asked["run"]), world)


def _distill(run: Run, world: "World") -> None:
    from kdexport.pipeline.training import train_student

    train_student(run, world)


def _finetune(run: Run, world: "World") -> None:
    from kdexport.pipeline.finetune import train_teacher

    train_teacher(run, world)


TASKS: Mapping[str, Callable[[Run, "World"], None]] = {"distill": _distill, "finetune": _finetune}
