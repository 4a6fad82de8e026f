"""Micro-probes: what ONNX Runtime's quantized products really compute on this CPU, and how fast.

Each probe holds one kernel against the same product in float64. Knows no model, no bundle and no
scheme: weights are drawn here, and what follows from the answers is kdexport.runtime.advice's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from kdexport.runtime.advice import MANY_ROWS, Probe, Probes, Speed, recommend
from kdexport.runtime.attention_probe import probe_attention
from kdexport.system.machine import physical_cores

Array = np.ndarray[Any, Any]
Product = Callable[[Array], Array]
"""``x`` float32 [M, K] -> float32 [M, N]."""

Opener = Callable[[str, str, Mapping[str, Array], int], Product]
"""Kernel, size, weights and number of threads -> the product, ready to be called."""

FOLDER = Path(__file__).parent / "probe_graphs"
SIZES = {"small": (512, 256), "large": (2048, 8192)}  # K and N, as in the folder's graphs
BLOCK = 32
SEED = 7
ROW_COUNTS = (1, 16)  # one row has kernels of its own
N_REPEATS = {1: 20, MANY_ROWS: 4}  # rows -> how often a product is timed
ENOUGH_REPEATS, ENOUGH_SECONDS = 3, 0.3  # and when a slow one has been timed enough
N_HEAD_ROWS = 256

EXACT = 1e-5
"""Float32 rounding of one exact integer sum and its scale, with a hundredfold to spare."""
FLOAT_ERROR = 1e-4
"""512 float32 products, of which each may err by 6e-8 of the largest sum on the way."""
ROUNDED_ERROR = 0.05
"""Activations in 8 bits a block err by 0.5 % (a step of 1/60 of their deviation, over sqrt 12);
the worst of some thousand results by four times that; twice the worst is allowed."""
MOST_FLIPS = 0.05
"""The best of 8192 Gaussian logits leads by a quarter of their deviation in the mean, so errors of
0.5 % turn about one row of eighty; more than one of twenty is no rounding."""


@dataclass(frozen=True)
class Weights:
    """A kernel's constants, and the float64 [K, columns] matrix that some columns stand for."""

    constants: Mapping[str, Array]
    columns: Callable[[slice], Array]


def probe_machine(
    *, n_threads: int | None = None, timed: bool = True, opener: Opener | None = None
) -> Probes:
    """Ask all of it: some seconds and 0.5 GB when timed, a fraction of a second when not.

    Seeded: what is computed repeats, what is timed does not. Raises nothing for a kernel that ONNX
    Runtime lacks: that is a verdict. ``n_threads``: as many as sessions use, unless given.
    """
    begun = time.perf_counter()
    threads = n_threads or physical_cores()
    opened = opener or open_product
    probes = [probe_kernel(kernel, n_threads=threads, opener=opened) for kernel in KERNELS]
    attention = probe_attention(n_threads=threads)
    speeds: list[Speed] = []
    if timed:
        able = [kernel for kernel, probe in zip(KERNELS, probes, strict=True) if _taken(probe)]
        products = {kernel: _opened(kernel, "large", threads, opened) for kernel in able}
        probes += [_ask_flips(k, *products[k]) for k in FLIPPING if k in products]
        speeds = _time_all(products)
        asked = Probes(n_threads=threads, seconds=0, probes=probes, speeds=speeds)
        probes += [probe for row in COMPARED for probe in _compare(asked, *row)]
    asked = Probes(n_threads=threads, seconds=0, probes=[*probes, attention], speeds=speeds)
    seconds = round(time.perf_counter() - begun, 2)
    return asked.model_copy(update={"recommended": recommend(asked), "seconds": seconds})


def open_product(
    kernel: str,
    size: str,
    constants: Mapping[str, Array],
    n_threads: int,
    switches: Mapping[str, str] = MappingProxyType({}),
) -> Product:
    """A kernel's graph with the constants in it, in a session set up as a bundle's is."""
    import onnxruntime

    from kdexport.runtime.session import session_options

    options = session_options(n_threads, switches)
    options.log_severity_level = 4
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in constants.values()]
    options.add_external_initializers(list(constants), values)
    graph = str(FOLDER / f"{kernel}-{size}.onnx")
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def product(x: Array) -> Array:
        return np.asarray(session.run(None, {"x": x})[0])

    return product


def _opened(kernel: str, size: str, n_threads: int, opener: Opener) -> tuple[Product, Weights]:
    k, n = SIZES[size]
    weights = KERNELS[kernel](np.random.default_rng(SEED), k, n)
    return opener(kernel, size, weights.constants, n_threads), weights


def probe_kernel(
    kernel: str, *, n_threads: int | None = None, opener: Opener | None = None
) -> Probe:
    """Whether a kernel of KERNELS computes right here: hundredths of a second.

    ``value``: the largest error over ROW_COUNTS, as a share of the results' deviation.
    """
    threads = n_threads or physical_cores()
    draw, tolerance, meaning = RIGHT[kernel]
    name = f"{kernel}: error"
    try:
        product, weights = _opened(kernel, "small", threads, opener or open_product)
        error = max(_error(product, weights, draw, n_rows) for n_rows in ROW_COUNTS)
    except Exception as refused:  # onnxruntime's exceptions share no base class of their own
        why = f"ONNX Runtime refuses the kernel ({' '.join(str(refused).split())[:120]})"
        return Probe(name=name, value=None, unit="share", verdict="wrong", why=why)
    right = error <= tolerance
    why = f"{meaning[0] if right else meaning[1]}: {error:.2g} off, {tolerance:g} allowed"
    verdict: Literal["ok", "wrong"] = "ok" if right else "wrong"
    return Probe(name=name, value=error, unit="share", verdict=verdict, why=why)


def _error(
    product: Product, weights: Weights, draw: Callable[[int, int], Array], n_rows: int
) -> float:
    k, n = SIZES["small"]
    x = draw(n_rows, k)
    wanted = x.astype(np.float64) @ weights.columns(slice(0, n))
    worst = float(np.abs(product(x) - wanted).max() / np.sqrt(np.square(wanted).mean()))
    return worst if np.isfinite(worst) else float(np.finfo(np.float64).max)


def _ask_flips(kernel: str, product: Product, weights: Weights) -> Probe:
    """How many rows of a vocabulary head have another best token than in float64."""
    k, n = SIZES["large"]
    x = _gaussian(N_HEAD_ROWS, k)
    wide = x.astype(np.float64)
    parts = [wide @ weights.columns(slice(at, at + 1024)) for at in range(0, n, 1024)]
    best = np.concatenate(parts, axis=1).argmax(1)
    flipped = float((product(x).argmax(1) != best).mean())
    few = flipped <= MOST_FLIPS
    why = (
        f"{flipped:.1%} of {N_HEAD_ROWS} random rows get another best token than in float64, "
        f"{MOST_FLIPS:.0%} would be {'too many' if few else 'few enough'}"
    )
    return Probe(
        name=f"{kernel}: flips",
        value=flipped,
        unit="share of rows",
        verdict="ok" if few else "wrong",
        why=why,
    )


def _time_all(products: Mapping[str, tuple[Product, Weights]]) -> list[Speed]:
    """Lower quartiles; the kernels take turns, so that drift and cold caches meet them all.

    Other work on the machine only ever adds to a time, so the middle of the quicker half is nearer
    to what a kernel takes than the middle of all.
    """
    k, n = SIZES["large"]
    taken: dict[tuple[str, int], list[float]] = {}
    for n_rows, n_repeats in N_REPEATS.items():
        x = _gaussian(n_rows, k)
        for repeat in range(n_repeats + 1):
            for kernel, (product, _) in products.items():
                before = taken.setdefault((kernel, n_rows), [])
                if len(before) >= ENOUGH_REPEATS and sum(before) > ENOUGH_SECONDS:
                    continue
                begun = time.perf_counter()
                product(x)
                if repeat:  # the first one warms up
                    before.append(time.perf_counter() - begun)
    speeds = []
    for kernel, (_, weights) in products.items():
        one = _quartile(taken[kernel, 1])
        many = _quartile(taken[kernel, MANY_ROWS])
        n_bytes = sum(array.nbytes for array in weights.constants.values())
        speeds.append(
            Speed(
                kernel=kernel,
                one_row_ms=_short(one * 1e3),
                one_row_gb_s=_short(n_bytes / one / 1e9),
                many_rows_ms=_short(many * 1e3),
                many_rows_gflops=_short(2 * MANY_ROWS * k * n / many / 1e9),
            )
        )
    return speeds


def _compare(asked: Probes, kernel: str, n_rows: int, than: str, limit: float) -> list[Probe]:
    """A kernel's time as a multiple of another's; nothing where one of them was refused."""
    other = asked.dynamic() if than == DYNAMIC else than
    if not {kernel, other} <= {s.kernel for s in asked.speeds}:
        return []
    of = asked.one_row_ms if n_rows == 1 else asked.many_rows_ms
    ratio = of(kernel) / of(other)
    rows = "one row" if n_rows == 1 else f"{n_rows} rows"
    probe = Probe(
        name=f"{kernel}: time at {rows}",
        value=_short(ratio),
        unit=f"times {other}",
        verdict="ok" if ratio <= limit else "slow",
        why=f"takes {ratio:.2f} of {other}'s time at {rows}, more than {limit:g} would be slow",
    )
    return [probe]


def _quartile(seconds: Sequence[float]) -> float:
    return sorted(seconds)[len(seconds) // 4]


def _short(number: float) -> float:
    """Four digits of it: more would be noise."""
    return float(f"{number:.4g}")


def _taken(probe: Probe) -> bool:
    """Whether ONNX Runtime has the kernel."""
    return probe.value is not None


def _gaussian(n_rows: int, k: int) -> Array:
    return np.random.default_rng(k).standard_normal((n_rows, k)).astype(np.float32)


def _bytes(n_rows: int, k: int) -> Array:
    """Whole numbers 0 to 255, both in it: scale 1, zero point 0, nothing to round; many high."""
    x = np.random.default_rng(k).integers(0, 256, (n_rows, k)).astype(np.float32)
    x[:, : k // 2] = 255
    x[:, -1] = 0
    return x


def _float_weights(rng: np.random.Generator, k: int, n: int) -> Weights:
    w = rng.random((k, n), dtype=np.float32) - np.float32(0.5)
    return Weights({"w": w}, lambda some: w[:, some].astype(np.float64))


def _column_weights(signed: bool, rng: np.random.Generator, k: int, n: int) -> Weights:
    """All of int8 but -128, or all of uint8; two scales and zero points are not the same."""
    w: Array
    zero: Array
    if signed:
        w, zero = rng.integers(-127, 128, (k, n), dtype=np.int8), np.zeros(n, np.int8)
    else:
        w = rng.integers(0, 256, (k, n), dtype=np.uint8)
        zero = rng.integers(118, 139, n, dtype=np.uint8)
    scale = rng.uniform(0.9, 1.1, n).astype(np.float32)

    def columns(some: slice) -> Array:
        return (w[:, some] - zero[some].astype(np.float64)) * scale[some]

    return Weights({"w": w, "scale": scale, "zero_point": zero}, columns)


def _block_weights(
    bits: int, zero_points: bool, rng: np.random.Generator, k: int, n: int
) -> Weights:
    """Blocks of a column's 32 weights; in 4 bits two lie in a byte, the lower half first."""
    n_blocks = k // BLOCK
    shape = (n, n_blocks, BLOCK * bits // 8)
    w = rng.integers(0, 256, shape, dtype=np.uint8)
    scale = rng.uniform(0.9, 1.1, (n, n_blocks)).astype(np.float32)
    constants: dict[str, Array] = {"w": w, "scale": scale}
    if zero_points:
        constants["zero_point"] = rng.integers(0, 256, (n, n_blocks * bits // 8), dtype=np.uint8)

    def columns(some: slice) -> Array:
        values = _unpacked(w[some], bits).reshape(-1, n_blocks, BLOCK)
        zero: Array | float = 2.0 ** (bits - 1)
        if zero_points:
            zero = _unpacked(constants["zero_point"][some], bits).reshape(-1, n_blocks, 1)
        wide = (values - zero) * scale[some].reshape(-1, n_blocks, 1)
        return np.asarray(wide.reshape(-1, k).T)

    return Weights(constants, columns)


def _unpacked(packed: Array, bits: int) -> Array:
    if bits == 8:
        return packed.astype(np.float64)
    return np.stack([packed & 15, packed >> 4], axis=-1).astype(np.float64)


KERNELS: Mapping[str, Callable[[np.random.Generator, int, int], Weights]] = {
    "float32": _float_weights,
    "dynamic-signed": partial(_column_weights, True),
    "dynamic-unsigned": partial(_column_weights, False),
    "block8": partial(_block_weights, 8, False),
    "block8-float": partial(_block_weights, 8, False),
    "block4": partial(_block_weights, 4, False),
    "block4-zero-points": partial(_block_weights, 4, True),
}
"""Kernel -> its weights. `-float` multiplies in float32 (accuracy level 0), the others in int8."""

INTEGERS = ("its integer sums are exact", "its sums of two products saturate at 16 bits")
PRECISE = ("as float32 has it", "not what its weights stand for")
ROUNDED = ("within the rounding of its activations", "not what its weights stand for")
RIGHT: Mapping[str, tuple[Callable[[int, int], Array], float, tuple[str, str]]] = {
    "float32": (_gaussian, FLOAT_ERROR, PRECISE),
    "dynamic-signed": (_bytes, EXACT, INTEGERS),
    "dynamic-unsigned": (_bytes, EXACT, INTEGERS),
    "block8": (_gaussian, ROUNDED_ERROR, ROUNDED),
    "block8-float": (_gaussian, FLOAT_ERROR, PRECISE),
    "block4": (_gaussian, ROUNDED_ERROR, ROUNDED),
    "block4-zero-points": (_gaussian, ROUNDED_ERROR, ROUNDED),
}
"""Kernel -> the rows it is tried on, the error allowed, what it means when right and when not."""

FLIPPING = ("block8", "block4")

DYNAMIC = "dynamic int8"
COMPARED: Sequence[tuple[str, int, str, float]] = (
    ("dynamic-signed", 1, "dynamic-unsigned", 1.25),
    ("dynamic-signed", MANY_ROWS, "dynamic-unsigned", 1.25),
    ("block8", 1, DYNAMIC, 1.5),
    ("block8", MANY_ROWS, DYNAMIC, 3.0),
    ("block8-float", 1, DYNAMIC, 1.5),
    ("block4", 1, DYNAMIC, 1.0),
    ("block4", MANY_ROWS, DYNAMIC, 3.0),
)
"""Kernel, rows, what its time is held against, and how many times that is slow. A prompt is read
once and its tokens are written one by one, so a kernel may cost more at many rows than at one."""
