"""With what is kept of a prompt or without, the same calls are made: the same bits come of them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdexport.bundle import Bundle
from kdexport.errors import InputError
from kdexport.runtime.generate import Step, generate
from kdexport.runtime.prompt_cache import BLOCK, PromptCache, Reads
from kdexport.runtime.sample import make_sampler
from kdexport.runtime.session import Session, open_session

IDS = np.random.default_rng(1).integers(3, 300, 160).tolist()
BUNDLES = ["llama_bundle", "gpt2_bundle", "int8_bundle", "kv8_bundle"]


@pytest.fixture(scope="module")
def session(llama_bundle: Bundle) -> Session:
    return open_session(llama_bundle, n_threads=1)


def write(session: Session, kept: PromptCache | None, ids: list[int], seed: int = 0) -> list[Step]:
    sampler = make_sampler(temperature=0.7 if seed else 0)
    cache = kept.begin(ids, 12) if kept else None
    steps = generate(session, ids, sampler, max_new_tokens=12, cache=cache, seed=seed, n_logprobs=3)
    return list(steps)


@pytest.mark.parametrize("bundle", BUNDLES)
@pytest.mark.parametrize("n", [1, BLOCK, BLOCK + 1, BLOCK + 2, 2 * BLOCK + 1, 100, 129])
def test_a_hit_gives_what_a_miss_gives_to_the_bit(
    bundle: str, n: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    session = open_session(request.getfixturevalue(bundle), n_threads=1)
    kept = PromptCache(session, folder=tmp_path)
    missed = write(session, kept, IDS[:n])
    assert kept.reads == Reads(computed=(n - 2) // BLOCK * BLOCK if n > 1 else 0)
    hit = write(session, kept, IDS[:n])
    again = PromptCache(session, folder=tmp_path)
    from_disk = write(session, again, IDS[:n])
    assert missed == hit == from_disk
    n_blocks = kept.reads.computed
    assert kept.reads.from_memory == again.reads.from_disk == n_blocks
    assert again.reads.computed == again.reads.from_memory == 0


@pytest.mark.parametrize("bundle", ["llama_bundle", "gpt2_bundle"])
@pytest.mark.parametrize("n", [*range(30, 37), 64, 65, 66, 67, 97, 98, 128, 129, 130])
def test_in_float32_the_text_is_that_of_no_cache(
    bundle: str, n: int, request: pytest.FixtureRequest
) -> None:
    session = open_session(request.getfixturevalue(bundle), n_threads=1)
    kept = PromptCache(session)
    for seed in (0, 5):
        plain, cached = write(session, None, IDS[:n], seed), write(session, kept, IDS[:n], seed)
        assert [s.token_id for s in cached] == [s.token_id for s in plain]
        # Sums of float32 in another order where a token is alone among its call's.
        found, expected = ([s.logprob for s in steps] for steps in (cached, plain))
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_prompts_share_what_they_begin_with(session: Session) -> None:
    kept = PromptCache(session)
    brand, other = IDS[: 2 * BLOCK + 5], IDS[: BLOCK + 3] + IDS[100:140]
    kept.begin(brand + [7] * 40)
    before = kept.reads.computed
    assert kept.begin(brand + [9] * 40).lengths.tolist() == [3 * BLOCK]
    assert kept.reads.from_memory == 2 * BLOCK
    assert kept.reads.computed == before + BLOCK
    write_other = write(session, kept, other)
    assert kept.reads.from_memory == 3 * BLOCK
    assert write_other == write(session, PromptCache(session), other)


def test_the_same_block_after_another_past_is_another(session: Session) -> None:
    kept = PromptCache(session)
    kept.begin([5] * BLOCK + [9] * BLOCK + [1, 1])
    kept.begin([6] * BLOCK + [9] * BLOCK + [1, 1])
    assert kept.reads == Reads(computed=4 * BLOCK)


def test_a_text_that_goes_on_does_not_change_what_is_kept(session: Session) -> None:
    kept = PromptCache(session)
    first = write(session, kept, IDS[:70])
    cache = kept.begin(IDS[:70])
    for buffer in cache.buffers:
        buffer[...] = 0
    assert write(session, kept, IDS[:70]) == first


@settings(max_examples=25, deadline=None)
@given(order=st.lists(st.integers(0, 5), min_size=1, max_size=12), n_blocks=st.integers(0, 6))
def test_memory_is_bounded_and_the_least_used_goes(
    session: Session, order: list[int], n_blocks: int
) -> None:
    one = session.new_cache(1, BLOCK).n_bytes
    kept = PromptCache(session, max_bytes=n_blocks * one)
    recent: list[int] = []  # a model of the order: single blocks, the latest last
    for number in order:
        hits = kept.reads.from_memory
        kept.begin([number + 10] * BLOCK + [3, 3])
        assert (kept.reads.from_memory > hits) == (number in recent)
        recent = [n for n in recent if n != number] + [number]
        recent = recent[len(recent) - min(len(recent), n_blocks) :]
        assert kept.n_bytes == one * len(recent)


def test_beginnings_outlive_what_follows_them(session: Session) -> None:
    one = session.new_cache(1, BLOCK).n_bytes
    kept = PromptCache(session, max_bytes=2 * one)
    kept.begin(IDS[: 3 * BLOCK + 2])
    kept.reads = Reads()
    kept.begin(IDS[: 2 * BLOCK + 2])
    assert kept.reads == Reads(from_memory=2 * BLOCK)


def damaged(content: bytes) -> list[bytes]:
    flipped = bytearray(content)
    flipped[-7] ^= 1
    head = content.index(b"\n") + 1
    swapped = content.replace(b"block 1 ", b"block 1 " + b"0" * 64 + b" ", 1)
    other_key = content[:24] + bytes([content[24] ^ 1]) + content[25:]
    return [b"", content[:-1], content + b"\0", bytes(flipped), content[head:], swapped, other_key]


@pytest.mark.parametrize("kind", range(7))
def test_a_damaged_file_is_one_line_and_computed_again(
    session: Session, tmp_path: Path, kind: int
) -> None:
    expected = write(session, PromptCache(session, folder=tmp_path), IDS[:70])
    file = sorted(tmp_path.rglob("*.kv"))[0]
    whole = file.read_bytes()
    file.write_bytes(damaged(whole)[kind])
    lines: list[str] = []
    kept = PromptCache(session, folder=tmp_path, warn=lines.append)
    assert write(session, kept, IDS[:70]) == expected
    assert kept.reads == Reads(from_disk=BLOCK, computed=BLOCK)
    [line] = lines
    assert line.startswith(str(file)) and line.endswith("it is computed again")
    assert file.read_bytes() == whole


def test_a_link_in_the_folder_is_not_followed(session: Session, tmp_path: Path) -> None:
    PromptCache(session, folder=tmp_path / "kept").begin(IDS[: BLOCK + 2])
    [file] = (tmp_path / "kept").rglob("*.kv")
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    lines: list[str] = []
    kept = PromptCache(session, folder=tmp_path / "kept", warn=lines.append)
    kept.begin(IDS[: BLOCK + 2])
    assert kept.reads.computed == BLOCK and len(lines) == 1
    assert not file.is_symlink()


def test_another_bundle_s_blocks_are_not_found(
    llama_bundle: Bundle, int8_bundle: Bundle, tmp_path: Path
) -> None:
    for bundle in (llama_bundle, int8_bundle):
        kept = PromptCache(open_session(bundle, n_threads=1), folder=tmp_path)
        kept.begin(IDS[:70])
        assert kept.reads == Reads(computed=2 * BLOCK)
    assert len(list(tmp_path.iterdir())) == 2


def test_another_graph_of_the_bundle_rounds_otherwise(llama_bundle: Bundle, tmp_path: Path) -> None:
    one, other = (open_session(llama_bundle, n_threads=1) for _ in range(2))
    other.graph = "onnx/another.onnx"
    PromptCache(one, folder=tmp_path).begin(IDS[:70])
    for session, found in ((one, 2 * BLOCK), (other, 0)):
        kept = PromptCache(session, folder=tmp_path)
        kept.begin(IDS[:70])
        assert kept.reads.from_disk == found


def test_the_disk_is_bounded_and_strangers_stay(session: Session, tmp_path: Path) -> None:
    stranger = tmp_path / "mine" / "notes.kv"
    stranger.parent.mkdir()
    stranger.write_text("not ours")
    one = session.new_cache(1, BLOCK).n_bytes + 200  # the line before the numbers
    kept = PromptCache(session, folder=tmp_path, max_disk_bytes=2 * one)
    for number in range(5):
        kept.begin([number + 10] * BLOCK + [3, 3])
    again = PromptCache(session, folder=tmp_path)
    again.begin([14] * BLOCK + [3, 3])
    again.begin([13] * BLOCK + [3, 3])
    assert again.reads == Reads(from_disk=2 * BLOCK)
    assert len(list(tmp_path.rglob("*.kv"))) == 3 and stranger.exists()


def test_a_folder_that_cannot_be_one_is_refused(session: Session, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made a folder"):
        PromptCache(session, folder=tmp_path / "file")


def test_a_folder_that_goes_away_is_a_line(session: Session, tmp_path: Path) -> None:
    lines: list[str] = []
    kept = PromptCache(session, folder=tmp_path / "kept", warn=lines.append)
    expected = write(session, PromptCache(session), IDS[:40])
    [inner] = (tmp_path / "kept").iterdir()
    inner.rmdir()
    assert write(session, kept, IDS[:40]) == expected
    assert len(lines) == 1 and "is not kept" in lines[0]


def test_a_prompt_beyond_the_model_is_refused_before_it_is_read(session: Session) -> None:
    kept = PromptCache(session)
    with pytest.raises(InputError, match="the prompt has 256 tokens"):
        write(session, kept, [5] * 256)
    with pytest.raises(InputError, match="the prompt is empty"):
        write(session, kept, [])
    assert kept.reads == Reads()
