"""llama.cpp as an arm: its C interface through llama-cpp-python, its own greedy sampler.

The low-level calls, since llama-cpp-python's own loop costs several percent more.
"""

import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import llama_cpp as lib
import numpy as np

from bench.peers.protocol import serve_engine


@lib.llama_log_callback
def _silent(_level: int, _text: bytes, _data: Any) -> None:
    pass


class LlamaCpp:
    """A GGUF file. The context (its key-value cache) is as large as the text needs."""

    def __init__(self, path: Path, n_threads: int) -> None:
        lib.llama_log_set(_silent, ctypes.c_void_p(0))
        lib.llama_backend_init()
        self._n_threads = n_threads
        self._model = lib.llama_model_load_from_file(
            str(path).encode(), lib.llama_model_default_params()
        )
        if not self._model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self._vocab = lib.llama_model_get_vocab(self._model)
        self._n_vocab = lib.llama_vocab_n_tokens(self._vocab)
        self._sampler = lib.llama_sampler_init_greedy()
        self._context: Any = None
        self._n_ctx = 0
        self._text = ctypes.create_string_buffer(256)
        self.reserve(256)
        info = lib.llama_print_system_info().decode().strip(" |")
        self.facts = {
            "engine": f"llama.cpp (llama-cpp-python {lib.__version__})",
            "options": f"low-level loop, flash attention auto, compiled natively: {info}",
        }

    def reserve(self, n_tokens: int) -> None:
        if n_tokens <= self._n_ctx:
            return
        if self._context:
            lib.llama_free(self._context)
        params = lib.llama_context_default_params()
        params.n_ctx = params.n_batch = self._n_ctx = n_tokens
        params.n_threads = params.n_threads_batch = self._n_threads
        self._context = lib.llama_init_from_model(self._model, params)
        if not self._context:
            raise SystemExit(f"llama.cpp makes no context of {n_tokens} tokens")

    def encode(self, text: str) -> list[int]:
        raw = text.encode()
        ids = (lib.llama_token * (len(raw) + 1))()
        n = lib.llama_tokenize(self._vocab, raw, len(raw), ids, len(ids), False, True)
        return list(ids[:n])

    def start(self, ids: Sequence[int]) -> int:
        lib.llama_memory_clear(lib.llama_get_memory(self._context), False)
        self._decode(ids)
        return int(lib.llama_sampler_sample(self._sampler, self._context, -1))

    def step(self, token: int) -> int:
        self._decode([token])
        return int(lib.llama_sampler_sample(self._sampler, self._context, -1))

    def _decode(self, ids: Sequence[int]) -> None:
        tokens = (lib.llama_token * len(ids))(*ids)
        self._run(lib.llama_batch_get_one(tokens, len(ids)))

    def _run(self, batch: Any) -> None:
        code = lib.llama_decode(self._context, batch)
        if code:
            raise RuntimeError(f"llama_decode returned {code}")

    def piece(self, token: int) -> str:
        n = lib.llama_token_to_piece(self._vocab, token, self._text, len(self._text), 0, False)
        return self._text.raw[: max(n, 0)].decode("utf-8", "replace")

    def score(self, ids: Sequence[int]) -> Any:
        lib.llama_memory_clear(lib.llama_get_memory(self._context), False)
        batch = lib.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for position, token in enumerate(ids):
            batch.token[position] = token
            batch.pos[position] = position
            batch.n_seq_id[position] = 1
            batch.seq_id[position][0] = 0
            batch.logits[position] = 1
        self._run(batch)
        logits = self._logits(len(ids)).copy()
        lib.llama_batch_free(batch)
        return logits

    def score_steps(self, ids: Sequence[int]) -> Iterator[Any]:
        lib.llama_memory_clear(lib.llama_get_memory(self._context), False)
        for token in ids:
            self._decode([token])
            yield self._logits(1)[0].copy()

    def _logits(self, n_rows: int) -> Any:
        shape = (n_rows, self._n_vocab)
        return np.ctypeslib.as_array(lib.llama_get_logits(self._context), shape=shape)


if __name__ == "__main__":
    serve_engine(LlamaCpp)
