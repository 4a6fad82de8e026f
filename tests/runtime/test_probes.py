"""What the probes find, on this machine and on made-up ones, and what follows from it."""

import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from kdexport.runtime import advice, probes
from kdexport.runtime.advice import MANY_ROWS, RULES, Probe, Probes, Speed, recommend
from kdexport.runtime.probes import KERNELS, ROW_COUNTS, SIZES, Product, open_product, probe_machine

Array = np.ndarray[Any, Any]
SMALL = {"small": SIZES["small"], "large": (512, 2048)}


def emulated(change: Mapping[str, Callable[[Array, Array], Array]]) -> probes.Opener:
    """Kernels in float64 numpy, some of them with a product of their own."""

    def opened(kernel: str, size: str, constants: Mapping[str, Array], _: int) -> Product:
        k, n = probes.SIZES[size]
        weights = KERNELS[kernel](np.random.default_rng(probes.SEED), k, n)
        assert all((weights.constants[name] == array).all() for name, array in constants.items())
        w = weights.columns(slice(0, n))
        return lambda x: change.get(kernel, np.matmul)(x.astype(np.float64), w)

    return opened


def saturating(x: Array, w: Array) -> Array:
    """vpmaddubsw: the sum of two neighbouring products is cut to 16 bits, then all are added."""
    scale = np.abs(w).max(0) / 127
    pairs = x[:, 0::2, None] * (w / scale)[None, 0::2] + x[:, 1::2, None] * (w / scale)[None, 1::2]
    return np.asarray(np.clip(pairs, -32768, 32767).sum(1) * scale)


def wrong_at_one_row(x: Array, w: Array) -> Array:
    return (x @ w) * (1.46 if len(x) == 1 else 1.0)


def by_name(found: Probes) -> dict[str, Probe]:
    return {probe.name: probe for probe in found.probes}


@pytest.fixture(scope="module")
def here() -> Probes:
    return probe_machine(n_threads=1, timed=False)


def test_float32_and_unsigned_products_are_right_on_every_machine(here: Probes) -> None:
    """Tolerances are argued where they stand: EXACT, FLOAT_ERROR, ROUNDED_ERROR."""
    for kernel in ("float32", "dynamic-unsigned", "block8-float"):
        assert here.right(kernel), by_name(here)[f"{kernel}: error"].why


def test_signed_products_are_right_where_vnni_multiplies_them(here: Probes) -> None:
    from kdexport.system.machine import machine_facts

    if "vnni" in machine_facts().features:
        assert here.right("dynamic-signed")
    else:  # either kind of machine has its answer, and it is a number
        assert by_name(here)["dynamic-signed: error"].value is not None


def test_rounded_activations_cost_what_the_tolerance_supposes(here: Probes) -> None:
    """An int8 kernel errs by more than float32 does, unless the CPU has none; by 2 %, not 5 %."""
    found = by_name(here)
    for kernel in ("block8", "block4"):
        error = found[f"{kernel}: error"].value
        assert error is not None
        assert error < 0.035


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("n_rows", ROW_COUNTS)
def test_the_reference_is_the_product_of_the_unpacked_weights(kernel: str, n_rows: int) -> None:
    """Against ONNX Runtime with weights that are one weight each: unpacking is not mirrored."""
    k, n = SIZES["small"]
    weights = KERNELS[kernel](np.random.default_rng(1), k, n)
    product = open_product(kernel, "small", weights.constants, 1)
    # 255 beside a 0 in each row: dynamic int8 has scale 1 then, and blocks have 127 steps of 2.
    columns = np.arange(n_rows) * 31 + 5
    x = np.zeros((n_rows, k), dtype=np.float32)
    x[np.arange(n_rows), columns] = 255
    wanted = 255 * weights.columns(slice(0, n))[columns]
    assert np.abs(product(x) - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_a_kernel_that_saturates_is_wrong_and_not_recommended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probes, "SIZES", SMALL)
    monkeypatch.setattr(probes, "MOST_FLIPS", 0.0)  # float64 flips nothing
    good = probe_machine(n_threads=1, opener=emulated({}))
    assert all(probe.verdict != "wrong" for probe in good.probes)
    # The large product of a saturating kernel is only timed; np.matmul will do for that.
    broken = emulated({"dynamic-signed": lambda x, w: saturating(x, w) if len(x) < 32 else x @ w})
    bad = probe_machine(n_threads=1, opener=broken)
    assert by_name(bad)["dynamic-signed: error"].verdict == "wrong"
    assert "saturate" in by_name(bad)["dynamic-signed: error"].why
    assert not bad.right("dynamic-signed")
    assert bad.dynamic() == "dynamic-unsigned"
    assert all(row.scheme != "int8" for row in bad.recommended)


def test_four_bits_that_are_wrong_at_one_row_only_are_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probes, "SIZES", SMALL)
    broken = emulated({"block4": wrong_at_one_row, "block4-zero-points": wrong_at_one_row})
    bad = probe_machine(n_threads=1, opener=broken)
    assert {p.name for p in bad.probes if p.verdict == "wrong"} == {
        "block4: error",
        "block4-zero-points: error",
    }
    assert [row.need for row in bad.recommended] == ["most uses", "fidelity"]


def test_a_head_that_flips_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise of a tenth of the logits' deviation turns about one row of four."""
    monkeypatch.setattr(probes, "SIZES", SMALL)
    rng = np.random.default_rng(0)

    def noisy(x: Array, w: Array) -> Array:
        y = x @ w
        if len(x) in ROW_COUNTS:
            return y
        return np.asarray(y + rng.normal(0, 0.1 * y.std(), y.shape))

    bad = by_name(probe_machine(n_threads=1, opener=emulated({"block8": noisy})))
    assert bad["block8: error"].verdict == "ok"
    assert bad["block8: flips"].verdict == "wrong"
    assert 0.1 < (bad["block8: flips"].value or 0) < 0.4
    assert bad["block4: flips"].value == 0


def test_a_kernel_that_the_library_lacks_is_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "SIZES", SMALL)
    right = emulated({})

    def opened(kernel: str, *rest: Any) -> Product:
        if kernel == "block8":
            raise RuntimeError("no such\nkernel")
        return right(kernel, *rest)

    found = probe_machine(n_threads=1, opener=opened)
    (refused,) = [p for p in found.probes if p.name.startswith("block8: ")]
    assert (refused.value, refused.verdict) == (None, "wrong")
    assert "(no such kernel)" in refused.why
    assert "block8" not in {speed.kernel for speed in found.speeds}
    assert "int8-block" not in {row.scheme for row in found.recommended}
    assert "inf" not in " ".join(row.why for row in found.recommended)


@pytest.mark.parametrize("n_rows", ROW_COUNTS)
def test_nothing_that_is_not_a_number_passes(n_rows: int) -> None:
    """A nan at any number of rows: Python's max would pass over it."""
    broken = emulated({"block8": lambda x, w: (x @ w) * (np.nan if len(x) == n_rows else 1)})
    found = probes.probe_kernel("block8", opener=broken)
    assert found.verdict == "wrong"
    assert Probe.model_validate_json(found.model_dump_json()) == found


def made_up(
    ms: Mapping[str, tuple[float, float]], wrong: tuple[str, ...] = (), gb_s: float = 20
) -> Probes:
    """A machine on which kernels take some ms at one row and at many; the rest is right."""
    names = [k for k in KERNELS if k != "block8-float"]
    speeds = [
        Speed(
            kernel=kernel,
            one_row_ms=ms.get(kernel, (1.0, 50.0))[0],
            one_row_gb_s=gb_s,
            many_rows_ms=ms.get(kernel, (1.0, 50.0))[1],
            many_rows_gflops=1,
        )
        for kernel in names
    ]
    rows = [
        Probe(
            name=f"{kernel}: error",
            value=0,
            unit="share",
            verdict="wrong" if kernel in wrong else "ok",
            why="",
        )
        for kernel in names
    ]
    found = Probes(n_threads=2, seconds=0, probes=rows, speeds=speeds)
    rows = rows + [probe for row in probes.COMPARED for probe in probes._compare(found, *row)]
    return found.model_copy(update={"probes": rows})


FAST_SIGNED = {"float32": (4, 80), "dynamic-unsigned": (1.1, 60), "dynamic-signed": (1, 25)}
AVX2 = {"float32": (4, 80), "block8": (1.7, 150), "block4": (0.8, 150)}
SIGNED, UNSIGNED = "dynamic-signed", "dynamic-unsigned"


@pytest.mark.parametrize(
    ("ms", "wrong", "gb_s", "schemes"),
    [
        # signed exact and fastest: int8, though blocks are a little faster at one row
        (FAST_SIGNED | {"block8": (0.9, 60)}, (), 20, ("int8", "int8-block", "int4")),
        # blocks as fast as it everywhere: the more faithful one
        (FAST_SIGNED | {"block8": (1, 28)}, (), 20, ("int8-block", "int8-block", "int4")),
        # blocks much faster at one row, not too slow at many
        (FAST_SIGNED | {"block8": (0.5, 60)}, (), 20, ("int8-block", "int8-block", "int4")),
        # blocks much faster at one row, but slow at many
        (FAST_SIGNED | {"block8": (0.5, 90)}, (), 20, ("int8", "int8-block", "int4")),
        # blocks wrong
        (FAST_SIGNED, ("block8",), 20, ("int8", "fp32", "int4")),
        # signed saturates, blocks slow; then blocks not slow; then blocks wrong
        (AVX2, (SIGNED,), 20, ("int8-portable", "int8-block", "int4")),
        (AVX2 | {"block8": (1.2, 90)}, (SIGNED,), 20, ("int8-block", "int8-block", "int4")),
        (AVX2, (SIGNED, "block8"), 20, ("int8-portable", "fp32", "int4")),
        # memory is what is waited for: 4 bits, unless they are wrong or do not help
        (FAST_SIGNED | {"block4": (0.6, 60)}, (), 6, ("int4", "int8-block", "int4")),
        (FAST_SIGNED | {"block4": (0.6, 60), "block8": (2, 60)}, (), 20,
         ("int8", "int8-block", "int4")),
        (FAST_SIGNED | {"block4": (0.6, 60), "block8": (2, 60)}, ("block4",), 6,
         ("int8", "int8-block")),
        (FAST_SIGNED | {"block4": (0.9, 60), "block8": (2, 60)}, (), 6,
         ("int8", "int8-block", "int4")),
        # nothing is right
        ({}, (SIGNED, UNSIGNED, "block8", "block4"), 20, ("fp32", "fp32")),
    ],
)  # fmt: skip
def test_what_is_recommended(
    ms: Mapping[str, tuple[float, float]],
    wrong: tuple[str, ...],
    gb_s: float,
    schemes: tuple[str, ...],
) -> None:
    found = recommend(made_up(ms, wrong, gb_s))
    assert tuple(row.scheme for row in found) == schemes
    assert all(row.why and "\n" not in row.why for row in found)


def test_every_rule_is_somebodys_advice() -> None:
    """No row stands in another's shadow: `most uses` in the table above meets each of its rows."""
    cases = test_what_is_recommended.pytestmark[0].args[1]  # type: ignore[attr-defined]
    machines = [made_up(ms, wrong, gb_s) for ms, wrong, gb_s, _ in cases]
    met = set()
    for machine in machines:
        for need in {rule.need for rule in RULES}:
            met.update([i for i, r in enumerate(RULES) if r.need == need and r.holds(machine)][:1])
    assert met == set(range(len(RULES)))


def test_unknown_and_untimed_kernels() -> None:
    found = made_up({})
    assert not found.right("block2")
    assert not found.slow("block2")
    assert found.one_row_ms("block2") == found.many_rows_ms("block2") == float("inf")
    assert recommend(found.model_copy(update={"speeds": []})) == []


def test_the_speeds_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """GB/s and GFLOPS are those of the stated milliseconds; four digits are kept of each."""
    monkeypatch.setattr(probes, "SIZES", SMALL)
    found = probe_machine(n_threads=1, opener=emulated({}))
    k, n = SMALL["large"]
    n_bytes = {"float32": 4 * k * n, "dynamic-signed": k * n + 5 * n, "block4": k * n * 5 // 8}
    for speed in found.speeds:
        assert speed.many_rows_gflops * speed.many_rows_ms * 1e6 == pytest.approx(
            2 * MANY_ROWS * k * n, rel=2e-3
        )
        if speed.kernel in n_bytes:
            assert speed.one_row_gb_s * speed.one_row_ms * 1e6 == pytest.approx(
                n_bytes[speed.kernel], rel=2e-3
            )
    assert {speed.kernel for speed in found.speeds} == set(KERNELS)


def test_the_advice_is_json_and_comes_back() -> None:
    found = made_up(FAST_SIGNED)
    found = found.model_copy(update={"recommended": recommend(found)})
    assert Probes.model_validate_json(found.model_dump_json()) == found
    assert advice.Probes is probes.Probes


def test_the_doctor_asks_nothing_of_what_a_laptop_lacks() -> None:
    """The real probes, timed too, where importing torch or onnx would fail."""
    absent = ("torch", "transformers", "optimum", "onnx", "onnx_ir", "mobius", "safetensors")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent}))\n"
        "from kdexport.runtime.probes import probe_machine\n"
        "print(probe_machine(n_threads=1).model_dump_json())"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found = Probes.model_validate_json(ran.stdout)
    assert {speed.kernel for speed in found.speeds} == set(KERNELS)
    assert {row.need for row in found.recommended} >= {"most uses", "fidelity"}
    assert found.right("dynamic-unsigned")
    for row in found.recommended:
        kernels = {"int8-portable": UNSIGNED, "int8-block": "block8", "int4": "block4"}
        assert found.right(kernels.get(row.scheme, UNSIGNED))
