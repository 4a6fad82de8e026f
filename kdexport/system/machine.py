"""What the machine is and has: CPU, memory, disk, system and library versions.

Knows nothing of models or reports, and imports none of the libraries whose versions it tells.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from kdexport.errors import InputError

VERSIONS_OF = ("kdexport", "onnxruntime", "numpy", "tokenizers", "torch", "transformers")

FEATURES: dict[str, frozenset[str]] = {
    "avx2": frozenset({"avx2"}),
    "avx512": frozenset({"avx512f"}),
    "vnni": frozenset({"avx512_vnni", "avx_vnni"}),
    "bf16": frozenset({"avx512_bf16", "bf16"}),
    "amx": frozenset({"amx_int8", "amx_tile"}),
    "neon": frozenset({"asimd", "neon"}),
    "dotprod": frozenset({"asimddp"}),
    "i8mm": frozenset({"i8mm"}),
    "sve": frozenset({"sve"}),
}
"""Feature -> the flags of /proc/cpuinfo (x86 `flags`, Arm `Features`), any of which means it."""


class Machine(BaseModel):
    """The machine that a report was measured on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cpu: str
    n_cores: int
    cpu_quota: float | None = None
    features: list[str] = []
    memory_gb: float | None = None
    governor: str = ""
    os: str = ""
    python: str = ""
    versions: dict[str, str] = {}


def machine_facts() -> Machine:
    """Facts of this machine; whatever the system does not tell stays empty, nothing raises.

    `n_cores` counts logical CPUs that this process may use, `cpu_quota` how many of them at a time
    a container is given (None: all); `memory_gb` is in 10^9 bytes; `governor` is Linux's for the
    first CPU's frequency.
    """
    facts = _cpuinfo()
    return Machine(
        cpu=facts.get("model name") or platform.processor() or platform.machine(),
        n_cores=_n_cores(),
        cpu_quota=cpu_quota(),
        features=_features(facts),
        memory_gb=_memory_gb(),
        governor=_governor(),
        os=_os_name(),
        python=platform.python_version(),
        versions={name: found for name in VERSIONS_OF if (found := _version(name)) is not None},
    )


def cpu_features() -> list[str]:
    """Which of `FEATURES` this machine's CPU has."""
    return _features(_cpuinfo())


def _features(facts: dict[str, str]) -> list[str]:
    flags = set(f"{facts.get('flags', '')} {facts.get('Features', '')}".split())
    return [name for name, any_of in FEATURES.items() if any_of & flags]


def _cpuinfo() -> dict[str, str]:
    try:
        return parse_cpuinfo(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return {}


def parse_cpuinfo(text: str) -> dict[str, str]:
    """The first value of every key in the text of /proc/cpuinfo."""
    facts: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            facts.setdefault(key.strip(), value.strip())
    return facts


def physical_cores() -> int:
    """Physical cores that this process may use: threads beyond them do not speed up a model.

    A container's share of CPU time counts too, rounded: threads beyond it are stopped in turn, and
    the others wait for them.
    """
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    if usable is None:
        return max(1, (os.cpu_count() or 2) // 2)
    siblings = set()
    for cpu in usable:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            siblings.add(path.read_text("ascii").strip())
        except OSError:
            siblings.add(str(cpu))
    quota = cpu_quota()
    granted = len(siblings) if quota is None else min(len(siblings), int(quota + 0.5))
    return max(1, granted)


def cpu_quota(
    mounted: Path = Path("/sys/fs/cgroup"), of_process: Path = Path("/proc/self/cgroup")
) -> float | None:
    """CPUs' worth of time that Linux control groups (v1 or v2) give this process; None: no limit.

    The least of the process's group and those around it, as far as this process can see them.
    """
    try:
        lines = of_process.read_text("utf-8").splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = mounted / "cpu" if controllers else mounted
        group = root / path.strip("/")
        around = [folder for folder in group.parents if folder.is_relative_to(root)]
        quotas += [_quota_of(folder) for folder in (group, *around)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_of(group: Path) -> float | None:
    """The limit that one group's files state."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join((group / name).read_text("ascii") for name in names).split()
            limit = float(quota) / float(period)
        except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max"
            continue
        if limit > 0:
            return limit
    return None


def _n_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_gb() -> float | None:
    try:
        n_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None
    return round(n_bytes / 1e9, 1) if n_bytes > 0 else None


def _governor() -> str:
    try:
        path = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
        return path.read_text("ascii").strip()
    except OSError:
        return ""


def _os_name() -> str:
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        name = f"{platform.system()} {platform.release()}"
    return f"{name}, {platform.machine()}"


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def rss_mb() -> float:
    """The memory that this process holds now, 10^6 bytes; the most it ever held without /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    except (OSError, IndexError, ValueError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


def need_room(folder: Path, n_bytes: int) -> None:
    """Refuse to begin what the disk of ``folder`` cannot hold."""
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise InputError(
            f"{free / 1e9:.1f} GB are free, {n_bytes / 1e9:.1f} GB may be needed",
            where=str(folder),
            remedy="make room, or name a folder of another disk",
        )


def make_folder(folder: Path) -> None:
    """Make a folder that results go to; refuse a place that cannot be one."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot be made a folder ({error.strerror})",
            where=str(folder),
            remedy="name another folder",
        ) from None
    if not os.access(folder, os.W_OK):
        raise InputError("cannot be written to", where=str(folder), remedy="name another folder")


def cache_folder() -> Path:
    """$KDEXPORT_CACHE, or kdexport in the user's cache folder."""
    chosen = os.environ.get("KDEXPORT_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "kdexport"
