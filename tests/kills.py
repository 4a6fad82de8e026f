"""Runs that are killed: python -m tests.kills FOLDER SEED; there are recipes, briefs, a teacher.

One process imports everything once. Each attempt at the run is a fork of it, a process of its own
with files of its own, which tells through a pipe what it begins and ends; it is killed a random
moment after it has begun what is wanted. Two attempts more are real command lines. Prints JSON: the
kills and what they hit, and the hashes of what an unbroken run and the killed one have written.
"""

import gc
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kdexport.system.journal import file_sha256

PHASES = {
    "writing": ("kdexport.pipeline.synthesize", "_write_chunk"),
    "caching": ("kdexport.pipeline.service", "fill_cache"),
    "training": ("kdexport.train.step", "Stepper.step"),
    "evaluation": ("kdexport.train.trainer", "evaluate"),
    "saving": ("kdexport.train.trainer", "save_checkpoint"),
    "keeping": ("kdexport.pipeline.learning", "save_model"),
}
"""What a run does, in the order in which it comes to it, by the function that does it."""
ONCE = ("writing", "caching")  # then come the others, again and again
MODULES = ("kdexport.pipeline.training", "kdexport.pipeline.cutting", "kdexport.runtime.session")
N_EACH = {phase: 4 if phase in ONCE else 3 for phase in PHASES}  # kills that hit it
PATIENCE = 12  # steps that are waited for a phase
TRIES = 3  # at a phase, on a machine so busy that each kill comes when it is over
COMMAND = ("distill", "recipe.yaml")
STUDENT = "student/model.safetensors"


class Attempt:
    """The command in a fork. ``within``: the phase that it is in, by what was read of its words."""

    def __init__(self, folder: Path) -> None:
        reading, writing = os.pipe()
        self.within = ""
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reading)
            _run(folder, writing)
        os.close(writing)
        self.pipe = os.fdopen(reading, encoding="utf-8")

    def tells(self) -> Iterator[str]:
        """The phases that it begins and ends, "+" or "-" before them."""
        for line in self.pipe:
            told = line.strip()
            self.within = told[1:] if told.startswith("+") else ""
            yield told

    def end(self) -> int:
        """Read what it still has said; its exit code."""
        for _ in self.tells():
            pass
        self.pipe.close()
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _run(folder: Path, pipe: int) -> None:
    """What the fork does: the command, with the functions of `PHASES` telling of themselves."""
    code = 70
    try:
        os.chdir(folder)
        log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        for phase, (module, name) in PHASES.items():
            owner: Any = importlib.import_module(module)
            *above, last = name.split(".")
            for part in above:
                owner = getattr(owner, part)
            setattr(owner, last, _telling(phase, getattr(owner, last), pipe))
        from kdexport.commands.main import main

        sys.argv = ["kdexport", *COMMAND]
        main()
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _telling(phase: str, does: Callable[..., Any], pipe: int) -> Callable[..., Any]:
    def told(*arguments: Any, **options: Any) -> Any:
        os.write(pipe, f"+{phase}\n".encode())
        try:
            return does(*arguments, **options)
        finally:
            os.write(pipe, f"-{phase}\n".encode())

    return told


def run_whole(folder: Path) -> dict[str, float]:
    """Run the command to its end; mean seconds of each phase."""
    attempt = Attempt(folder)
    begun = 0.0
    seconds: dict[str, list[float]] = {phase: [] for phase in PHASES}
    for told in attempt.tells():
        if told.startswith("-"):
            seconds[told[1:]].append(time.monotonic() - begun)
        begun = time.monotonic()
    assert attempt.end() == 0, (folder / "log.txt").read_text("utf-8")
    return {phase: sum(found) / max(len(found), 1) for phase, found in seconds.items()}


def kill(folder: Path, wanted: str, delay: float) -> dict[str, Any]:
    """Kill the command some seconds after it begins a phase, or one that comes in its place.

    What was hit is the phase that it had begun and not ended; "" is between two.
    """
    order, n_steps = list(PHASES), 0
    attempt = Attempt(folder)
    for _ in attempt.tells():
        n_steps += attempt.within == "training"
        is_past = wanted in ONCE and order.index(attempt.within or wanted) > order.index(wanted)
        if attempt.within == wanted or is_past or n_steps > PATIENCE:
            time.sleep(delay)
            os.kill(attempt.pid, signal.SIGKILL)
            break
    code = attempt.end()
    return {"wanted": wanted, "delay": delay, "hit": attempt.within, "code": code}


def kill_command_line(folder: Path, sign: str, delay: float) -> dict[str, Any]:
    """Kill the command as a user starts it, some seconds after it has written a file anew."""
    before = time.time_ns()
    with (folder / "log.txt").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "kdexport", *COMMAND],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(Path.cwd())},
            stdout=log,
            stderr=log,
        )
    while process.poll() is None:
        if any(_changed_ns(file) > before for file in folder.glob(sign)):
            time.sleep(delay)
            process.kill()
            break
        time.sleep(0.01)
    return {"command line": sign, "delay": delay, "code": process.wait()}


def _changed_ns(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:  # gone since it was listed
        return 0


def main() -> None:
    place, rng = Path(sys.argv[1]), random.Random(int(sys.argv[2]))
    whole, killed = place / "whole", place / "killed"
    for module in MODULES:
        importlib.import_module(module)
    importlib.import_module("kdexport.train.model").load_model(place / "teacher")  # slow only once
    gc.freeze()  # no fork writes to these pages
    seconds = run_whole(whole)
    shutil.copytree(whole / "exported", killed / "exported")  # the teacher's bundle is made once
    (killed / "runs" / "tiny").mkdir(parents=True)
    shutil.copy(whole / "runs" / "tiny" / "journal.json", killed / "runs" / "tiny")
    again = [phase for phase, n in N_EACH.items() if phase not in ONCE for _ in range(n)]
    rng.shuffle(again)
    wishes = [phase for phase in ONCE for _ in range(N_EACH[phase])] + again
    delay = rng.uniform(0, seconds["writing"])
    rows = [kill_command_line(killed, "runs/tiny/drafts.jsonl", delay)]
    n_tries = 0
    while wishes and len(rows) < 40:
        row = kill(killed, wishes[0], rng.uniform(0, seconds[wishes[0]]))
        rows.append(row)
        n_tries += 1
        if row["hit"] == wishes[0] or (row["hit"] and n_tries == TRIES):
            wishes.pop(0)
            n_tries = 0
    delay = rng.uniform(0, seconds["training"])
    rows.append(kill_command_line(killed, "runs/tiny/checkpoints/*/state.json", delay))
    run_whole(killed)
    hashes = [
        [file_sha256(of / "runs" / "tiny" / file) for file in ("pairs.jsonl", STUDENT)]
        for of in (whole, killed)
    ]
    print(json.dumps({"seconds": seconds, "kills": rows, "sha256": hashes}))


if __name__ == "__main__":
    main()
