"""What the probes of a machine found, and the scheme that follows from it, by the rows of RULES.

Knows no session and no bundle, and measures nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

MANY_ROWS = 128
"""Rows of the products that stand for a prompt."""
SAME = 1.25
"""Times that differ by less are the same: a few runs, on machines that others share."""
SCARCE_GB_S = 10.0
"""Below this a billion 8-bit weights take a tenth of a second a token: halving them pays."""
PAYS = 0.7
"""Share of the 8-bit time that 4 bits may take at one row where memory is what is waited for."""


class Probe(BaseModel):
    """One question to the machine. ``value`` is None where ONNX Runtime refuses the kernel."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    value: float | None
    unit: str
    verdict: Literal["ok", "wrong", "slow"]
    why: str


class Speed(BaseModel):
    """Lower quartiles of one kernel's times; GB/s of weights as stored, scales included."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kernel: str
    one_row_ms: float
    one_row_gb_s: float
    many_rows_ms: float
    many_rows_gflops: float


class Recommendation(BaseModel):
    """A scheme for a need, and one sentence of why."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    need: str
    scheme: str
    why: str


class Probes(BaseModel):
    """All that was asked; ``speeds`` and ``recommended`` stay empty where nothing was timed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    n_threads: int
    seconds: float
    probes: list[Probe]
    speeds: list[Speed] = []
    recommended: list[Recommendation] = []

    def right(self, kernel: str) -> bool:
        """Whether every probe of a kernel's results went well; speed aside. False for unknown."""
        verdicts = [p.verdict for p in self.probes if p.name.startswith(f"{kernel}: ")]
        return bool(verdicts) and "wrong" not in verdicts

    def slow(self, kernel: str) -> bool:
        """Whether any probe of a kernel's time was slow; False for one that was not timed."""
        return any(p.verdict == "slow" for p in self.probes if p.name.startswith(f"{kernel}: "))

    def dynamic(self) -> str:
        """The kernel that dynamic int8 had best be here: of signed weights, where that is right."""
        return "dynamic-signed" if self.right("dynamic-signed") else "dynamic-unsigned"

    def one_row_ms(self, kernel: str) -> float:
        """Milliseconds of a product with one row; infinite for a kernel that was not timed."""
        return next((s.one_row_ms for s in self.speeds if s.kernel == kernel), float("inf"))

    def many_rows_ms(self, kernel: str) -> float:
        """Milliseconds of a product with MANY_ROWS rows; infinite for one that was not timed."""
        return next((s.many_rows_ms for s in self.speeds if s.kernel == kernel), float("inf"))

    def gb_s(self) -> float:
        """GB/s of weights that the quickest reader among the kernels reads for one row."""
        return max((s.one_row_gb_s for s in self.speeds), default=float("inf"))


def recommend(probes: Probes) -> list[Recommendation]:
    """For each need the first row of RULES that holds; nothing where nothing was timed."""
    found: dict[str, Recommendation] = {}
    for rule in RULES if probes.speeds else ():
        if rule.need not in found and rule.holds(probes):
            found[rule.need] = Recommendation(
                need=rule.need, scheme=rule.scheme, why=rule.why(probes)
            )
    return list(found.values())


@dataclass(frozen=True)
class Rule:
    """A scheme for a need: when, and the sentence that says why."""

    need: str
    scheme: str
    holds: Callable[[Probes], bool]
    why: Callable[[Probes], str]


def _bandwidth_is_scarce(probes: Probes) -> bool:
    pays = probes.one_row_ms("block4") <= PAYS * probes.one_row_ms(probes.dynamic())
    return probes.right("block4") and pays and probes.gb_s() < SCARCE_GB_S


def _signed_is_fastest(probes: Probes) -> bool:
    """Nowhere slower than another right kernel, and somewhere faster than the faithful blocks."""
    both = (probes.one_row_ms, probes.many_rows_ms)
    others = [k for k in ("float32", "dynamic-unsigned", "block8") if probes.right(k)]
    slower = any(ms("dynamic-signed") > SAME * ms(k) for ms in both for k in others)
    faster = any(ms("block8") > SAME * ms("dynamic-signed") for ms in both)
    return probes.right("dynamic-signed") and not slower and faster


def _blocks_do(probes: Probes) -> bool:
    return probes.right("block8") and not probes.slow("block8")


def _against(probes: Probes, kernel: str) -> str:
    """A kernel's times beside dynamic int8's, in words."""
    base = probes.dynamic()
    one = probes.one_row_ms(kernel) / probes.one_row_ms(base)
    many = probes.many_rows_ms(kernel) / probes.many_rows_ms(base)
    return f"take {one:.2f} of dynamic int8's time at one row and {many:.2f} at {MANY_ROWS}"


def _blocks(probes: Probes) -> str:
    right = probes.right("block8")
    return f"8-bit blocks {_against(probes, 'block8') if right else 'are wrong'}"


def _why_scarce(probes: Probes) -> str:
    return (
        f"weights come at {probes.gb_s():.1f} GB/s at the most, and 4-bit blocks "
        f"are right here and {_against(probes, 'block4')}"
    )


def _why_blocks(probes: Probes) -> str:
    return f"8-bit blocks keep a model best, are right here and {_against(probes, 'block8')}"


def _why_signed(probes: Probes) -> str:
    return f"signed 8-bit products are exact here, while {_blocks(probes)}"


def _why_portable(probes: Probes) -> str:
    return f"signed 8-bit products are wrong here and unsigned ones exact, while {_blocks(probes)}"


def _why_small(probes: Probes) -> str:
    return (
        f"4-bit blocks are half the size of 8-bit ones, right here and {_against(probes, 'block4')}"
    )


RULES: Sequence[Rule] = (
    Rule("most uses", "int4", _bandwidth_is_scarce, _why_scarce),
    Rule("most uses", "int8", _signed_is_fastest, _why_signed),
    Rule("most uses", "int8-block", _blocks_do, _why_blocks),
    Rule("most uses", "int8", lambda p: p.right("dynamic-signed"), _why_signed),
    Rule("most uses", "int8-portable", lambda p: p.right("dynamic-unsigned"), _why_portable),
    Rule("most uses", "fp32", lambda _: True, lambda _: "no 8-bit kernel computes right here"),
    Rule("fidelity", "int8-block", lambda p: p.right("block8"), _why_blocks),
    Rule("fidelity", "fp32", lambda _: True, lambda _: "8-bit blocks are wrong here"),
    Rule("small size", "int4", lambda p: p.right("block4"), _why_small),
)
"""Tried from above; of each need the first that holds is recommended."""
