"""A model in PyTorch as an arm of a bench: the same loop, sampler and text as ours around it.

python -m kdexport.torch_arm FOLDER --threads 2
"""

import argparse
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from kdexport.bundle import TextFacts
from kdexport.export.bundles import text_facts
from kdexport.runtime.arm import serve_arm
from kdexport.runtime.text import TextCodec
from kdexport.train.model import load_model

Array = np.ndarray[Any, Any]


class TorchSession:
    """A causal language model behind the interface of `kdexport.runtime.session.Session`.

    One text at a time; transformers' own cache.
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
        """Logits, float32 [K, V]; see `Session.run`."""
        wanted = torch.tensor([ids.shape[1] - 1] if logit_rows is None else logit_rows)
        out = self.model(
            input_ids=torch.from_numpy(ids),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=wanted,
        )
        logits: Array = out.logits[0].float().numpy()
        return logits


def main() -> None:
    """Serve a Hugging Face folder."""
    parser = argparse.ArgumentParser(prog="python -m kdexport.torch_arm")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    torch.set_num_threads(arguments.threads)
    started = time.perf_counter()
    model = load_model(folder)
    text = text_facts(folder, model.config)
    template = folder / "chat_template.jinja"
    codec = TextCodec(
        folder / "tokenizer.json",
        text,
        template.read_text("utf-8") if template.exists() else None,
    )
    facts = {
        "engine": f"PyTorch {torch.__version__.split('+')[0]}",
        "n_parameters": model.num_parameters(),
        "size_mb": sum(f.stat().st_size for f in folder.glob("*.safetensors")) / 1e6,
        "load_s": time.perf_counter() - started,
    }
    serve_arm(TorchSession(model, text), codec, facts)


if __name__ == "__main__":
    main()
