"""A float32 bundle becomes a quantized one: which kernel each product gets, by scheme.

Weights are quantized here, once; activations by ONNX Runtime, as they come. The head, which reads
one token at a time, is always in blocks, and shares them with the embedding.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from kdexport.bundle import (
    LEDGER,
    Bundle,
    Graphs,
    KVType,
    Manifest,
    Parent,
    check_files,
    commit_bundle,
    copy_companions,
    staged_bundle,
)
from kdexport.errors import InputError
from kdexport.export.assign import HEAD, assign, check_plan, is_rounded
from kdexport.export.cache_in_8_bits import (
    cache_in_8_bits,
    cache_scales,
    check_attention,
    has_attention,
)
from kdexport.export.calibrate import Observed, calibration_texts, observe, written_texts
from kdexport.export.cpu import cpu_facts
from kdexport.export.draft import Array, Draft, load_draft, save_drafts
from kdexport.export.gate import Gate
from kdexport.export.kernels import KERNELS
from kdexport.export.many_tokens import MANY_TOKENS, many_tokens_graph
from kdexport.export.mix import Entry, choose_mix
from kdexport.export.parity import check_quantized
from kdexport.export.smooth import smooth
from kdexport.export.standard import STANDARD, standard_graph
from kdexport.runtime.attention_probe import probe_attention
from kdexport.runtime.session import session_of
from kdexport.runtime.text import load_text
from kdexport.system.console import tracked
from kdexport.system.machine import cpu_features

BY_COLUMN = "column8"  # which `many_tokens_graph` goes by
N_JUDGING = 2  # texts kept back, on which a mix is judged


@dataclass(frozen=True)
class Scheme:
    """How a bundle is quantized: the kernel of the vocabulary head, and of every other product.

    ``compensated``: rounding errors are made up for (GPTQ) also without texts of the user's.
    """

    describe: str
    body: Callable[[], str]
    head: str = "wide8"
    compensated: bool = False


def _eight_bits_of_choice() -> str:
    """Blocks are the faster where VNNI multiplies them; without it they read prompts slowly.

    With AMX whole columns are faster still for many tokens at once: weights that serve both.
    """
    features = cpu_features()
    if "amx" in features:
        return BY_COLUMN
    return "wide8" if "vnni" in features else "rows8u"


SCHEMES: Mapping[str, Scheme] = {
    "int8": Scheme("dynamic int8, weights for this CPU", _eight_bits_of_choice),
    "int8-portable": Scheme("dynamic int8, weights that are right on every CPU", lambda: "rows8u"),
    "int8-block": Scheme("8 bits in blocks: the most faithful", lambda: "block8", "block8", True),
    "int4": Scheme(
        "4 bits in blocks, 8 in the head: the smallest", lambda: "block4", compensated=True
    ),
}


@dataclass(frozen=True)
class Wishes:
    """What a caller may ask for beside a scheme.

    ``calibrate``: texts of the kind that the model will write (`calibration_texts`); rounding
    errors are then made up for on them. ``max_kl``: nats a token; products that cost too much get a
    better kernel until the whole keeps to it; ``kv_cache``: in what the bundle keeps keys and
    values, which that does not count (None: in float32, but in 8 bits in the graph for many
    tokens, whose batches gain most by it). ``gate``: what the bundle must not fail.
    """

    calibrate: Path | None = None
    max_kl: float | None = None
    gate: Gate | None = None
    kv_cache: KVType | None = None


def quantize_bundle(
    bundle: Bundle,
    scheme: str,
    out: Path,
    wishes: Wishes = Wishes(),
) -> Bundle:
    """Write a quantized bundle made from a float32 one.

    Raises InputError for an unknown scheme, for a bundle that is quantized already or damaged and
    for a wish that cannot be met, ParityError when the result has lost the model, ThresholdError
    for what ``wishes.gate`` refuses; then nothing is written.
    """
    source = _check(bundle, scheme)
    graph = source.graphs.decode
    with staged_bundle(out, bundle.n_bytes // 2) as staging:  # a quarter, and what is beside it
        check_files(bundle, set(source.files))
        draft = load_draft(bundle.file(graph))
        ledger, kv_scales = _quantize(bundle, draft, SCHEMES[scheme], wishes)
        # The cache stays in float32 where other tools give it.
        drafts = {graph: draft, STANDARD: standard_graph(draft)}
        by_column = SCHEMES[scheme].body() == BY_COLUMN
        many_tokens = many_tokens_graph(draft) if by_column else None
        prefill, prefill_kv_cache = graph, None
        if many_tokens is not None:
            prefill, drafts[MANY_TOKENS] = MANY_TOKENS, many_tokens
            if kv_scales:
                prefill_kv_cache = "int8"
                cache_in_8_bits(many_tokens, kv_scales)
        if wishes.kv_cache == "int8":
            cache_in_8_bits(draft, kv_scales)
        graphs = Graphs(prefill=prefill, decode=graph, standard=STANDARD)
        save_drafts(drafts, staging, source.weights)
        copy_companions(bundle, staging)
        if ledger:
            rows = [asdict(entry) for entry in ledger]
            (staging / LEDGER).write_text(json.dumps(rows, indent=1), "utf-8")
        manifest = source.model_copy(
            update={
                "name": f"{source.name}-{scheme}",
                "scheme": scheme,
                "graphs": graphs,
                "requires_cpu": [],
                "cpu": cpu_facts(draft),
                "kv_cache": wishes.kv_cache or "float32",
                "prefill_kv_cache": prefill_kv_cache,
                "parent": Parent(name=source.name, manifest_sha256=bundle.manifest_sha256),
            }
        )
        parity = check_quantized(bundle, staging, manifest)
        manifest = manifest.model_copy(update={"parity": parity})
        if wishes.gate is not None:
            for name in {graphs.decode: None, graphs.prefill: None}:
                wishes.gate.check(staging, partial(session_of, manifest, staging, name))
        return commit_bundle(staging, out, manifest)


def _quantize(
    bundle: Bundle, draft: Draft, scheme: Scheme, wishes: Wishes
) -> tuple[Sequence[Entry], Mapping[str, Array]]:
    """Change the draft by a scheme; the ledger of a mix and the cache's scales, if wanted."""
    body = scheme.body()
    plan = {node.output[0]: body for node in draft.products()} | {HEAD: scheme.head}
    check_plan(draft, plan)
    if wishes.kv_cache == "int8":
        check_attention(draft)
    texts = _texts(bundle, scheme, wishes)
    n_judging = min(N_JUDGING, len(texts) // 2) if wishes.max_kl is not None else 0
    held_out = texts[len(texts) - n_judging :]
    with tracked("    observing", "texts") as progress:
        seen = texts[: len(texts) - len(held_out)]
        observed: Mapping[str, Observed] = observe(bundle, draft, seen, progress)
    in_8_bits = wishes.kv_cache == "int8"
    if wishes.kv_cache is None:
        in_8_bits = body == BY_COLUMN and has_attention(draft)
        in_8_bits = in_8_bits and probe_attention().verdict == "ok"
    kv_scales = cache_scales(bundle, draft, seen) if in_8_bits else {}
    # What was trained with rounded weights computes as it was trained to only on its grid.
    if not is_rounded(draft, plan):
        observed = smooth(draft, observed, KERNELS[body].grid)
    compensated = scheme.compensated or wishes.calibrate is not None
    ledger: Sequence[Entry] = ()
    if wishes.max_kl is not None:
        with tracked("    measuring", "products") as progress:
            ledger = choose_mix(
                bundle, draft, plan, observed, held_out, wishes.max_kl, progress, compensated
            )
        plan = {entry.product: entry.kernel for entry in ledger}
    assign(draft, plan, observed if compensated else None)
    return ledger, kv_scales


def _texts(bundle: Bundle, scheme: Scheme, wishes: Wishes) -> list[Array]:
    """Texts to observe the model on: the user's, or built-in and, where many matter, its own."""
    codec = load_text(bundle)
    texts = calibration_texts(bundle, codec, wishes.calibrate)
    if wishes.calibrate is None and (scheme.compensated or wishes.max_kl is not None):
        with tracked("    writing texts to calibrate on", "texts") as progress:
            texts += written_texts(bundle, codec, progress)
    return texts


def _check(bundle: Bundle, scheme: str) -> Manifest:
    """The manifest of a bundle that can be quantized by a scheme that there is."""
    if scheme not in SCHEMES:
        raise InputError(f"unknown scheme {scheme!r}", remedy="use " + ", ".join(SCHEMES))
    source = bundle.manifest
    if source.scheme != "fp32":
        raise InputError(f"is quantized already ({source.scheme})", where=str(bundle.path))
    if source.graphs.standard is None:
        raise InputError(
            f"is of format version {source.format_version}, which is not quantized any more",
            where=str(bundle.path),
            remedy="export the model again",
        )
    return source
