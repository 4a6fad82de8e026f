"""optimum's ORTModelForCausalLM as an arm, in the leanest greedy loop that its interface allows.

transformers' `generate` around it would cost more; key-value caches go in and out as the class
hands them over.
"""

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from optimum.onnxruntime import ORTModelForCausalLM
from tokenizers import Tokenizer

from bench.peers.protocol import serve_engine


class OptimumORT:
    """A folder of `optimum-cli onnxruntime quantize`."""

    def __init__(self, path: Path, n_threads: int) -> None:
        torch.set_num_threads(n_threads)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = n_threads
        options.inter_op_num_threads = 1
        self._model: Any = ORTModelForCausalLM.from_pretrained(
            path,
            file_name=next(path.glob("*.onnx")).name,
            provider="CPUExecutionProvider",
            session_options=options,
            local_files_only=True,
        )
        self._tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        self._cache: Any = None
        self._n_read = 0
        versions = f"optimum-onnx {version('optimum-onnx')}, onnxruntime {onnxruntime.__version__}"
        self.facts = {"engine": versions, "options": f"io binding: {self._model.use_io_binding}"}

    def reserve(self, n_tokens: int) -> None:
        """Nothing to make ready: the caches grow with every token."""

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def start(self, ids: Sequence[int]) -> int:
        self._cache, self._n_read = None, 0
        return int(self._run(ids)[-1].argmax())

    def step(self, token: int) -> int:
        return int(self._run([token])[-1].argmax())

    @torch.inference_mode()
    def _run(self, ids: Sequence[int]) -> Any:
        self._n_read += len(ids)
        out = self._model(
            input_ids=torch.tensor([list(ids)]),
            attention_mask=torch.ones((1, self._n_read), dtype=torch.int64),
            past_key_values=self._cache,
            use_cache=True,
        )
        self._cache = out.past_key_values
        return out.logits[0]

    def piece(self, token: int) -> str:
        return str(self._tokenizer.decode([token]))

    def score(self, ids: Sequence[int]) -> Any:
        self._cache, self._n_read = None, 0
        return self._run(ids).numpy()

    def score_steps(self, ids: Sequence[int]) -> Iterator[Any]:
        self._cache, self._n_read = None, 0
        for token in ids:
            yield self._run([token])[-1].numpy()


if __name__ == "__main__":
    serve_engine(OptimumORT)
