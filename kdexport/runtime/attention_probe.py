"""Micro-probe: whether attention over keys and values in 8 bits is right on this CPU.

Holds ONNX Runtime's GroupQueryAttention against the same in float64. Knows no model and no bundle.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdexport.runtime.advice import Probe
from kdexport.system.machine import physical_cores

Array = np.ndarray[Any, Any]
GRAPH = Path(__file__).parent / "probe_graphs" / "attention8.onnx"
N_HEADS, N_KV_HEADS, HEAD_DIM = 4, 2, 64  # as in the graph
WIDTHS = [n * HEAD_DIM for n in (N_HEADS, N_KV_HEADS, N_KV_HEADS)]  # of queries, keys and values
N_PAST = 40
SEED = 7
CASES: Sequence[tuple[Sequence[int], int]] = (([0], 16), ([N_PAST], 1), ([33], 7), ([5, N_PAST], 1))
"""Tokens before, a row each, and new ones: a prompt, a token, more of a text, tokens of two."""
ALLOWED = 1e-4
"""Float32 sums of a hundred products; whatever is rounded to 8 bits is rounded here, too."""


def probe_attention(*, n_threads: int | None = None) -> Probe:
    """Whether GroupQueryAttention over int8 keys and values computes right: milliseconds.

    ``value``: the largest error over CASES, as a share of the results' deviation; None where ONNX
    Runtime has no such attention.
    """
    name, unit = "attention8: error", "share"
    try:
        error = max(_errors(n_threads or physical_cores()))
    except Exception as refused:  # onnxruntime's exceptions share no base class of their own
        why = f"ONNX Runtime has none ({' '.join(str(refused).split())[:120]})"
        return Probe(name=name, value=None, unit=unit, verdict="wrong", why=why)
    right = error <= ALLOWED
    what = "as float64 has it" if right else "not what its keys and values stand for"
    why = f"{what}: {error:.2g} off, {ALLOWED:g} allowed"
    return Probe(name=name, value=error, unit=unit, verdict="ok" if right else "wrong", why=why)


def _errors(n_threads: int) -> list[float]:
    """Of each of CASES."""
    rng = np.random.default_rng(SEED)
    scales = rng.uniform(0.01, 0.03, (2, N_KV_HEADS, HEAD_DIM)).astype(np.float32)
    session = _opened(scales, n_threads)
    errors = []
    for before, n_new in CASES:
        shape = (2, len(before), N_KV_HEADS, max(before) + n_new, HEAD_DIM)
        past = rng.integers(-127, 128, shape, dtype=np.int8)
        new = rng.standard_normal((len(before), n_new, sum(WIDTHS))).astype(np.float32)
        rows = [_attended(new[row], past[:, row, :, :n], scales) for row, n in enumerate(before)]
        wanted = np.stack(rows)
        found = _found(session, new, past.copy(), before)
        error = float(np.abs(found - wanted).max() / np.sqrt(np.square(wanted).mean()))
        errors.append(error if np.isfinite(error) else float(np.finfo(np.float64).max))
    return errors


def _opened(scales: Array, n_threads: int) -> Any:
    """The graph with its scales in it, in a session set up as a bundle's is."""
    import onnxruntime

    from kdexport.runtime.session import session_options

    options = session_options(n_threads, {})
    options.log_severity_level = 4
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(scale.ravel()) for scale in scales]
    options.add_external_initializers(["key_scale", "value_scale"], values)
    return onnxruntime.InferenceSession(str(GRAPH), options, providers=["CPUExecutionProvider"])


def _found(session: Any, new: Array, past: Array, before: Sequence[int]) -> Array:
    """What ONNX Runtime makes of x [B, S, ...] after a past that is bound as present, too."""
    from onnxruntime import OrtValue

    n_rows, n_new, _ = new.shape
    inputs = {
        "x": new,
        "key": past[0],
        "value": past[1],
        "last": np.asarray(before, dtype=np.int32) + np.int32(n_new - 1),
        "total": np.asarray(past.shape[3], dtype=np.int32),
    }
    found = np.zeros((n_rows, n_new, WIDTHS[0]), dtype=np.float32)
    values = {name: OrtValue.ortvalue_from_numpy(array) for name, array in inputs.items()}
    made = {"y": OrtValue.ortvalue_from_numpy(found)}
    made |= {f"new_{part}": values[part] for part in ("key", "value")}
    binding = session.io_binding()
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    for name, value in made.items():
        binding.bind_ortvalue_output(name, value)
    session.run_with_iobinding(binding)
    return found


def _attended(new: Array, past: Array, scales: Array) -> Array:
    """What the tokens of one text find, float64 [S, heads · size], from x [S, …] and int8 past."""
    wide = new.astype(np.float64)
    n_new, n_before = len(new), past.shape[2]
    queries, *made = np.split(wide, np.cumsum(WIDTHS)[:-1], axis=1)
    rows = [part.reshape(n_new, N_KV_HEADS, HEAD_DIM).swapaxes(0, 1) for part in made]
    steps = scales[:, :, None].astype(np.float64)
    rounded = np.clip(np.rint(np.stack(rows) / steps), -128, 127)
    keys, values = np.concatenate([past, rounded], axis=2) * steps
    seen = np.arange(n_before + n_new) <= n_before + np.arange(n_new)[:, None]
    found = []
    for head, query in enumerate(np.split(queries, N_HEADS, axis=1)):
        of = head * N_KV_HEADS // N_HEADS
        scores = np.where(seen, query @ keys[of].T / np.sqrt(HEAD_DIM), -np.inf)
        shares = np.exp(scores - scores.max(1, keepdims=True))
        found.append(shares / shares.sum(1, keepdims=True) @ values[of])
    return np.concatenate(found, axis=1)
