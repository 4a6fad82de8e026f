"""One bundle opened for running: graphs, and a key-value cache that is written in place.

Knows the manifest and the graph contract (docs/architecture.md); no model family, no text.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from kdexport.bundle import (
    Bundle,
    Manifest,
    check_files,
    open_bundle,
    weights_location,
)
from kdexport.errors import InputError, first_words
from kdexport.runtime.cpu import suit_cpu, suits_many_tokens
from kdexport.runtime.external_data import external_locations
from kdexport.runtime.huge_pages import in_huge_pages
from kdexport.runtime.kv_cache import KVCache
from kdexport.system.machine import physical_cores

SPIN_MICROSECONDS = 1000
MOST_BOUND = 4
FEW_LOGITS = 16  # rows of logits that a binding may keep in memory for later
KV_TYPES = {"float32": "tensor(float)", "int8": "tensor(int8)"}  # as ONNX Runtime names them
Array = np.ndarray[Any, Any]


class Session:
    """A bundle ready to run. Make one with `open_session`; ``opened`` is ONNX Runtime's session of
    one of the bundle's graphs, ``graph`` that one's file.

    ``exact``: a text's logits do not depend on how its tokens are grouped into calls. ONNX Runtime
    computes the last of an odd number of rows otherwise than one of two, in attention and in some
    products, and rounds it otherwise; so a call gets an even number, by a token that is forgotten
    again. Not so in batches: its attention takes one token a row there.
    """

    def __init__(
        self, manifest: Manifest, opened: Any, *, exact: bool = False, graph: str = ""
    ) -> None:
        self.manifest = manifest
        self.exact = exact
        self.graph = graph
        self.vocab_size = manifest.model.vocab_size
        self._graph = _Graph(opened, manifest)

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
        rows: Array | list[int]
        if n_rows == 1 and lengths is None:  # each call of numpy would be felt
            longest = int(cache.lengths[0]) + n_new
            total, rows = np.asarray([longest], dtype=np.int32), [n_new - 1]
        else:
            new = np.full(n_rows, n_new, dtype=np.int32) if lengths is None else lengths
            total = cache.lengths + new.astype(np.int32)
            longest, rows = int(total.max()), np.arange(n_rows) * n_new + new - 1
        if longest > self.manifest.model.max_length:
            raise InputError(
                f"{longest} tokens are beyond the model's {self.manifest.model.max_length}",
                remedy="shorten the prompt or ask for fewer new tokens",
            )
        end = longest if n_rows == 1 else max(longest, int(cache.lengths.max()) + n_new)
        if logit_rows is not None:
            rows = logit_rows
        n_logits = len(rows)
        n_more = 0
        if self.exact and n_rows == 1:
            n_more = 1 if n_new % 2 and end < self.manifest.model.max_length else 0
            ids = np.concatenate([ids, ids[:, -1:]], axis=1) if n_more else ids
            rows = [*rows, rows[-1]] if n_logits % 2 else rows
        cache.reserve(end + n_more)
        logits = self._graph.run(ids, cache, total + n_more if n_more else total, rows)
        cache.lengths = total
        return logits[:n_logits]

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


@dataclass(frozen=True)
class _Bound:
    """A binding for one shape of call, the arrays it reads and the logits it writes."""

    binding: Any
    inputs: Mapping[str, Array]
    logits: Array
    held: Sequence[Any]  # OrtValues made from numpy arrays share their memory


class _Graph:
    """An ONNX Runtime session and the buffers bound to it.

    Binding costs more than a small model's layer, so a cache is bound once for each of its versions
    and tokens are written into the bound inputs. Up to MOST_BOUND shapes of call stay bound: a
    draft's guesses are judged by calls of two or three sizes, in turns.
    """

    def __init__(self, session: Any, manifest: Manifest) -> None:
        self._session = session
        self._n_layers = manifest.model.n_layers
        self._vocab_size = manifest.model.vocab_size
        self._name = manifest.name
        self._wants_positions = "position_ids" in {i.name for i in session.get_inputs()}
        self._cache: KVCache | None = None  # held: another cache may not get its identity
        self._version = -1
        self._buffers: list[Any] = []
        self._bound: dict[tuple[int, ...], _Bound] = {}

    def run(self, ids: Array, cache: KVCache, total: Array, logit_rows: Array | list[int]) -> Array:
        if cache is not self._cache or cache.version != self._version:
            self._take(cache)
        shape = (*ids.shape, len(logit_rows))
        bound = self._bound.get(shape) or self._bind(shape)
        inputs = bound.inputs
        inputs["input_ids"][...] = ids
        if len(total) == 1:
            longest = int(total[0])
            inputs["seqlens_k"][0] = longest - 1
            inputs["total_sequence_length"][0] = longest
        else:
            inputs["seqlens_k"][...] = total - 1
            inputs["total_sequence_length"][0] = total.max()
        inputs["logit_rows"][...] = logit_rows
        if self._wants_positions:
            inputs["position_ids"][...] = cache.lengths[:, None] + np.arange(ids.shape[1])
        try:
            self._session.run_with_iobinding(bound.binding)
        except Exception as error:  # onnxruntime's exceptions share no base class of their own
            raise InputError(
                f"ONNX Runtime cannot run the graph ({first_words(error)})", where=self._name
            ) from error
        return bound.logits

    def _take(self, cache: KVCache) -> None:
        """Another cache, or new buffers of the same: what was bound to the old ones goes."""
        from onnxruntime import OrtValue

        self._bound = {}
        self._buffers = [OrtValue.ortvalue_from_numpy(buffer) for buffer in cache.buffers]
        self._cache, self._version = cache, cache.version

    def _bind(self, shape: tuple[int, ...]) -> _Bound:
        """Bind a shape [B, S, K]; those with many logits, and the oldest beyond the most, go."""
        from onnxruntime import OrtValue

        batch, n_new, n_logits = shape
        kept = [old for old in self._bound if old[2] <= FEW_LOGITS][1 - MOST_BOUND :]
        self._bound = {old: self._bound[old] for old in kept}
        inputs: dict[str, Array] = {
            "input_ids": np.zeros((batch, n_new), dtype=np.int64),
            "seqlens_k": np.zeros(batch, dtype=np.int32),
            "total_sequence_length": np.zeros(1, dtype=np.int32),
            "logit_rows": np.zeros(n_logits, dtype=np.int64),
        }
        if self._wants_positions:
            inputs["position_ids"] = np.zeros((batch, n_new), dtype=np.int64)
        logits = np.empty((n_logits, self._vocab_size), dtype=np.float32)
        binding = self._session.io_binding()
        held = [OrtValue.ortvalue_from_numpy(array) for array in (*inputs.values(), logits)]
        for name, value in zip(inputs, held, strict=False):
            binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output("logits", held[-1])
        for layer in range(self._n_layers):
            for part, name in enumerate(("key", "value")):
                value = self._buffers[2 * layer + part]
                binding.bind_ortvalue_input(f"past_key_values.{layer}.{name}", value)
                binding.bind_ortvalue_output(f"present.{layer}.{name}", value)
        self._bound[shape] = _Bound(binding, inputs, logits, held)
        return self._bound[shape]


def open_session(
    bundle: Bundle | Path | str,
    *,
    n_threads: int | None = None,
    verify: bool = True,
    exact: bool = False,
    many_tokens: bool = False,
    huge_pages: bool = True,
    warn: Callable[[str], None] = lambda line: None,
) -> Session:
    """Open a bundle for running, on ``n_threads`` threads (default: physical cores).

    The hashes of graphs and weights are checked before ONNX Runtime reads them, unless ``verify``
    is False. ``exact``: see `Session`. ``many_tokens``: take the graph that is quick at batches and
    prompts, where the bundle has one for this CPU; it rounds otherwise. ``huge_pages``: gather the
    weights in pages that are quicker to read, where the system has them. ``warn`` is told, in a
    line, of a bundle that is slow here and was not where it was made. Raises InputError for a
    bundle that is damaged or that this machine cannot run.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    manifest = opened.manifest
    name = manifest.graphs.decode
    # Of format 1, the other graph rounds a call as a whole: it is right for a single token only.
    if manifest.format_version == 1 or (many_tokens and suits_many_tokens(manifest)):
        name = manifest.graphs.prefill
    manifest = manifest.of_graph(name)
    if verify:
        check_files(opened, {name, manifest.weights})
    switches = suit_cpu(opened, warn)
    file = opened.file(name)
    own = weights_location(name, manifest.weights)
    strangers = external_locations(file.read_bytes(), str(file)) - {own}
    if strangers:
        raise InputError(
            f"{name} refers to a file outside of the bundle: {sorted(strangers)[0]!r}",
            where=str(opened.path),
        )
    with in_huge_pages(wanted=huge_pages):
        graph = open_graph(file, n_threads, switches)
    _check_shapes(graph, manifest, file)
    return Session(manifest, graph, exact=exact, graph=name)


def session_of(manifest: Manifest, folder: Path, name: str) -> Session:
    """One graph of a bundle that is still being written: nothing of it is checked."""
    return Session(manifest.of_graph(name), open_graph(folder / name), graph=name)


def _check_shapes(graph: Any, manifest: Manifest, where: Path) -> None:
    """Refuse a graph that does not read and make what the manifest says."""
    model = manifest.model
    past: list[str | int] = [KV_TYPES[manifest.kv_cache], model.n_kv_heads, model.head_dim]
    stated: dict[str, list[str | int]] = {
        f"past_key_values.{layer}.{part}": past
        for layer in range(min(model.n_layers, len(graph.get_inputs())))
        for part in ("key", "value")
    }
    found = {i.name: [i.type, *i.shape[1::2]] for i in graph.get_inputs()}
    found = {name: shape for name, shape in found.items() if name.startswith("past_key_values.")}
    stated["logits"] = [model.vocab_size]
    found |= {o.name: o.shape[-1:] for o in graph.get_outputs() if o.name == "logits"}
    if len(found) != 2 * model.n_layers + 1 or found != stated:
        wrong = next((name for name in stated if found.get(name) != stated[name]), "n_layers")
        raise InputError(f"is not the graph of its manifest: {wrong} differs", where=str(where))


def session_options(n_threads: int, switches: Mapping[str, str]) -> Any:
    """How every graph is opened; ``switches``: further entries of ONNX Runtime's configuration."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS))
    for name, value in switches.items():
        options.add_session_config_entry(name, value)
    return options


def open_graph(
    path: Path, n_threads: int | None = None, switches: Mapping[str, str] = MappingProxyType({})
) -> Any:
    """ONNX Runtime's session of a graph; ``switches``: of its own. Raises InputError."""
    import onnxruntime

    options = session_options(n_threads or physical_cores(), switches)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class of their own
        raise InputError(
            f"ONNX Runtime cannot open it ({first_words(error)})", where=str(path)
        ) from error
