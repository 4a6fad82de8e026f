"""onnxruntime-genai as an arm: its own tokenizer, generator and greedy search."""

import json
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as og

from bench.peers.protocol import serve_engine


class GenAI:
    """A folder of the model builder. The generator is made before the clock starts, as for users
    who keep one: its key-value cache is as large as the text needs."""

    def __init__(self, path: Path, n_threads: int) -> None:
        config = og.Config(str(path))
        session = {"intra_op_num_threads": n_threads, "inter_op_num_threads": 1}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self._model = og.Model(config)
        self._tokenizer = og.Tokenizer(self._model)
        self._stream = self._tokenizer.create_stream()
        self._generator: Any = None
        self.facts = {"engine": f"onnxruntime-genai {version('onnxruntime-genai')}"}

    def reserve(self, n_tokens: int) -> None:
        params = og.GeneratorParams(self._model)
        # min_length keeps the end token away: every engine writes as many tokens.
        params.set_search_options(max_length=n_tokens, min_length=n_tokens, do_sample=False)
        self._generator = og.Generator(self._model, params)

    def encode(self, text: str) -> list[int]:
        return [int(token) for token in self._tokenizer.encode(text)]

    def start(self, ids: Sequence[int]) -> int:
        self._generator.append_tokens(np.asarray(ids, dtype=np.int32))
        return self._next()

    def step(self, token: int) -> int:
        return self._next()

    def _next(self) -> int:
        self._generator.generate_next_token()
        return int(self._generator.get_next_tokens()[0])

    def piece(self, token: int) -> str:
        return str(self._stream.decode(token))

    def score(self, ids: Sequence[int]) -> Any:
        self._generator.append_tokens(np.asarray(ids, dtype=np.int32))
        return np.array(self._generator.get_output("logits")[0], dtype=np.float32)

    def score_steps(self, ids: Sequence[int]) -> Iterator[Any]:
        for token in ids:
            yield self.score([token])[-1]


if __name__ == "__main__":
    serve_engine(GenAI)
