"""Whether a bundle's kernels suit this CPU: right, and as quick as where they were chosen.

Knows names of kernels and classes of CPUs; no weights and no graph.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from kdexport.bundle import Bundle, Manifest
from kdexport.errors import InputError
from kdexport.system.machine import cpu_features

MANY_TEXTS = 4  # in one batch: from here on `suits_many_tokens` is worth asking
AGAIN = "export it again here with --scheme int8"


def cpu_class(features: Sequence[str]) -> str:
    """The first of CLASSES among a machine's features; "unknown" where none is told."""
    return next((name for name in CLASSES if name in features), "unknown")


def suit_cpu(
    bundle: Bundle, warn: Callable[[str], None], features: Sequence[str] | None = None
) -> Mapping[str, str]:
    """ONNX Runtime's switches with which a bundle is right on a CPU (default: this one).

    ``warn`` is told, in a line, of products that are slow here and were not where they were chosen.
    Raises InputError for a bundle whose results would be wrong.
    """
    manifest = bundle.manifest
    if features is None:
        features = cpu_features()
    missing = sorted(set(manifest.requires_cpu) - set(features))
    if missing:
        raise InputError(
            f"was made for a CPU with {', '.join(missing)}, which this one lacks",
            where=str(bundle.path),
            remedy="export it again with --scheme int8, whose weights are right on every CPU",
        )
    here = cpu_class(features)
    if manifest.kv_cache == "int8":
        _check_attention(bundle)
    if manifest.cpu is None:
        return {}
    slow = [SLOW[kernel, here] for kernel in manifest.cpu.kernels if (kernel, here) in SLOW]
    if slow and manifest.cpu.made_on != here:
        made_on = manifest.cpu.made_on
        warn(f"{bundle.path}: was made on a CPU with {made_on}; with {here} {slow[0]}: {AGAIN}")
    if SIGNED not in manifest.cpu.kernels or here not in SATURATING:
        return {}
    if not _unsigned_is_right():
        raise InputError(
            f"was made on a CPU with {manifest.cpu.made_on}; its signed products are wrong here",
            where=str(bundle.path),
            remedy=AGAIN,
        )
    return AS_UNSIGNED


def suits_many_tokens(manifest: Manifest, features: Sequence[str] | None = None) -> bool:
    """Whether a CPU (default: this one) is quicker with `Graphs.prefill` at many tokens at once.

    Where there is no AMX that graph's products are no quicker, and without VNNI they are wrong; its
    attention may be one that this ONNX Runtime has not.
    """
    from kdexport.runtime.attention_probe import probe_attention

    if "amx" not in (cpu_features() if features is None else features):
        return False
    return manifest.prefill_kv_cache != "int8" or probe_attention().verdict == "ok"


def _check_attention(bundle: Bundle) -> None:
    """Refuse a bundle whose attention over 8 bits is not had, or wrong, here."""
    import onnxruntime

    from kdexport.runtime.attention_probe import probe_attention

    probe = probe_attention()
    if probe.verdict != "ok":
        state = "lacks" if probe.value is None else "computes wrongly here"
        raise InputError(
            f"keeps keys and values in int8; onnxruntime {onnxruntime.__version__} {state} "
            "attention over these",
            where=str(bundle.path),
            remedy="upgrade onnxruntime, or export it again with --kv-cache float32",
        )


def _unsigned_is_right() -> bool:
    """Whether signed weights that ONNX Runtime makes unsigned as it opens them multiply exactly."""
    from kdexport.runtime.probes import open_product, probe_kernel

    opener = partial(open_product, switches=AS_UNSIGNED)
    return probe_kernel("dynamic-signed", opener=opener).verdict == "ok"


CLASSES = ("vnni", "avx512", "avx2", "i8mm", "dotprod", "neon")
"""Features of `system.machine`, those that matter most to products of integers first."""

SIGNED = "rows8"
SATURATING = frozenset({"avx512", "avx2", "unknown"})
"""Where sums of two products of an unsigned and a signed byte are, or may be, cut to 16 bits."""

AS_UNSIGNED: Mapping[str, str] = {"session.x64quantprecision": "1"}

_PROMPTS = "it reads prompts more slowly than dynamic int8 would"
SLOW: Mapping[tuple[str, str], str] = {
    ("block8", "avx2"): _PROMPTS,
    ("block4", "avx2"): _PROMPTS,
}
"""Kernel and class of CPU -> what is slow there. What was chosen on such a CPU is not told."""
