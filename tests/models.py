"""Tiny real models for tests: two layers, a byte-level tokenizer, made in a folder in a second."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

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


def byte_level_bpe(vocab_size: int = 320) -> Tokenizer:
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
    tokenizer.train_from_iterator(CORPUS * 20, trainer)
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


def _save(folder: Path, kind: Any, config: Any, tokenizer: Tokenizer, *, chat: bool) -> Path:
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    kind(config).eval().save_pretrained(folder)
    save_tokenizer(folder, tokenizer, chat=chat)
    return folder
