"""KL(teacher ‖ bundle) of each text of a quality reference."""

from pathlib import Path

import numpy as np

from bench.quality.statistics import KlSums
from kdexport.runtime.quality import Reference, kl_per_token, log_softmax
from kdexport.runtime.session import open_session


def bundle_kl(folder: Path, reference: Reference) -> KlSums:
    """As the bundle computes it: whole texts, its own kernels."""
    session = open_session(folder)
    nats, tokens = [], []
    for begin, end in zip(reference.offsets, reference.offsets[1:], strict=False):
        rows = (reference.target >= begin) & (reference.target < end)
        ids = reference.ids[begin:end].astype(np.int64)
        logits = session.score(ids.tolist())[reference.target[rows] - begin - 1]
        kl = kl_per_token(reference, rows, log_softmax(logits.astype(np.float64)))
        nats.append(float(kl.sum()))
        tokens.append(len(kl))
    return KlSums(np.asarray(nats), np.asarray(tokens))
