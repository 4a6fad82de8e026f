"""A budget of fidelity becomes a plan: which products deserve a better kernel, by measured harm.

Each product is quantized alone, in the cheapest kernel, and the KL that it costs is measured; what
a better kernel would leave of it follows from the product's own error. The cheapest mix that is
expected to keep to the budget is made and measured, and mended until it does.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from kdexport.bundle import Bundle
from kdexport.errors import InputError
from kdexport.export.assign import assign
from kdexport.export.calibrate import Observed, Progress, feeds, graph_session
from kdexport.export.draft import Draft, Places, graph_bytes, save_weights
from kdexport.export.kernels import FLOAT32, KERNELS
from kdexport.export.parity import mean_kl
from kdexport.export.rounding import round_matrix, rounded_rows

Array = np.ndarray[Any, Any]
WEIGHTS = "weights"
MOST_ATTEMPTS = 5
STEPS_UP: Mapping[str, str] = {
    "block4": "wide8",
    "rows8": "block8",
    "rows8u": "block8",
    "wide8": "block8",
    "column8": "block8",
    "block8": FLOAT32,
}
"""Kernel -> the next more faithful one."""


@dataclass(frozen=True)
class Entry:
    """A line of the ledger: one product. ``kl``: nats that it is expected to cost."""

    product: str
    kernel: str
    bits: int
    n_bytes: int
    kl: float


@dataclass
class Trials:
    """Graphs with some products quantized, run on texts and compared with the float32 graph."""

    bundle: Bundle
    draft: Draft
    texts: Sequence[Array]
    folder: Path
    places: Places
    exact: Sequence[Array]

    def kl(self, plan: Mapping[str, str], observed: Mapping[str, Observed] | None = None) -> float:
        """KL(float32 ‖ the plan), mean over the texts' tokens, nats."""
        tried = self.draft.copy()
        assign(tried, plan, observed)
        found = self._run(tried)
        return float(np.mean([mean_kl(p, q) for p, q in zip(self.exact, found, strict=True)]))

    def _run(self, draft: Draft) -> list[Array]:
        session = graph_session(graph_bytes(draft, self.places, WEIGHTS), self.folder)
        return [session.run(["logits"], feeds(self.bundle, session, ids))[0] for ids in self.texts]


def choose_mix(
    bundle: Bundle,
    draft: Draft,
    plan: Mapping[str, str],
    observed: Mapping[str, Observed],
    texts: Sequence[Array],
    max_kl: float,
    progress: Progress,
    compensated: bool,
) -> list[Entry]:
    """The cheapest mix found that keeps to ``max_kl`` on ``texts``, as its ledger.

    ``plan``: the cheapest kernel of each product; ``compensated``: the mix will be rounded with
    errors made up for. Raises InputError when no mix keeps to it.
    """
    with TemporaryDirectory(prefix="kdexport-") as name:
        folder = Path(name)
        places = save_weights([draft], folder / WEIGHTS)
        trials = Trials(bundle, draft, texts, folder, places, [])
        trials.exact = trials._run(draft)
        ledger = list(_measured(trials, plan, observed, progress))
        expected = np.inf  # at first nothing is bettered: what is made up for may be enough
        for _ in range(MOST_ATTEMPTS):
            ledger = within(ledger, expected, draft, observed)
            mix = {entry.product: entry.kernel for entry in ledger}
            found = trials.kl(mix, observed if compensated else None)
            if found <= max_kl:
                return ledger
            expected = 0.95 * max_kl * sum(entry.kl for entry in ledger) / max(found, 1e-30)
    raise InputError(
        f"no mix of kernels keeps to a KL of {max_kl:g} nats; the best found costs {found:.3g}",
        where="--max-kl",
        remedy="allow more",
    )


def _measured(
    trials: Trials, plan: Mapping[str, str], observed: Mapping[str, Observed], progress: Progress
) -> Iterator[Entry]:
    """What each product costs when it alone is quantized."""
    for number, (product, kernel) in enumerate(plan.items(), start=1):
        weights = trials.draft.weights[_node(trials.draft, product).input[1]]
        cost = max(trials.kl({product: kernel}), 0.0)
        yield Entry(product, kernel, KERNELS[kernel].bits, _bytes(weights, kernel), cost)
        progress(number, len(plan))


def within(
    ledger: Sequence[Entry], max_kl: float, draft: Draft, observed: Mapping[str, Observed]
) -> list[Entry]:
    """Better kernels, those that save most KL a byte first, until the costs' sum is ``max_kl``."""
    if sum(entry.kl for entry in ledger) <= max_kl:
        return list(ledger)  # without weighing steps that nobody needs, each of them two roundings
    entries = {entry.product: entry for entry in ledger}
    steps = {entry.product: _step_up(entry, draft, observed) for entry in ledger}
    while sum(entry.kl for entry in entries.values()) > max_kl:
        gains = {
            product: (entries[product].kl - step.kl)
            / max(step.n_bytes - entries[product].n_bytes, 1)
            for product, step in steps.items()
            if step is not None
        }
        if not gains:
            break
        chosen = max(gains, key=lambda product: gains[product])
        step = steps[chosen]
        assert step is not None
        entries[chosen] = step
        steps[chosen] = _step_up(step, draft, observed)
    return list(entries.values())


def _step_up(entry: Entry, draft: Draft, observed: Mapping[str, Observed]) -> Entry | None:
    """The product in the next better kernel; its cost falls as the square of its error does."""
    kernel = STEPS_UP.get(entry.kernel)
    if kernel is None:
        return None
    node = _node(draft, entry.product)
    weights = draft.weights[node.input[1]]
    if kernel == FLOAT32 or KERNELS[kernel].grid.block(len(weights)) is None:
        return replace(entry, kernel=FLOAT32, bits=32, n_bytes=_bytes(weights, FLOAT32), kl=0.0)
    samples = observed[node.input[0]].samples
    before, after = (_error(weights, samples, name) for name in (entry.kernel, kernel))
    return Entry(
        entry.product,
        kernel,
        KERNELS[kernel].bits,
        _bytes(weights, kernel),
        entry.kl * min(after / max(before, 1e-30), 1.0),
    )


def _error(weights: Array, samples: Array, kernel: str) -> float:
    """Squared error of a product on samples of its activations, both rounded as the kernel does."""
    grid = KERNELS[kernel].grid
    block = grid.block(len(weights))
    if block is None:
        raise InputError(f"{len(weights)} rows are not divided by blocks of {grid.blocks[-1]}")
    error = rounded_rows(samples, block) @ round_matrix(weights, grid).matrix() - samples @ weights
    return float(np.square(error).sum())


def _bytes(weights: Array, kernel: str) -> int:
    """Bytes of a product's weights and scales on disk."""
    if kernel == FLOAT32:
        return 4 * weights.size
    grid = KERNELS[kernel].grid
    n_scales = weights.size // (grid.block(len(weights)) or 1)
    return weights.size * KERNELS[kernel].bits // 8 + n_scales * (2 if grid.blocks else 5)


def _node(draft: Draft, product: str) -> Any:
    node = draft.writer(product)
    if node is None:
        raise KeyError(product)
    return node
