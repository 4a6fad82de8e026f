"""A float32 bundle becomes a quantized one: which kernel each product gets, by scheme.

Weights are quantized here, once; activations by ONNX Runtime, as they come. The head, which reads
one token at a time, is always in blocks, and shares them with the embedding.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kdexport.bundle import (
    Bundle,
    Graphs,
    Manifest,
    Parent,
    check_files,
    commit_bundle,
    copy_companions,
    staged_bundle,
)
from kdexport.console import tracked
from kdexport.errors import InputError
from kdexport.export.assign import HEAD, assign
from kdexport.export.calibrate import Observed, calibration_texts, observe
from kdexport.export.draft import load_draft, save_drafts
from kdexport.export.kernels import KERNELS
from kdexport.export.parity import check_quantized
from kdexport.export.smooth import smooth
from kdexport.export.standard import STANDARD, standard_graph
from kdexport.machine import machine_facts
from kdexport.runtime.text import load_text


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
    """Blocks are the faster where VNNI multiplies them; without it they read prompts slowly."""
    return "wide8" if "vnni" in machine_facts().features else "rows8u"


SCHEMES: Mapping[str, Scheme] = {
    "int8": Scheme("dynamic int8, weights for this CPU", _eight_bits_of_choice),
    "int8-portable": Scheme("dynamic int8, weights that are right on every CPU", lambda: "rows8u"),
    "int8-block": Scheme("8 bits in blocks: the most faithful", lambda: "block8", "block8", True),
    "int4": Scheme(
        "4 bits in blocks, 8 in the head: the smallest", lambda: "block4", compensated=True
    ),
}


def quantize_bundle(
    bundle: Bundle,
    scheme: str,
    out: Path,
    *,
    calibrate: Path | None = None,
    max_kl: float | None = None,
) -> Bundle:
    """Write a quantized bundle made from a float32 one.

    ``calibrate``: texts of the kind that the model will write (`calibration_texts`); rounding
    errors are then made up for on them. ``max_kl``: nats; products that cost too much get a better
    kernel until the whole keeps to it on those texts. Raises InputError for an unknown scheme and
    for a bundle that is quantized already or damaged, ParityError when the result has lost the
    model.
    """
    source = _check(bundle, scheme)
    chosen = SCHEMES[scheme]
    graph = source.graphs.decode
    graphs = Graphs(prefill=graph, decode=graph, standard=STANDARD)
    with staged_bundle(out, bundle.n_bytes // 2) as staging:  # a quarter, and what is beside it
        check_files(bundle, set(source.files))
        draft = load_draft(bundle.file(graph))
        texts = calibration_texts(bundle, load_text(bundle), calibrate)
        with tracked("    observing", "texts") as progress:
            observed: Mapping[str, Observed] = observe(bundle, draft, texts, progress)
        body = chosen.body()
        if not KERNELS[body].grid.blocks:
            observed = smooth(draft, observed, KERNELS[body].grid)
        plan = {node.output[0]: body for node in draft.products()} | {HEAD: chosen.head}
        assign(draft, plan, observed if chosen.compensated or calibrate else None)
        drafts = {graph: draft, STANDARD: standard_graph(draft)}
        save_drafts(drafts, staging, source.weights)
        copy_companions(bundle, staging)
        parity = check_quantized(bundle, staging, graphs)
        manifest = source.model_copy(
            update={
                "scheme": scheme,
                "graphs": graphs,
                "requires_cpu": [],
                "parity": parity,
                "parent": Parent(name=source.name, manifest_sha256=bundle.manifest_sha256),
            }
        )
        return commit_bundle(staging, out, manifest)


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
