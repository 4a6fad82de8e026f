"""Trim a BPE tokenizer to what a corpus needs; any text still encodes and decodes exactly.

Languages count alike, however many texts there are in each. Knows the layout of ``tokenizer.json``
and nothing of models.
"""

import json
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from kdexport.errors import InputError

Json = dict[str, Any]
TEXTS_AT_ONCE = 1000  # in memory


class Said(NamedTuple):
    """A text and the language it is in, by any name."""

    text: str
    language: str = ""


def trim_tokenizer(
    tokenizer: Tokenizer, texts: Iterable[Said], size: int
) -> tuple[Tokenizer, list[int]]:
    """Keep special tokens, every byte, and the tokens most used in ``texts``, ``size`` in all.

    A token's use is the mean over languages of its share of a language's tokens. A kept token keeps
    the tokens it is merged from, so that the remaining merges still build it. Where the texts need
    fewer than ``size`` tokens, the rest is filled in the order of ids, which in a BPE vocabulary is
    the order of frequency in the tokenizer's own training text; with several languages, script
    by script, by the share that each has of them.

    Returns the new tokenizer and ``kept_ids``: position = new id, value = old id, ascending.
    Raises InputError for a tokenizer that is no BPE, and for a ``size`` below what any text needs.
    """
    spec: Json = json.loads(tokenizer.to_str())
    model: Json = spec["model"]
    if model.get("type") != "BPE":
        raise InputError(
            f"the vocabulary of a {model.get('type')} tokenizer cannot be trimmed",
            where="student.vocab_size",
            remedy="set it to null to keep the teacher's vocabulary",
        )
    vocab: dict[str, int] = model["vocab"]
    parents = _parents(model["merges"])
    special = {t["content"]: t["id"] for t in spec["added_tokens"]}
    kept = _alphabet(vocab) | special.keys()
    if model.get("unk_token"):
        kept.add(model["unk_token"])
    if len(kept) > size:
        raise InputError(
            f"{size} is too small: bytes and special tokens alone are {len(kept)}",
            where="student.vocab_size",
        )
    for token in _by_use(tokenizer, count_tokens(tokenizer, texts), vocab):
        if len(kept) >= size:
            break
        family = _closure(token, parents) - kept
        if len(kept) + len(family) <= size:
            kept |= family

    all_ids = {**vocab, **special}
    kept_ids = sorted({all_ids[token] for token in kept})
    return Tokenizer.from_str(json.dumps(_rewrite(spec, kept_ids))), kept_ids


def _parents(merges: Sequence[str | list[str]]) -> dict[str, list[tuple[str, str]]]:
    """Map each token to the pairs that merge into it."""
    parents: dict[str, list[tuple[str, str]]] = {}
    for merge in merges:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        parents.setdefault(left + right, []).append((left, right))
    return parents


def _alphabet(vocab: dict[str, int]) -> set[str]:
    """The tokens that spell any byte string: single byte-level characters, or <0x00> to <0xFF>."""
    fallback = {f"<0x{byte:02X}>" for byte in range(256)}
    return {t for t in (*ByteLevel.alphabet(), *fallback) if t in vocab}


def count_tokens(tokenizer: Tokenizer, texts: Iterable[Said]) -> dict[str, Counter[int]]:
    """How often each token id comes in each language."""
    counts: dict[str, Counter[int]] = {}
    waiting = iter(texts)
    while some := list(islice(waiting, TEXTS_AT_ONCE)):
        encodings = tokenizer.encode_batch([one.text for one in some], add_special_tokens=False)
        for one, encoding in zip(some, encodings, strict=True):
            counts.setdefault(one.language, Counter()).update(encoding.ids)
    return counts


def _by_use(
    tokenizer: Tokenizer, counts: Mapping[str, Counter[int]], vocab: dict[str, int]
) -> list[str]:
    """All tokens, those most used first, then those that are not by script and id."""
    use: dict[int, float] = {}
    for of_language in counts.values():
        total = of_language.total()
        for number, n in of_language.items():
            use[number] = use.get(number, 0.0) + n / total
    turn = _turns(tokenizer, use, vocab) if len(counts) > 1 else {}

    def place(token: str) -> tuple[float, float, int]:
        number = vocab[token]
        return -use.get(number, 0.0), turn.get(number, 0.0), number

    return sorted(vocab, key=place)


def _turns(
    tokenizer: Tokenizer, use: Mapping[int, float], vocab: dict[str, int]
) -> dict[int, float]:
    """When each token that is not used has its turn, so that scripts keep the shares of the texts.

    Within a script by id; one that the texts do not have comes last.
    """
    ids = sorted(vocab.values())
    texts = tokenizer.decode_batch([[number] for number in ids], skip_special_tokens=False)
    scripts = dict(zip(ids, map(_script, texts), strict=True))
    shares: dict[str, float] = {}
    for number, share in use.items():
        script = scripts.get(number, "")  # of a special token, which may stand in no vocabulary
        shares[script] = shares.get(script, 0.0) + share
    seen: Counter[str] = Counter()
    turns = {}
    for number in ids:
        if number not in use:
            script = scripts[number]
            seen[script] += 1
            turns[number] = seen[script] / shares[script] if script in shares else math.inf
    return turns


def _script(text: str) -> str:
    """The script of a text's first letter, by its name in Unicode; "" for none."""
    letter = next((sign for sign in text if sign.isalpha()), "")
    return unicodedata.name(letter, "").partition(" ")[0] if letter else ""


def _closure(token: str, parents: dict[str, list[tuple[str, str]]]) -> set[str]:
    """The token and all that it is merged from, down to single characters."""
    found: set[str] = set()
    waiting = [token]
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting.extend(part for pair in parents.get(current, []) for part in pair)
    return found


def _rewrite(spec: Json, kept_ids: list[int]) -> Json:
    """The tokenizer's specification with only ``kept_ids``, renumbered from 0."""
    new_id = {old: new for new, old in enumerate(kept_ids)}
    model = spec["model"]
    vocab = {t: new_id[i] for t, i in model["vocab"].items() if i in new_id}

    def alive(merge: str | list[str]) -> bool:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        return left in vocab and right in vocab and left + right in vocab

    model["vocab"] = vocab
    model["merges"] = [merge for merge in model["merges"] if alive(merge)]
    spec["added_tokens"] = [t | {"id": new_id[t["id"]]} for t in spec["added_tokens"]]
    _renumber_template(spec.get("post_processor"), new_id)
    return spec


def _renumber_template(node: Any, new_id: dict[int, int]) -> None:
    """Renumber the ids that a TemplateProcessing inserts (it may stand in a Sequence)."""
    if not isinstance(node, dict):
        return
    for processor in node.get("processors", []):
        _renumber_template(processor, new_id)
    for entry in (node.get("special_tokens") or {}).values():
        entry["ids"] = [new_id[i] for i in entry["ids"]]


def ids_of_tokens(teacher_vocab: dict[str, int], vocab: dict[str, int], where: str) -> list[int]:
    """The teacher's id of each token of another vocabulary, told token by token.

    Raises InputError, naming the first, for a token that the teacher lacks: equal sizes prove
    nothing, and neither do most of the tokens. ``where``: what the other vocabulary is of.
    """
    by_id = sorted((number, token) for token, number in vocab.items())
    for place, (number, token) in enumerate(by_id):
        if token not in teacher_vocab or number != place:
            what = f"token {number}, {json.dumps(token)}, "
            reason = "the teacher lacks" if token not in teacher_vocab else "comes after a gap"
            raise InputError(
                f"the vocabularies do not match: {what}{reason}",
                where=where,
                remedy="take a checkpoint of the teacher's tokens, init: scratch, or loss: uld",
            )
    return [teacher_vocab[token] for _, token in by_id]
