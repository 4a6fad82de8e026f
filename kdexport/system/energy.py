"""Energy that the CPU takes, where Linux tells it (RAPL, by the powercap interface).

What is counted is the whole package, whoever keeps it busy: on a machine with nothing else to do it
is what a measurement costs, the CPU's idling included.
"""

from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class Meter:
    """The packages' counters: microjoules that start again at 0 after ``range_uj``."""

    zones: tuple[Path, ...]
    range_uj: tuple[int, ...]

    def read(self) -> tuple[int, ...]:
        """What each package has taken so far."""
        return tuple(_number(zone / "energy_uj") for zone in self.zones)

    def joules(self, before: tuple[int, ...], after: tuple[int, ...]) -> float:
        """Taken between two readings less than a round apart."""
        spent = (
            (late - early) % around
            for early, late, around in zip(before, after, self.range_uj, strict=True)
        )
        return sum(spent) / 1e6


def find_meter(powercap: Path = POWERCAP) -> Meter | None:
    """A meter of all packages; None where there is none, or it may not be read."""
    zones = sorted(zone for zone in powercap.glob("intel-rapl:*") if zone.name.count(":") == 1)
    try:
        meter = Meter(tuple(zones), tuple(_number(z / "max_energy_range_uj") + 1 for z in zones))
        meter.read()
    except (OSError, ValueError):
        return None
    return meter if zones else None


def _number(path: Path) -> int:
    return int(path.read_text("ascii"))
