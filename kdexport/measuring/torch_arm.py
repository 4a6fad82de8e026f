"""A model in PyTorch as an arm of a bench: the same loop, sampler and text as ours around it.

python -m kdexport.measuring.torch_arm FOLDER --threads 2
"""

import argparse
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from kdexport.bundle import TextFacts
from kdexport.errors import InputError, KdexportError, first_words
from kdexport.export.text import chat_template, text_facts
from kdexport.model_folder import FP32_BYTES
from kdexport.runtime.arm import refuse, serve_arm
from kdexport.runtime.session import check_ids
from kdexport.runtime.text import TextCodec
from kdexport.train.model import load_model

Array = np.ndarray[Any, Any]


class TorchSession:
    """A causal language model behind the interface of `kdexport.runtime.session.Session`.

    One text, or texts of equal length; transformers' own cache.
    """

    def __init__(self, model: Any, text: TextFacts) -> None:
        self.model = model
        self.manifest = SimpleNamespace(
            text=text, model=SimpleNamespace(max_length=model.config.max_position_embeddings)
        )

    def new_cache(self, batch_size: int = 1, capacity: int = 256) -> Any:
        """An empty cache."""
        from transformers import DynamicCache

        return DynamicCache(config=self.model.config)

    @torch.inference_mode()
    def run(
        self,
        ids: Array,
        cache: Any,
        *,
        lengths: Array | None = None,
        logit_rows: Array | None = None,
    ) -> Array:
        """Logits, float32 [K, V] of one text or [B, V] of several; see `Session.run`."""
        if lengths is not None and (lengths != ids.shape[1]).any():
            raise InputError("texts of several lengths are not for the model in PyTorch")
        check_ids(ids, self.model.get_input_embeddings().num_embeddings)
        wanted = torch.tensor([ids.shape[1] - 1] if logit_rows is None else logit_rows)
        out = self.model(
            input_ids=torch.from_numpy(ids),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=wanted,
        )
        rows = out.logits[0] if len(ids) == 1 else out.logits[:, -1]
        logits: Array = rows.float().numpy()
        return logits


def open_torch(folder: Path) -> tuple[TorchSession, TextCodec]:
    """A Hugging Face folder as what runs and what reads; InputError for one that cannot be."""
    try:
        model = load_model(folder)
        text = text_facts(folder, model.config)
        codec = TextCodec(folder / "tokenizer.json", text, chat_template(folder))
        return TorchSession(model, text), codec
    except KdexportError:
        raise
    except Exception as error:  # of a broken folder, transformers raises any
        raise InputError(f"cannot be loaded ({first_words(error)})", where=str(folder)) from error


def main() -> None:
    """Serve a Hugging Face folder."""
    parser = argparse.ArgumentParser(prog="python -m kdexport.measuring.torch_arm")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    torch.set_num_threads(arguments.threads)
    started = time.perf_counter()
    try:
        session, codec = open_torch(folder)
    except KdexportError as error:
        refuse(error)
    model = session.model
    facts = {
        "engine": f"PyTorch {torch.__version__.split('+')[0]}",
        "n_parameters": model.num_parameters(),
        "size_mb": model.num_parameters() * FP32_BYTES / 1e6,
        "load_s": time.perf_counter() - started,
    }
    serve_arm(session, codec, facts)


if __name__ == "__main__":
    main()
