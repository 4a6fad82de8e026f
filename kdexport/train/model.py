"""Load, save and read a causal language model of any family through transformers' common surface.

Knows no family by name: the parts are found through the methods that every model has.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch.nn import functional as F  # noqa: N812

from kdexport.errors import InputError, first_words
from kdexport.system.console import quiet_transformers
from kdexport.train.data import Batch, Encoded, collate

LEAK = 0.05  # of what one text changes in the next, by which packed texts may differ from lone ones
FLOAT32_NOISE = 1e-5  # of the largest logit
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "kdexport.json",
)


def load_model(folder: Path, *, attention: str = "sdpa") -> Any:
    """A causal language model from a Hugging Face folder, in evaluation mode: float32, safetensors.

    ``attention``: transformers' name of the implementation.
    """
    from transformers import AutoModelForCausalLM

    with quiet_transformers():
        try:
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=torch.float32,
                attn_implementation=attention,
                local_files_only=True,
                use_safetensors=True,
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise _not_read(folder, "load the model", error) from error
        except SafetensorError as error:
            raise InputError(
                f"model.safetensors is corrupt or truncated ({error})", where=str(folder)
            ) from error
    return model.eval()


def load_shape(folder: Path) -> Any:
    """The same without its weights: every tensor has a shape and no content."""
    from transformers import AutoModelForCausalLM, GenerationConfig

    with quiet_transformers(), torch.device("meta"):
        try:
            model = AutoModelForCausalLM.from_config(load_config(folder))
            if (folder / "generation_config.json").is_file():
                model.generation_config = GenerationConfig.from_pretrained(folder)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise _not_read(folder, "make the model", error) from error
    return model.eval()


def load_config(folder: Path) -> Any:
    """The configuration of a Hugging Face folder."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # of a wrong value, transformers raises any
        raise _not_read(folder / "config.json", "read config.json", error) from error


def load_tokenizer(folder: Path) -> Any:
    """The fast tokenizer of a Hugging Face folder, which neither cuts nor pads a text."""
    from transformers import AutoTokenizer

    with quiet_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # tokenizers raises plain ones
            raise _not_read(folder / "tokenizer.json", "load the tokenizer", error) from error
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def _not_read(path: Path, what: str, error: Exception) -> InputError:
    reason = first_words(error)
    return InputError(f"cannot be loaded: transformers cannot {what} ({reason})", where=str(path))


def template_of(tokenizer: Any) -> str | None:
    """The chat template of transformers' tokenizer; of several the one named "default"."""
    found = tokenizer.chat_template
    if isinstance(found, dict):
        found = found.get("default")
    return str(found) if found else None


def save_model(
    model: Any, folder: Path, *, tokenizer_from: Path, tokenizer: Tokenizer | None = None
) -> None:
    """Write a Hugging Face folder (safetensors), beside and then in place.

    Tokenizer files are copied from ``tokenizer_from``; ``tokenizer`` replaces the vocabulary.
    """
    with staged_folder(folder) as staging:
        with quiet_transformers():
            model.save_pretrained(staging)
        for name in TOKENIZER_FILES:
            if (tokenizer_from / name).exists():
                shutil.copyfile(tokenizer_from / name, staging / name)
        if tokenizer is not None:
            tokenizer.save(str(staging / "tokenizer.json"))
            _forget_old_ids(staging / "tokenizer_config.json")


@contextmanager
def staged_folder(place: Path) -> Iterator[Path]:
    """A folder beside ``place`` to write into, synced, which takes its place after the block.

    What does not come to its end is removed. Raises InputError where the disk takes no more.
    """
    staging = place.with_name(f".{place.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with written(place):
            staging.mkdir(parents=True)
            yield staging
            for part in (*staging.iterdir(), staging):
                sync(part)
            swap_folder(staging, place)
            sync(place.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def sync(path: Path) -> None:
    """Have the disk take what was written to a file, or which names a folder holds."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def written(place: Path) -> Iterator[None]:
    """Tell in one line that ``place`` cannot be written, of which safetensors has its own error."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(
            f"cannot be written ({reason})",
            where=str(place),
            remedy="make room, and run the same command again",
        ) from error


def swap_folder(new: Path, place: Path) -> None:
    """Rename a whole folder into its place; the one that was there goes last.

    A kill between the two renames leaves it as .NAME.old (`recover_folder`).
    """
    recover_folder(place)
    old = place.with_name(f".{place.name}.old")
    if place.exists():
        place.rename(old)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(place: Path) -> None:
    """Bring back what a kill within `swap_folder` left under its other name, and tidy up."""
    old = place.with_name(f".{place.name}.old")
    if place.exists():
        shutil.rmtree(old, ignore_errors=True)
    elif old.exists():
        old.rename(place)


def _forget_old_ids(config_path: Path) -> None:
    """Drop the numbered list of added tokens: tokenizer.json holds it with the new numbers."""
    config = json.loads(config_path.read_text("utf-8"))
    config.pop("added_tokens_decoder", None)
    config_path.write_text(json.dumps(config, indent=1), "utf-8")


def load_facts(folder: Path) -> dict[str, Any]:
    """What we noted beside a model in kdexport.json; empty for a folder from elsewhere."""
    path = folder / "kdexport.json"
    if not path.exists():
        return {}
    facts: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return facts


@dataclass(frozen=True)
class Reading:
    """What a model makes of a batch's N target positions: one of the two.

    ``hidden``: float [N, H], what its head makes logits of. ``logits``: float [N, V], where they
    are more than the head's product.
    """

    hidden: torch.Tensor | None
    logits: torch.Tensor | None

    def rows(self, rows: slice) -> "Reading":
        """That of some of the positions."""
        return Reading(*(None if x is None else x[rows] for x in (self.hidden, self.logits)))

    def to_logits(self, model: Any, kept_ids: torch.Tensor | None = None) -> torch.Tensor:
        """Logits [N, V]; with ``kept_ids``, int64 [V], of these tokens only."""
        if self.hidden is not None:
            return F.linear(self.hidden, *head_of(model, kept_ids))
        assert self.logits is not None
        return self.logits if kept_ids is None else self.logits[:, kept_ids]


def read_batch(model: Any, batch: Batch) -> Reading:
    """Read a batch; keep what is at its target positions only.

    The vocabulary head is the dearest product of a small model: it is left to the caller.
    """
    inputs = batch.inputs(model.device)
    where = batch.targets.to(model.device)
    if not head_is_plain(model):
        logits: torch.Tensor = model(**inputs, use_cache=False).logits
        return Reading(None, logits[:, :-1][where])
    hidden: torch.Tensor = model.base_model(**inputs, use_cache=False).last_hidden_state
    return Reading(hidden[:, :-1][where], None)


def lookups_share_gradient(model: Any) -> None:
    """Have lookups in a table that is the head, too, add their rows to the head's gradient.

    Of all other rows their own gradient is zeros, as many as a large vocabulary's head has weights.
    For CPUs, and losses over a plain head's chunks, whose gradient is there first. A gradient is
    in ``.grad`` then, and cannot be asked of torch.autograd.grad.
    """
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    is_table = isinstance(table, torch.nn.Embedding) and head_is_plain(model)
    if is_table and table.weight is head.weight and model.device.type == "cpu":
        table.sparse = True


def lookups_add(model: Any) -> bool:
    """Whether they do."""
    return bool(getattr(model.get_input_embeddings(), "sparse", False))


def recompute_activations(model: Any) -> None:
    """Keep a layer's input alone, and compute the layer again for its gradient.

    Activation checkpointing (Chen et al. 2016, section 3): gradients are the same, memory grows by
    2 H bytes a token and layer, and a step takes a third longer. Raises InputError for a family
    that cannot.
    """
    enable = getattr(model, "activation_checkpointing_enable", None)
    enable = enable or model.gradient_checkpointing_enable  # its name in older transformers
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise InputError(
            f"{model.config.model_type} models cannot compute their layers again",
            where="train.activation_checkpointing",
            remedy="set it to false",
        ) from error


def head_of(
    model: Any, kept_ids: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight [V, H] and bias [V] of the vocabulary head, for ``kept_ids`` only where given."""
    head = model.get_output_embeddings()
    bias = getattr(head, "bias", None)
    if kept_ids is None:
        return head.weight, bias
    return head.weight[kept_ids], None if bias is None else bias[kept_ids]


def low_precision(model: Any, precision: str) -> torch.autocast:
    """Products of a model's device in bfloat16 within the block, where ``precision`` is bfloat16.

    Weights and sums stay float32 (mixed precision, Micikevicius et al. 2018). A weight's copy in
    bfloat16 is not kept for a second use in the block: there is none.
    """
    return torch.autocast(
        model.device.type,
        dtype=torch.bfloat16,
        enabled=precision == "bfloat16",
        cache_enabled=False,
    )


@torch.no_grad()
def check_packing(model: Any) -> None:
    """Refuse a model that looks from one text of a packed row into the one before it.

    By how much it would matter to it: what it says of one text after another is the measure.
    """
    ids = np.arange(10)
    texts = [Encoded("first", ids[:5], 1, 1), Encoded("second", ids[5:], 1, 1)]

    def says(*texts: Encoded, row_length: int | None = None) -> torch.Tensor:
        return read_batch(model, collate(texts, row_length)).to_logits(model)[-4:]

    alone = says(texts[1])
    apart = float((says(*texts, row_length=10) - alone).abs().max())
    joined = float((says(Encoded("both", ids, 1, 1)) - alone).abs().max())
    if apart > max(LEAK * joined, FLOAT32_NOISE * float(alone.abs().max())):
        raise InputError(
            f"a {model.config.model_type} model does not keep packed texts apart",
            where="train.packing",
            remedy="set it to false",
        )


def head_is_plain(model: Any) -> bool:
    """Whether logits are the output embedding of the last hidden state and nothing more.

    Checked once for each model by computing both; soft caps and logit scales fail it.
    """
    known = getattr(model, "_kdexport_plain_head", None)
    if known is not None:
        return bool(known)
    head = model.get_output_embeddings()
    plain = head is not None and model.base_model is not model
    if plain:
        was_training = model.training
        model.eval()
        with torch.no_grad():
            probe = torch.arange(4, device=model.device)[None]
            whole = model(input_ids=probe, use_cache=False).logits
            parts = head(model.base_model(input_ids=probe, use_cache=False).last_hidden_state)
            plain = torch.allclose(whole, parts, rtol=1e-4, atol=1e-4)
        model.train(was_training)
    model._kdexport_plain_head = plain
    return bool(plain)
