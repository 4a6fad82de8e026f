"""One bundle opened for running: graphs, and a key-value cache that is written in place.

Knows the manifest and the graph contract (docs/architecture.md); no model family, no text.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdexport.bundle import (
    Bundle,
    Graphs,
    Manifest,
    ModelFacts,
    check_files,
    open_bundle,
    weights_location,
)
from kdexport.errors import InputError, first_words
from kdexport.machine import physical_cores
from kdexport.runtime.external_data import external_locations
from kdexport.runtime.kv_cache import KVCache

SPIN_MICROSECONDS = 1000
Array = np.ndarray[Any, Any]


class Session:
    """A bundle ready to run. Make one with `open_session`."""

    def __init__(self, manifest: Manifest, opened: dict[str, Any], graphs: Graphs) -> None:
        self.manifest = manifest
        self.vocab_size = manifest.model.vocab_size
        self._prefill = _Graph(opened[graphs.prefill], manifest)
        same = graphs.prefill == graphs.decode
        self._decode = self._prefill if same else _Graph(opened[graphs.decode], manifest)

    def new_cache(self, batch_size: int = 1, capacity: int = 256) -> KVCache:
        """An empty cache for ``batch_size`` texts."""
        return KVCache(self.manifest, batch_size, capacity)

    def run(
        self,
        ids: Array,
        cache: KVCache,
        *,
        lengths: Array | None = None,
        logit_rows: Array | None = None,
    ) -> Array:
        """Read new tokens and return logits, float32 [K, vocab_size].

        ``ids``: int64 [B, S], right-padded; ``lengths``: int [B], how many of a row's tokens are
        real (all, when None). ``logit_rows``: int64 [K], flat positions in [B * S] whose logits
        are wanted (each row's last real one, when None). The logits are valid until the next call.
        Raises InputError when a text would grow beyond the model's length, and for ids beyond its
        vocabulary.
        """
        check_ids(ids, self.vocab_size)
        n_rows, n_new = ids.shape
        new = np.full(n_rows, n_new, dtype=np.int32) if lengths is None else lengths
        total = cache.lengths + new.astype(np.int32)
        longest = int(total.max())
        if longest > self.manifest.model.max_length:
            raise InputError(
                f"{longest} tokens are beyond the model's {self.manifest.model.max_length}",
                remedy="shorten the prompt or ask for fewer new tokens",
            )
        cache.reserve(max(longest, int(cache.lengths.max()) + n_new if n_rows > 1 else longest))
        if logit_rows is None:
            logit_rows = np.arange(n_rows, dtype=np.int64) * n_new + new - 1
        graph = self._decode if n_rows * n_new == 1 else self._prefill
        logits = graph.run(ids, cache, total, logit_rows)
        cache.lengths = total
        return logits

    def score(self, ids: Sequence[int]) -> Array:
        """Logits after every token of one text, float32 [S, vocab_size]."""
        tokens = np.asarray(ids, dtype=np.int64)[None]
        cache = self.new_cache(1, len(ids))
        return self.run(tokens, cache, logit_rows=np.arange(len(ids), dtype=np.int64))


def check_ids(ids: Array, vocab_size: int) -> None:
    """Refuse tokens that a model does not know."""
    if ids.size == 1:  # the common case, in which numpy's reductions would be felt
        low = high = ids.item()
    else:
        low, high = ids.min(initial=0), ids.max(initial=0)
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        raise InputError(f"token {wrong} is not of the model's vocabulary of {vocab_size}")


class _Graph:
    """An ONNX Runtime session and the buffers bound to it.

    Binding costs more than a small model's layer, so the cache is bound once for each of its
    versions and tokens are written into the bound inputs.
    """

    def __init__(self, session: Any, manifest: Manifest) -> None:
        self._session = session
        self._n_layers = manifest.model.n_layers
        self._vocab_size = manifest.model.vocab_size
        self._name = manifest.name
        self._wants_positions = "position_ids" in {i.name for i in session.get_inputs()}
        self._cache: KVCache | None = None  # held: another cache may not get its identity
        self._bound: tuple[int, ...] = ()
        self._binding: Any = None
        self._inputs: dict[str, Array] = {}
        self._logits = np.empty((0, 0), dtype=np.float32)
        self._held: list[Any] = []

    def run(self, ids: Array, cache: KVCache, total: Array, logit_rows: Array) -> Array:
        bound = (cache.version, *ids.shape, len(logit_rows))
        if cache is not self._cache or bound != self._bound:
            self._bind(cache, ids.shape, len(logit_rows))
            self._cache, self._bound = cache, bound
        inputs = self._inputs
        inputs["input_ids"][...] = ids
        inputs["seqlens_k"][...] = total - 1
        inputs["total_sequence_length"][...] = total.max()
        inputs["logit_rows"][...] = logit_rows
        if self._wants_positions:
            inputs["position_ids"][...] = cache.lengths[:, None] + np.arange(ids.shape[1])
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise InputError(
                f"ONNX Runtime cannot run the graph ({first_words(error)})", where=self._name
            ) from error
        return self._logits

    def _bind(self, cache: KVCache, shape: tuple[int, ...], n_logits: int) -> None:
        from onnxruntime import OrtValue

        batch = shape[0]
        self._binding = self._session.io_binding()
        self._inputs = {
            "input_ids": np.zeros(shape, dtype=np.int64),
            "seqlens_k": np.zeros(batch, dtype=np.int32),
            "total_sequence_length": np.zeros(1, dtype=np.int32),
            "logit_rows": np.zeros(n_logits, dtype=np.int64),
        }
        if self._wants_positions:
            self._inputs["position_ids"] = np.zeros(shape, dtype=np.int64)
        self._logits = np.empty((n_logits, self._vocab_size), dtype=np.float32)
        # OrtValues made from numpy arrays share their memory; hold both while they are bound.
        self._held = []
        for name, array in self._inputs.items():
            self._bind_input(name, OrtValue.ortvalue_from_numpy(array))
        for layer in range(self._n_layers):
            for part, name in enumerate(("key", "value")):
                value = OrtValue.ortvalue_from_numpy(cache.buffers[2 * layer + part])
                self._bind_input(f"past_key_values.{layer}.{name}", value)
                self._binding.bind_ortvalue_output(f"present.{layer}.{name}", value)
        value = OrtValue.ortvalue_from_numpy(self._logits)
        self._held.append(value)
        self._binding.bind_ortvalue_output("logits", value)

    def _bind_input(self, name: str, value: Any) -> None:
        self._held.append(value)
        self._binding.bind_ortvalue_input(name, value)


def open_session(
    bundle: Bundle | Path | str, *, n_threads: int | None = None, verify: bool = True
) -> Session:
    """Open a bundle for running, on ``n_threads`` threads (default: physical cores).

    The hashes of graphs and weights are checked before ONNX Runtime reads them, unless ``verify``
    is False. Raises InputError for a bundle that is damaged or that this machine cannot run.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    manifest = opened.manifest
    names = {manifest.graphs.prefill, manifest.graphs.decode}
    if verify:
        check_files(opened, names | {manifest.weights})
    _check_cpu(opened)
    for name in names:
        file = opened.file(name)
        own = weights_location(name, manifest.weights)
        strangers = external_locations(file.read_bytes(), str(file)) - {own}
        if strangers:
            raise InputError(
                f"{name} refers to a file outside of the bundle: {sorted(strangers)[0]!r}",
                where=str(opened.path),
            )
    graphs = open_graphs(opened.path, manifest.graphs, n_threads)
    for name, graph in graphs.items():
        _check_shapes(graph, manifest.model, opened.file(name))
    return Session(manifest, graphs, manifest.graphs)


def open_graphs(folder: Path, graphs: Graphs, n_threads: int | None) -> dict[str, Any]:
    """ONNX Runtime sessions of a folder's graphs, by file name."""
    names = {graphs.prefill, graphs.decode}
    return {name: _open_graph(folder / name, n_threads) for name in names}


def _check_shapes(graph: Any, model: ModelFacts, where: Path) -> None:
    """Refuse a graph that does not read and make what the manifest says."""
    past = [model.n_kv_heads, model.head_dim]
    stated: dict[str, list[int]] = {
        f"past_key_values.{layer}.{part}": past
        for layer in range(min(model.n_layers, len(graph.get_inputs())))
        for part in ("key", "value")
    }
    found = {i.name: [i.shape[n] for n in (1, 3) if n < len(i.shape)] for i in graph.get_inputs()}
    found = {name: shape for name, shape in found.items() if name.startswith("past_key_values.")}
    stated["logits"] = [model.vocab_size]
    found |= {o.name: o.shape[-1:] for o in graph.get_outputs() if o.name == "logits"}
    if len(found) != 2 * model.n_layers + 1 or found != stated:
        wrong = next((name for name in stated if found.get(name) != stated[name]), "n_layers")
        raise InputError(f"is not the graph of its manifest: {wrong} differs", where=str(where))


def _check_cpu(bundle: Bundle) -> None:
    from kdexport.machine import machine_facts

    wanted = bundle.manifest.requires_cpu
    missing = sorted(set(wanted) - set(machine_facts().features)) if wanted else []
    if missing:
        raise InputError(
            f"was made for a CPU with {', '.join(missing)}, which this one lacks",
            where=str(bundle.path),
            remedy="export it again with --scheme int8, whose weights are right on every CPU",
        )


def _open_graph(path: Path, n_threads: int | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads or physical_cores()
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS))
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        raise InputError(
            f"ONNX Runtime cannot open it ({first_words(error)})", where=str(path)
        ) from error
