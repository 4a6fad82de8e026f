"""Keys and values in 8 bits: what a step is, what is lost by it, and what stays as it was."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from kdexport.bundle import Bundle
from kdexport.errors import InputError
from kdexport.export.cache_in_8_bits import (
    LARGEST,
    MARGIN,
    cache_in_8_bits,
    cache_scales,
    check_attention,
    rotated_with,
    scale_for,
)
from kdexport.export.calibrate import feeds
from kdexport.export.draft import Draft, load_draft
from kdexport.export.parity import mean_kl, token_by_token
from kdexport.export.quantize import Wishes, quantize_bundle
from kdexport.export.standard import STANDARD
from kdexport.runtime.generate import generate, generate_batch
from kdexport.runtime.sample import make_sampler
from kdexport.runtime.session import open_graph, open_session
from tests.export.drafts import Array, opened, product_draft

FAMILIES = ("llama", "gpt2", "gpt2-varied", "gemma3-varied")
MOST_KL = 0.006  # nats that int8 keys and values cost; random weights, twice what was seen
HEADS, KV_HEADS, SIZE = 4, 2, 32
WIDTH = (HEADS + 2 * KV_HEADS) * SIZE
PAIRS = {"interleaved": {"rotary_interleaved": 1}, "halves": {}, "none": {"do_rotary": 0}}


def attention(rotary: int = 0, **attributes: int) -> Draft:
    """GroupQueryAttention of packed ``x`` [B, S, WIDTH], ``rotary`` channels of SIZE rotated."""
    cache = TensorProto.FLOAT, ["B", KV_HEADS, "C", SIZE]
    pasts = ["past_key_values.0.key", "past_key_values.0.value"]
    presents = ["present.0.key", "present.0.value"]
    node = helper.make_node(
        "GroupQueryAttention",
        ["x", "", "", *pasts, "last", "total", *(["cos", "sin"] if rotary else [])],
        ["y", *presents],
        domain="com.microsoft",
        num_heads=HEADS,
        kv_num_heads=KV_HEADS,
        **({"do_rotary": int(rotary > 0)} | attributes),
    )
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", "S", WIDTH]),
            *(helper.make_tensor_value_info(name, *cache) for name in pasts),
            helper.make_tensor_value_info("last", TensorProto.INT32, ["B"]),
            helper.make_tensor_value_info("total", TensorProto.INT32, []),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", "S", HEADS * SIZE]),
            *(helper.make_tensor_value_info(name, *cache) for name in presents),
        ],
    )
    angles = np.outer(np.arange(32), 0.9 ** np.arange(max(rotary // 2, 1)))
    tables = {"cos": np.cos(angles), "sin": np.sin(angles)} if rotary else {}
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return Draft(graph, opsets, {name: t.astype(np.float32) for name, t in tables.items()})


def attend(draft: Draft, x: Array) -> list[Array]:
    """y, keys and values of texts read from their beginnings."""
    session = opened(draft)
    n_rows, n_tokens, _ = x.shape
    kinds = {"tensor(float)": np.float32, "tensor(int8)": np.int8}
    inputs = {
        value.name: np.zeros((n_rows, KV_HEADS, n_tokens, SIZE), kinds[value.type])
        for value in session.get_inputs()
        if value.name.startswith("past_key_values.")
    }
    last = np.full(n_rows, n_tokens - 1, dtype=np.int32)
    inputs |= {"x": x, "last": last, "total": np.asarray(n_tokens, dtype=np.int32)}
    return [np.asarray(found) for found in session.run(None, inputs)]


def steps(seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    sizes = rng.lognormal(sigma=1.5, size=(2, KV_HEADS * SIZE))
    names = ("past_key_values.0.key", "past_key_values.0.value")
    return {name: scale_for(size) for name, size in zip(names, sizes, strict=True)}


@pytest.fixture
def made(quantized: Callable[..., Bundle]) -> Callable[[str, str], Bundle]:
    """A family by what it keeps keys and values in."""

    def by_cache(family: str, kv_cache: str) -> Bundle:
        wishes = Wishes(kv_cache="int8" if kv_cache == "int8" else "float32")
        return quantized(family, "int8-portable", wishes)

    return by_cache


@given(seed=st.integers(0, 10**6), size=st.floats(0.01, 30))
def test_what_is_kept_is_off_by_half_a_step_or_clipped(seed: int, size: float) -> None:
    """Scales are of channels, whatever they are; what lies beyond their reach stays finite."""
    x = np.random.default_rng(seed).normal(scale=size, size=(2, 5, WIDTH)).astype(np.float32)
    draft, scales = attention(), steps(seed)
    exact = attend(draft, x)[1:]
    cache_in_8_bits(draft, scales)
    y, *found = attend(draft, x)
    for name, whole, kept in zip(scales, exact, found, strict=True):
        assert kept.dtype == np.int8
        scale = scales[name].reshape(1, KV_HEADS, 1, SIZE)
        within = np.abs(whole) <= LARGEST * scale
        off = np.abs(kept * scale - whole) / scale
        assert (off[within] <= 0.5 + 1e-3).all()
        assert (np.abs(kept[~within].astype(int)) >= LARGEST).all()
        assert (np.sign(kept[~within]) == np.sign(whole[~within])).all()
    assert np.isfinite(y).all()


def test_a_step_reaches_beyond_what_was_seen() -> None:
    seen = np.asarray([[0.0, 1e-9, 2.0, 300.0]], dtype=np.float32)
    scale = scale_for(seen)
    assert scale.dtype == np.float32 and (scale > 0).all()
    np.testing.assert_allclose(LARGEST * scale[0, 2:], MARGIN * seen[0, 2:], rtol=1e-6)


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("rotary", [SIZE, SIZE // 2])
def test_what_is_said_to_be_rotated_together_is(kind: str, rotary: int) -> None:
    """A channel of a key reaches, over places, the other of its pair, and no third."""
    facts = PAIRS[kind]
    draft = attention(rotary, **facts)
    x = np.zeros((SIZE, 32, WIDTH), dtype=np.float32)
    for channel in range(SIZE):
        x[channel, :, HEADS * SIZE + channel] = 1
    keys = attend(draft, x)[1][:, 0]
    reached = np.abs(keys).max(1) > 1e-3
    expected = np.eye(SIZE, dtype=bool)
    expected[np.arange(SIZE), rotated_with(draft, draft.graph.node[0], SIZE)] = True
    np.testing.assert_array_equal(reached, expected)


def test_the_pairs_of_tables_that_were_taken_apart_are_the_same() -> None:
    draft = attention(SIZE // 2)
    node = draft.graph.node[0]
    whole = rotated_with(draft, node, SIZE)
    draft.weights["cos.shape"] = np.asarray(draft.weights.pop("cos").shape, dtype=np.int64)
    np.testing.assert_array_equal(rotated_with(draft, node, SIZE), whole)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_steps_are_those_of_what_the_texts_leave(
    parents: dict[str, Bundle], texts: list[Array], family: str
) -> None:
    bundle = parents[family]
    name = bundle.manifest.graphs.decode
    draft = load_draft(bundle.file(name))
    scales = cache_scales(bundle, draft, texts)
    session = open_graph(bundle.file(name), 1)
    model = bundle.manifest.model
    assert len(scales) == 2 * model.n_layers
    for past, scale in scales.items():
        present = past.replace("past_key_values.", "present.")
        seen = [session.run([present], feeds(bundle, session, ids))[0] for ids in texts]
        largest = np.max([np.abs(one).max((0, 2)) for one in seen], axis=0)
        reach = LARGEST / MARGIN * scale.reshape(largest.shape)
        if past.endswith(".key") and not family.startswith("gpt2"):
            half = model.head_dim // 2
            largest = np.tile(np.maximum(largest[:, :half], largest[:, half:]), 2)
        np.testing.assert_allclose(reach, largest, rtol=1e-4)  # threads sum in another order


@pytest.mark.parametrize("family", FAMILIES)
def test_it_stays_near_and_writes_alike(
    made: Callable[[str, str], Bundle], texts: list[Array], family: str
) -> None:
    whole, eighth = (open_session(made(family, kind)) for kind in ("float32", "int8"))
    for ids in texts[:2]:
        expected = whole.score(ids.tolist()).copy()
        assert 0 < mean_kl(expected, eighth.score(ids.tolist())) < MOST_KL
    ids = texts[2][:40]
    expected = token_by_token(whole, ids)
    assert mean_kl(expected, token_by_token(eighth, ids)) < MOST_KL
    prompt = ids[:8].tolist()
    written = [
        [s.token_id for s in generate(one, prompt, make_sampler(), max_new_tokens=8)]
        for one in (whole, eighth)
    ]
    assert written[0][0] == written[1][0]


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_of_a_batch_write_as_alone(made: Callable[[str, str], Bundle], family: str) -> None:
    session = open_session(made(family, "int8"), n_threads=1)
    prompts = [[5, 6, 7], [9] * 11, [20, 30], [8, 7, 6, 5, 4]]
    batched = generate_batch(
        session, prompts, make_sampler(), max_new_tokens=[12] * 4, batch_size=4, ignore_eos=True
    )
    for prompt, together in zip(prompts, batched, strict=True):
        steps = generate(session, prompt, make_sampler(), max_new_tokens=12, ignore_eos=True)
        assert [step.token_id for step in steps] == list(together.ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_not_of_the_cache_is_as_without(
    made: Callable[[str, str], Bundle], family: str
) -> None:
    """The graph for other tools is the same to the byte but for places in the weights' file."""
    whole, eighth = made(family, "float32"), made(family, "int8")
    assert (whole.manifest.kv_cache, eighth.manifest.kv_cache) == ("float32", "int8")
    graphs = [onnx.load(b.file(STANDARD), load_external_data=False).graph for b in (whole, eighth)]
    for graph in graphs:
        del graph.initializer[:]
    assert graphs[0] == graphs[1]
    drafts = [load_draft(b.file(b.manifest.graphs.decode)) for b in (whole, eighth)]
    names = [set(draft.weights) for draft in drafts]
    assert names[1] - names[0] == {
        f"{value.name}.scale"
        for value in drafts[1].graph.input
        if value.name.startswith("past_key_values.")
    }
    for name in names[0]:
        np.testing.assert_array_equal(drafts[0].weights[name], drafts[1].weights[name])


def test_a_graph_without_fused_attention_is_refused(
    parents: dict[str, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="no fused attention"):
        check_attention(product_draft(np.eye(4, dtype=np.float32)))
    monkeypatch.setattr("kdexport.export.cache_in_8_bits._attentions", lambda draft: iter(()))
    with pytest.raises(InputError, match="no fused attention"):
        quantize_bundle(parents["llama"], "int8", tmp_path / "q", Wishes(kv_cache="int8"))
    assert not list(tmp_path.iterdir())
