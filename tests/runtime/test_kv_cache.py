"""Buffers grow seldom, are cut and forked cheaply, and what lies behind a row is never read."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdexport.bundle import Bundle, Manifest
from kdexport.runtime.kv_cache import KVCache
from kdexport.runtime.session import Session, open_session

IDS = np.random.default_rng(0).integers(3, 300, 120)


@pytest.fixture(scope="module")
def session(llama_bundle: Bundle) -> Session:
    return open_session(llama_bundle, n_threads=1)


@pytest.fixture(scope="module")
def manifest(llama_bundle: Bundle) -> Manifest:
    return llama_bundle.manifest


def numbered(manifest: Manifest, lengths: list[int], capacity: int) -> KVCache:
    """A cache whose numbers tell their row and place."""
    cache = KVCache(manifest, len(lengths), capacity)
    for number, buffer in enumerate(cache.buffers):
        for row in range(len(lengths)):
            places = np.arange(buffer.shape[2])[:, None]
            buffer[row] = 10_000 * number + 1_000 * row + places
    cache.lengths = np.asarray(lengths, dtype=np.int32)
    return cache


def test_a_long_text_moves_its_buffers_seldom(session: Session) -> None:
    cache = session.new_cache(1, 4)
    for token in IDS:
        session.run(np.asarray([[token]]), cache)
    assert cache.version == math.ceil(math.log2(len(IDS) / 4))
    assert cache.capacity == 128


def test_the_bytes_are_the_buffers(manifest: Manifest) -> None:
    model = manifest.model
    cache = KVCache(manifest, 3, 40)
    assert cache.n_bytes == 2 * model.n_layers * 3 * model.n_kv_heads * 40 * model.head_dim * 4


def test_in_8_bits_they_are_a_quarter(manifest: Manifest) -> None:
    eighth = KVCache(manifest.model_copy(update={"kv_cache": "int8"}), 3, 40)
    assert {buffer.dtype for buffer in eighth.buffers} == {np.dtype("i1")}
    assert 4 * eighth.n_bytes == KVCache(manifest, 3, 40).n_bytes


def test_capacity_ends_at_the_model_s_length(manifest: Manifest) -> None:
    cache = KVCache(manifest, 1, 200)
    cache.reserve(201)
    assert cache.capacity == manifest.model.max_length == 256


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    grow=st.integers(1, 40),
    data=st.data(),
)
def test_rows_and_growth_keep_every_token(
    manifest: Manifest, lengths: list[int], grow: int, data: st.DataObject
) -> None:
    cache = numbered(manifest, lengths, 9)
    rows = data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=5))
    expected = numbered(manifest, lengths, 9)
    cache.keep_rows(rows)
    cache.reserve(grow)
    assert cache.lengths.tolist() == [lengths[row] for row in rows]
    assert all(buffer.shape[2] == cache.capacity >= grow for buffer in cache.buffers)
    for buffer, old in zip(cache.buffers, expected.buffers, strict=True):
        for place, row in enumerate(rows):
            n = lengths[row]
            np.testing.assert_array_equal(buffer[place, :, :n], old[row, :, :n])


def test_a_row_named_twice_is_two_rows(manifest: Manifest) -> None:
    cache = numbered(manifest, [3], 8)
    cache.keep_rows([0, 0])
    cache.buffers[0][0] = -1
    assert (cache.buffers[0][1, :, :3] >= 0).all()


@pytest.mark.parametrize("bundle", ["llama_bundle", "gpt2_bundle", "int8_bundle", "kv8_bundle"])
def test_what_was_cut_off_leaves_no_trace(bundle: str, request: pytest.FixtureRequest) -> None:
    session = open_session(request.getfixturevalue(bundle), n_threads=1)
    straight, cut = session.new_cache(1, 64), session.new_cache(1, 64)
    for cache in (straight, cut):
        session.run(IDS[None, :20], cache)
    session.run(IDS[None, 50:60], cut)
    cut.truncate(20)
    for buffer in cut.buffers:
        buffer[:, :, 20:] = np.nan if buffer.dtype == np.float32 else 99
    for begin, end in ((20, 25), (25, 26)):  # a call of many tokens and a call of one
        expected = session.run(IDS[None, begin:end], straight).copy()
        np.testing.assert_array_equal(session.run(IDS[None, begin:end], cut), expected)


def test_rows_are_cut_each_to_its_length(session: Session) -> None:
    batch = np.stack([IDS[:6], IDS[10:16]])
    cache = session.new_cache(2, 16)
    session.run(batch, cache)
    cache.truncate([2, 5])
    found = session.run(np.asarray([[7], [8]]), cache)
    # Against the text read at once: float32 sums in another order, hence the tolerance.
    np.testing.assert_allclose(found[0], session.score([*IDS[:2], 7])[-1], atol=1e-4)
    cache.truncate([3, 5])
    found = session.run(np.asarray([[9], [9]]), cache)[1].copy()
    np.testing.assert_allclose(found, session.score([*IDS[10:15], 9])[-1], atol=1e-4)


@pytest.mark.parametrize("lengths", [4, -1, [1, 4]])
def test_a_row_cannot_be_cut_to_more_than_it_has(
    manifest: Manifest, lengths: int | list[int]
) -> None:
    with pytest.raises(ValueError, match="cannot cut rows of"):
        numbered(manifest, [3, 3], 8).truncate(lengths)


def test_what_is_read_can_be_put_back(manifest: Manifest) -> None:
    cache = numbered(manifest, [8], 8)
    other = KVCache(manifest, 1, 2)
    other.extend(cache.read(0, 3))
    other.extend(cache.read(3, 8))
    assert other.lengths.tolist() == [8]
    for buffer, expected in zip(other.buffers, cache.buffers, strict=True):
        np.testing.assert_array_equal(buffer[:, :, :8], expected)
