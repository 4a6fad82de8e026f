"""PyTorch in float32 as an arm, and as the reference that all others are compared with.

    python -m bench.peers.torch_fp32 FOLDER --threads 2

The loop, sampler and text around it are ours.
"""

import time
from pathlib import Path
from typing import Any

import torch

from bench.peers.fidelity import write_reference
from bench.peers.ours import logits_at_once, serve_session
from bench.peers.protocol import arguments
from kdexport.export.text import chat_template, text_facts
from kdexport.measuring.torch_arm import TorchSession
from kdexport.runtime.text import TextCodec
from kdexport.train.model import load_model


def open_torch(folder: Path) -> tuple[TorchSession, TextCodec, Any]:
    """A Hugging Face folder as a session and its text, and the model itself."""
    model = load_model(folder)
    facts = text_facts(folder, model.config)
    codec = TextCodec(folder / "tokenizer.json", facts, chat_template(folder))
    return TorchSession(model, facts), codec, model


def keep_logits(folder: Path, windows: Any, out: Path) -> None:
    """Write the reference that `fidelity.compare` reads."""
    session, _, model = open_torch(folder)
    n_vocab = model.get_output_embeddings().weight.shape[0]
    write_reference(out, windows, n_vocab, lambda ids: logits_at_once(session, ids))


def main() -> None:
    """Serve a folder."""
    folder, n_threads = arguments()
    torch.set_num_threads(n_threads)
    started = time.perf_counter()
    session, codec, model = open_torch(folder)
    facts = {
        "load_s": time.perf_counter() - started,
        "engine": f"PyTorch {torch.__version__.split('+')[0]}",
        "options": f"float32, attention {model.config._attn_implementation}",
    }
    serve_session(session, codec, facts)


if __name__ == "__main__":
    main()
