"""Does the graph compute what the model computes? Asked before a bundle is committed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdexport.bundle import Bundle, Manifest, Parity
from kdexport.content.prompts import ASKING, Message
from kdexport.errors import InputError, ParityError
from kdexport.export.layers import lengths_that_matter
from kdexport.runtime.quality import log_softmax
from kdexport.runtime.session import Session, open_session, session_of
from kdexport.runtime.text import TextCodec

Array = np.ndarray[Any, Any]
MAX_LOGIT_DIFF = 2e-2  # absolute, of logits in the tens; float32 in another order of summing
MAX_SHARE = 5e-3  # of the logits' standard deviation, for models whose logits are small
MAX_KL = 1e-5  # nats
MAX_KL_QUANTIZED = 1.0  # nats: a broken graph is far above, a rough one below; the bench judges
N_IDS = 24
AFFORDABLE = 4e11  # parameters times tokens: some seconds of torch on two cores
TRICKY = (
    "Hello world",
    "  two spaces, a\ttab and\n\na blank line ",
    "naïve café - “quoted” — 20 % off… €5",
    "你好,世界 🎉👩‍👩‍👧 مرحبا",
    "x1234567890 <|im_end|> </s> def f(x): return x**2",
    "",
)


def check_parity(checkpoint: Path, session: Session, codec: TextCodec) -> Parity:
    """Torch against the graph: prefill, a token at a time, and rows of unequal length.

    In torch the batch is padded on the left, with mask and positions; compared are the logits of
    real tokens. Texts are long enough to leave sliding windows and the length that the rotation is
    scaled from, where that is affordable. Raises ParityError beyond tolerance.
    """
    import torch

    from kdexport.train.model import load_model

    model = load_model(checkpoint)
    ids = _some_ids(session, _telling_length(model))
    with torch.no_grad():
        expected = model(torch.from_numpy(ids)[None]).logits[0].numpy()
    pairs = [
        ("prefill", expected, session.score(ids.tolist()).copy()),
        ("decode", expected[:N_IDS], token_by_token(session, ids[:N_IDS])),
        ("batch", *_batches(model, session, ids)),
    ]
    if len(ids) > N_IDS:
        found = token_by_token(session, ids, len(ids) - N_IDS)
        pairs.append(("decode at length", expected[-N_IDS:], found))
    spread = float(expected.std(-1).mean())
    parity = _compare(pairs, min(MAX_LOGIT_DIFF, MAX_SHARE * spread), MAX_KL)
    check_text(checkpoint, codec)
    return parity


def check_quantized(parent: Bundle, staging: Path, manifest: Manifest) -> Parity:
    """A quantized bundle, still being written, against the float32 one that it is made from."""
    graphs = manifest.graphs
    whole = open_session(parent)
    ids = _some_ids(whole)
    expected = whole.score(ids.tolist()).copy()
    pairs = []
    for name in {graphs.decode: None, graphs.prefill: None}:
        session = session_of(manifest, staging, name)
        pairs.append((f"prefill of {name}", expected, session.score(ids.tolist()).copy()))
        pairs.append((f"decode of {name}", expected, token_by_token(session, ids)))
    return _compare(pairs, np.inf, MAX_KL_QUANTIZED)


def check_text(checkpoint: Path, codec: TextCodec) -> None:
    """Tokenizer and chat template against transformers' on strings that are easy to get wrong."""
    from kdexport.train.model import load_tokenizer, template_of

    theirs = load_tokenizer(checkpoint)
    for text in TRICKY:
        expected = theirs(text, add_special_tokens=False).input_ids
        if codec.tokenizer.encode(text, add_special_tokens=False).ids != expected:
            raise ParityError(f"the tokenizer cuts {text!r} otherwise than transformers does")
    template = template_of(theirs)
    if template is not None:
        messages = [{"role": "user", "content": text} for text in TRICKY[:2]]
        for chat in ([messages[0]], [{"role": "system", "content": "s"}, *messages[:1]]):
            if _rendered(codec, chat) != _rendered_by(theirs, template, chat):
                raise ParityError("the chat template renders otherwise than transformers does")


def _rendered(codec: TextCodec, chat: list[Message]) -> str | None:
    """Our prompt of a chat; None where the template refuses it (some know no system role)."""
    try:
        return codec.render_chat(chat)
    except InputError:
        return None


def _rendered_by(tokenizer: Any, template: str, chat: list[Message]) -> str | None:
    try:
        prompt = tokenizer.apply_chat_template(
            chat, chat_template=template, tokenize=False, **ASKING
        )
    except Exception:  # a template is a program: it may fail in any way
        return None
    return str(prompt)


def _telling_length(model: Any) -> int:
    """How many tokens show whatever a model does otherwise to long texts than to short ones."""
    beyond = [length + 2 * N_IDS for length in lengths_that_matter(model.config)]
    affordable = [n for n in beyond if n * model.num_parameters() <= AFFORDABLE]
    return max([N_IDS, *affordable])


def _some_ids(session: Session, n: int = N_IDS) -> Array:
    """Token ids all over the vocabulary, the same for every model of its size; int64 [n]."""
    rng = np.random.default_rng(0)
    n = min(n, session.manifest.model.max_length - 1)
    return rng.integers(0, session.vocab_size, n, dtype=np.int64)


def token_by_token(session: Session, ids: Array, n_before: int = 0) -> Array:
    """Logits after each token when all past ``n_before`` are read one at a time, float32 [S, V]."""
    cache = session.new_cache(1, 4)  # small, so that growing is part of what is checked
    if n_before:
        session.run(ids[None, :n_before], cache)
    rest = range(n_before, len(ids))
    return np.stack([session.run(ids[None, i : i + 1], cache)[0].copy() for i in rest])


def _batches(model: Any, session: Session, ids: Array) -> tuple[Array, Array]:
    """Last logits and those of one further token, of three rows of unequal length."""
    import torch

    rows = [ids[:n] for n in (5, max(len(ids) - N_IDS // 2, 11), max(len(ids) // 3, 8))]
    lengths = np.asarray([len(row) for row in rows], dtype=np.int32)
    longest = int(lengths.max())
    left = torch.zeros(len(rows), longest, dtype=torch.long)
    right = np.zeros((len(rows), longest), dtype=np.int64)
    mask = torch.zeros_like(left)
    for number, row in enumerate(rows):
        left[number, longest - len(row) :] = torch.from_numpy(row)
        mask[number, longest - len(row) :] = 1
        right[number, : len(row)] = row
    following = ids[-len(rows) :]
    with torch.no_grad():
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        out = model(input_ids=left, attention_mask=mask, position_ids=positions, use_cache=True)
        after = model(
            input_ids=torch.from_numpy(following)[:, None],
            attention_mask=torch.cat([mask, torch.ones(len(rows), 1, dtype=torch.long)], 1),
            position_ids=torch.from_numpy(lengths.astype(np.int64))[:, None],
            past_key_values=out.past_key_values,
        )
    expected = torch.cat([out.logits[:, -1], after.logits[:, -1]]).numpy()
    cache = session.new_cache(len(rows), longest + 1)
    first = session.run(right, cache, lengths=lengths).copy()
    second = session.run(following[:, None], cache).copy()
    return expected, np.concatenate([first, second])


def _compare(pairs: Sequence[tuple[str, Array, Array]], max_diff: float, max_kl: float) -> Parity:
    worst_diff = worst_kl = 0.0
    n_tokens = 0
    for name, expected, found in pairs:
        diff = float(np.abs(expected - found).max())
        kl = float(mean_kl(expected, found))
        if not (diff <= max_diff and kl <= max_kl):
            raise ParityError(
                f"parity of {name}: max |Δlogit| {diff:.3g} (allowed {max_diff:.3g}), "
                f"KL {kl:.3g} nats (allowed {max_kl:g}); nothing was written"
            )
        worst_diff, worst_kl = max(worst_diff, diff), max(worst_kl, kl)
        n_tokens += len(expected)
    return Parity(max_abs_logit_diff=worst_diff, max_kl=max(worst_kl, 0.0), n_tokens=n_tokens)


def mean_kl(expected: Array, found: Array) -> float:
    """KL(expected ‖ found) of softmaxed logits [N, V], nats a row, in float64."""
    p, q = (log_softmax(x.astype(np.float64)) for x in (expected, found))
    return float((np.exp(p) * (p - q)).sum(-1).mean())
