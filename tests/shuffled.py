"""A bundle that vouches for every byte and is wrong in one tensor, and what a gate knows it by."""

from pathlib import Path

import numpy as np

from kdexport.bundle import WEIGHTS, Bundle, commit_bundle, copy_companions, staged_bundle
from kdexport.export.draft import load_draft, save_drafts
from kdexport.export.standard import STANDARD, standard_graph
from kdexport.runtime.quality import log_softmax
from kdexport.runtime.session import open_session


def shuffled(bundle: Bundle, tensor: str, out: Path) -> Bundle | None:
    """The bundle with the values of one tensor in another order; None where they are all alike."""
    draft = load_draft(bundle.file(bundle.manifest.graphs.decode))
    before = draft.weights[tensor]
    after = before.copy()
    np.random.default_rng(0).shuffle(after.reshape(-1))
    if np.array_equal(before, after):
        return None
    draft.weights[tensor] = after
    graph = bundle.manifest.graphs.decode
    graphs = bundle.manifest.graphs.model_copy(update={"prefill": graph})
    manifest = bundle.manifest.model_copy(update={"graphs": graphs, "prefill_kv_cache": None})
    with staged_bundle(out) as staging:
        save_drafts({graph: draft, STANDARD: standard_graph(draft)}, staging, WEIGHTS)
        copy_companions(bundle, staging)
        return commit_bundle(staging, out, manifest)


def own_reference(bundle: Bundle, path: Path) -> Path:
    """A quality reference whose teacher is the bundle itself: it has a KL of 0."""
    ids = [5, 9, 12, 40, 3, 7]
    logprobs = log_softmax(open_session(bundle, n_threads=1).score(ids).astype(np.float64))
    n_targets, size = len(ids) - 1, logprobs.shape[-1]
    np.savez(
        path,
        ids=np.asarray(ids, dtype=np.int32),
        offsets=np.asarray([0, len(ids)]),
        target=np.arange(1, len(ids)),
        topk_ids=np.tile(np.arange(size, dtype=np.int32), (n_targets, 1)),
        topk_logprobs=logprobs[:-1].astype(np.float32),
        tail_logprob=np.full(n_targets, -99.0, dtype=np.float32),
        drawn_ids=np.zeros((n_targets, 0), dtype=np.int32),
        drawn_logprobs=np.zeros((n_targets, 0), dtype=np.float32),
        kept_ids=np.arange(size, dtype=np.int32),
        kept_mass=np.ones(n_targets, dtype=np.float32),
        meta=np.frombuffer(b"{}", dtype=np.uint8),
    )
    return path
