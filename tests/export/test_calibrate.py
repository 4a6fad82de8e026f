"""What is observed is what torch's own layers read; texts are cut and refused as they say."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdexport.bundle import Bundle
from kdexport.errors import InputError
from kdexport.export.calibrate import (
    FEWEST_TOKENS,
    MOST_TEXTS,
    N_BEGINNING,
    N_SAMPLES,
    N_WRITTEN,
    TEXT_TOKENS,
    Observed,
    builtin_text,
    calibration_texts,
    observe,
    written_texts,
)
from kdexport.export.draft import Draft
from kdexport.runtime.text import TextCodec, load_text
from kdexport.train.model import load_model
from tests.export.conftest import Seen
from tests.export.drafts import Array

LAYERS = {"llama": ("o_proj", "down_proj"), "gpt2": ("attn.c_proj", "mlp.c_proj")}


@pytest.fixture
def bundle(parents: dict[str, Bundle]) -> Bundle:
    return parents["llama"]


@pytest.fixture
def codec(bundle: Bundle) -> TextCodec:
    return load_text(bundle)


def read_by_layers(checkpoint: Path, names: tuple[str, ...], texts: list[Array]) -> list[Array]:
    """What torch's layers of these names read of each text in turn, in the model's order."""
    model = load_model(checkpoint)
    read: dict[str, list[Array]] = {}

    def keep(name: str) -> Any:
        return lambda _, inputs: read.setdefault(name, []).append(inputs[0][0].numpy().copy())

    for name, layer in model.named_modules():
        if name.endswith(names):
            layer.register_forward_pre_hook(keep(name))
    with torch.no_grad():
        for ids in texts:
            model(torch.from_numpy(ids)[None])
    return [np.concatenate(parts) for parts in read.values()]


@pytest.mark.parametrize("family", LAYERS)
def test_observed_is_what_torch_reads(
    checkpoints: dict[str, Path], seen: dict[str, Seen], texts: list[Array], family: str
) -> None:
    draft, observed = seen[family]
    expected = read_by_layers(checkpoints[family], LAYERS[family], texts)
    nodes = [
        n for n in draft.products() if any(f".{k}." in n.input[1] for k in ("o_proj", "down_proj"))
    ]
    assert len(nodes) == len(expected) == 4
    for node, x in zip(nodes, expected, strict=True):
        found = observed[node.input[0]]
        wide = x.astype(np.float64)
        # float32 of some hundred sums, and the model's own on the way
        np.testing.assert_allclose(found.largest, np.abs(wide).max(0), rtol=1e-3)
        gram = wide.T @ wide
        np.testing.assert_allclose(found.gram, gram, atol=1e-4 * np.abs(gram).max())
        distances = np.abs(found.samples[:, None] - x[None]).max(-1)
        assert distances.min(1).max() < 1e-3 * np.abs(x).max()
        assert len(set(distances.argmin(1))) == len(found.samples) >= N_SAMPLES
        thirds = np.searchsorted(
            np.cumsum([len(ids) for ids in texts]), distances.argmin(1), "right"
        )
        assert (np.bincount(thirds) >= len(found.samples) // 3 - 1).all()  # of every text


def test_samples_are_of_all_of_a_text(
    bundle: Bundle, seen: dict[str, Seen], texts: list[Array]
) -> None:
    draft = seen["llama"][0]
    found = observe(bundle, draft, [texts[0][:200], texts[0][:20]])
    alone = observe(bundle, draft, [texts[0][:200]])
    node = next(node for node in draft.products() if ".down_proj." in node.input[1])
    last = found[node.input[0]].samples[N_SAMPLES // 2 - 1]  # of the first text
    near_the_end = 200 // (N_SAMPLES // 2) * (N_SAMPLES // 2 - 1)
    assert near_the_end > 180
    every_third = alone[node.input[0]].samples  # of the same text: rows 0, 3, 6, ...
    np.testing.assert_allclose(last, every_third[near_the_end // 3], atol=1e-4)
    assert len(found[node.input[0]].samples) == N_SAMPLES // 2 + 20


def test_every_product_is_observed(
    bundle: Bundle, seen: dict[str, Seen], texts: list[Array]
) -> None:
    draft, observed = seen["llama"]
    assert set(observed) == {node.input[0] for node in draft.products()}
    for node in draft.products():
        found = observed[node.input[0]]
        width = len(draft.weights[node.input[1]])
        assert found.largest.shape == (width,) and found.gram.shape == (width, width)
        assert {x.dtype for x in (found.largest, found.gram, found.samples)} == {np.dtype("f4")}
    told: list[tuple[int, int]] = []
    observe(bundle, draft, texts[:2], lambda done, of: told.append((done, of)))
    assert told == [(1, 2), (2, 2)]


def test_scaled_is_what_would_be_observed() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 8)).astype(np.float32)
    s = rng.uniform(0.1, 10, 8).astype(np.float32)

    def of(x: Array) -> Observed:
        return Observed(np.abs(x).max(0), x.T @ x, x[:5])

    found, expected = of(x).scaled(s), of(x / s)
    for name in ("largest", "gram", "samples"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-4)


def test_a_text_is_cut_into_pieces(bundle: Bundle, codec: TextCodec, tmp_path: Path) -> None:
    file = tmp_path / "t.txt"
    file.write_text("Fresh bread from our oven, 20% off! Überall 你好.\n" * 100, "utf-8")
    ids = codec.encode(file.read_text("utf-8"))
    pieces = calibration_texts(bundle, codec, file)
    assert [len(piece) for piece in pieces[:-1]] == [TEXT_TOKENS] * (len(pieces) - 1)
    joined = np.concatenate(pieces).tolist()
    assert joined == ids[: len(joined)] and len(ids) - len(joined) < TEXT_TOKENS // 2
    assert pieces[0].dtype == np.int64


def test_of_a_long_text_pieces_are_taken_from_all_over(
    bundle: Bundle, codec: TextCodec, tmp_path: Path
) -> None:
    file = tmp_path / "t.txt"
    file.write_text("".join(f"{n} loaves " for n in range(2000)), "utf-8")
    pieces = calibration_texts(bundle, codec, file)
    assert len(pieces) == MOST_TEXTS
    first, last = (codec.decode(pieces[n].tolist()) for n in (0, -1))
    numbers = [int(word) for word in last.split()[1:-1] if word.isdigit()]
    assert first.startswith("0 loaves") and min(numbers) > 1850


def test_pieces_are_no_longer_than_the_model_reads(bundle: Bundle, codec: TextCodec) -> None:
    model = bundle.manifest.model.model_copy(update={"max_length": 40})
    short = Bundle(bundle.path, bundle.manifest.model_copy(update={"model": model}), "")
    lengths = [len(piece) for piece in calibration_texts(short, codec, None)]
    assert max(lengths) == 40 and min(lengths) >= 20


def test_pairs_are_read_but_for_their_test_split(
    bundle: Bundle, codec: TextCodec, tmp_path: Path
) -> None:
    file = tmp_path / "pairs.jsonl"
    rows = [
        {"id": "a", "split": "train", "prompt": "ASKED", "completion": "ANSWERED"},
        {"id": "b", "split": "validation", "text": "PLAIN"},
        {"id": "c", "split": "test", "prompt": "HIDDEN", "completion": "HIDDEN"},
    ]
    rows += [{"split": "train", "text": f"Bread number {n} is fresh."} for n in range(200)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    pieces = calibration_texts(bundle, codec, file)
    text = "".join(codec.tokenizer.decode(p.tolist(), skip_special_tokens=False) for p in pieces)
    asked = codec.render_chat([{"role": "user", "content": "ASKED"}])
    assert text.startswith(f"{asked}ANSWERED\n\nPLAIN\n\nBread number 0 is fresh.")
    assert "HIDDEN" not in text and builtin_text()[:40] not in text


@pytest.mark.parametrize("content", ["", "Two words."])
def test_too_short_a_text_is_followed_by_the_page(
    bundle: Bundle, codec: TextCodec, tmp_path: Path, content: str
) -> None:
    file = tmp_path / "t.txt"
    file.write_text(content, "utf-8")
    pieces = calibration_texts(bundle, codec, file)
    text = codec.decode(np.concatenate(pieces).tolist())
    assert text.startswith(content + builtin_text()[:40])
    page = np.concatenate(calibration_texts(bundle, codec, None))
    assert sum(map(len, pieces)) >= min(len(page), FEWEST_TOKENS)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "there is no such file"),
        ("none.jsonl", None, "there is no such file"),
        ("latin.txt", "café".encode("latin-1"), "is not UTF-8"),
        ("broken.jsonl", b'{"text": "a"}\n{"text": ', "is not JSON"),
        ("empty.jsonl", b"", "is empty"),
        ("other.jsonl", b'{"copy": "a"}', "holds neither messages, nor prompt"),
    ],
)
def test_odd_files_are_one_line(
    bundle: Bundle,
    codec: TextCodec,
    tmp_path: Path,
    name: str,
    content: bytes | None,
    message: str,
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        calibration_texts(bundle, codec, tmp_path / name)
    assert caught.value.where.startswith(str(tmp_path / name))
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="cannot be read"):
        calibration_texts(bundle, codec, tmp_path)


def test_a_model_writes_the_same_texts_again(bundle: Bundle, codec: TextCodec) -> None:
    told: list[tuple[int, int]] = []
    first = written_texts(bundle, codec, lambda done, of: told.append((done, of)))
    second = written_texts(bundle, codec)
    assert [ids.tolist() for ids in first] == [ids.tolist() for ids in second]
    assert {len(ids) for ids in first} == {TEXT_TOKENS}
    beginnings = [codec.encode(text)[:N_BEGINNING] for text in builtin_text().split("\n\n")]
    assert [ids[:N_BEGINNING].tolist() for ids in first] == beginnings[: len(first)]
    assert len({tuple(ids) for ids in first}) == len(first) <= N_WRITTEN
    assert told[-1] == (len(first), len(first))


def test_the_draft_that_is_observed_is_left_as_it_is(seen: dict[str, Seen]) -> None:
    draft: Draft = seen["llama"][0]
    assert [value.name for value in draft.graph.output].count("logits") == 1
    assert not {n.input[0] for n in draft.products()} & {v.name for v in draft.graph.output}
