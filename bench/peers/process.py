"""An engine in a process of its own, and how busy the machine is with anything else."""

import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kdexport.errors import KdexportError
from kdexport.measuring.arms import Answer, Arm, ArmSpec

ROOT = Path(__file__).parents[2]
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
OFFLINE = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class Entrant:
    """What runs: a module of this package, by a Python of its own, on a prepared path.

    ``files``: what has to be on disk to run it. ``ours``: a bundle.
    """

    name: str
    python: Path
    module: str
    path: Path
    files: Sequence[Path]
    ours: bool = False

    @property
    def size_mb(self) -> float:
        """Bytes on disk, 10^6."""
        return sum(file.stat().st_size for file in self.files) / 1e6


class PeerArm(Arm):
    """A running entrant. What its libraries print goes to a file, whose end explains a failure."""

    def __init__(self, entrant: Entrant, n_threads: int) -> None:
        self.entrant = entrant
        self.spec = ArmSpec(entrant.name, entrant.path)
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed by `close`)
        self._process = subprocess.Popen(
            [entrant.python, "-m", entrant.module, entrant.path, "--threads", str(n_threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            process_group=0,
            cwd=ROOT,
            env={**os.environ, **OFFLINE, "OMP_NUM_THREADS": str(n_threads)},
        )
        try:
            self.facts = self._read()
        except BaseException:
            self.kill()
            raise

    def _read(self) -> Answer:
        try:
            return super()._read()
        except KdexportError as error:
            self._log.seek(0)
            last = [line.strip() for line in self._log if line.strip()][-1:]
            raise KdexportError("; ".join([error.message, *last]), where=error.where) from None

    def close(self) -> None:
        super().close()
        self._log.close()

    def cpu_seconds(self) -> float:
        """CPU time that the process has used."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS


@contextmanager
def running(entrants: Sequence[Entrant], n_threads: int) -> Iterator[list[PeerArm]]:
    """All entrants, loaded one after another; ended whatever happens."""
    arms: list[PeerArm] = []
    try:
        for entrant in entrants:
            arms.append(PeerArm(entrant, n_threads))
        yield arms
    finally:
        for arm in arms:
            arm.close()


@dataclass
class Bystanders:
    """CPU time of everything but the arm whose turn it is, in cores: over all turns, and the worst.

    ``idle_arms``: of the other arms, which should sleep. ``strangers``: of other programs; figures
    of a run in which they had more than a few percent are not to be trusted.
    """

    seconds: float = 0.0
    idle_arms: float = 0.0
    strangers: float = 0.0
    worst_idle_arms: float = 0.0
    worst_strangers: float = 0.0

    @contextmanager
    def watched(self, arm: PeerArm, arms: Sequence[PeerArm]) -> Iterator[None]:
        """Look at the clocks before and after a turn."""
        before = _clocks(arm, arms)
        yield
        now, busy, own, others = (b - a for a, b in zip(before, _clocks(arm, arms), strict=True))
        if now <= 0:
            return
        idle, foreign = others / now, max(0.0, (busy - own - others) / now)
        self.seconds += now
        self.idle_arms += (idle - self.idle_arms) * now / self.seconds
        self.strangers += (foreign - self.strangers) * now / self.seconds
        self.worst_idle_arms = max(self.worst_idle_arms, idle)
        self.worst_strangers = max(self.worst_strangers, foreign)


def _clocks(arm: PeerArm, arms: Sequence[PeerArm]) -> tuple[float, float, float, float]:
    """Uptime, and CPU seconds of the machine, of the arm and of the other arms."""
    up = float(Path("/proc/uptime").read_text().split()[0])
    user, nice, system, _idle, _wait, irq, soft = (
        int(field) for field in Path("/proc/stat").read_text().split()[1:8]
    )
    others = sum(other.cpu_seconds() for other in arms if other is not arm)
    return up, (user + nice + system + irq + soft) / CLOCK_TICKS, arm.cpu_seconds(), others
