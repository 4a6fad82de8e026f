"""Memory gathered into huge pages: which memory, and that it holds what it held."""

import mmap
import platform
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdexport.bundle import Bundle
from kdexport.runtime.huge_pages import HUGE, collapse, in_huge_pages, spans_of, without
from kdexport.runtime.session import open_session

MAPS = """\
55e0b0000000-55e0b0001000 rw-p 00000000 00:00 0
55e0b1000000-55e0b1200000 rw-p 00000000 00:00 0                          [heap]
7f0000000000-7f0000400000 rw-p 00000000 fe:00 1234                       /a file.bin
7f0000400000-7f0000800000 r--p 00000000 00:00 0
7f0000800000-7f0000c00000 rw-s 00000000 00:00 0
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0                          [stack]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
"""


def test_only_private_writable_memory_without_a_file_is_taken() -> None:
    assert spans_of(MAPS) == [(0x55E0B0000000, 0x55E0B0001000), (0x55E0B1000000, 0x55E0B1200000)]


def _spans(bounds: list[int]) -> list[tuple[int, int]]:
    edges = sorted(set(bounds))
    return list(zip(edges[::2], edges[1::2], strict=False))


@given(st.lists(st.integers(0, 60)), st.lists(st.integers(0, 60)))
def test_what_is_left_is_what_the_others_lack(ours: list[int], theirs: list[int]) -> None:
    spans, others = _spans(ours), _spans(theirs)
    left = without(spans, others)
    inside = [n for a, b in left for n in range(a, b)]
    taken = {n for a, b in others for n in range(a, b)}
    assert inside == [n for a, b in spans for n in range(a, b) if n not in taken]
    assert all(a < b for a, b in left)


def _huge_kb(start: int) -> int:
    """What the system says is in huge pages of the mapping that begins at or before ``start``."""
    found = 0
    inside = False
    for line in Path("/proc/self/smaps").read_text("utf-8").splitlines():
        first, dash, rest = line.split()[0].partition("-")
        if dash and not first.endswith(":"):
            inside = int(first, 16) <= start < int(rest, 16)
        elif inside and first == "AnonHugePages:":
            found = int(line.split()[1])
    return found


def _can_collapse() -> bool:
    release = platform.release().split(".")
    has = Path("/sys/kernel/mm/transparent_hugepage/enabled").exists()
    return sys.platform == "linux" and has and (int(release[0]), int(release[1])) >= (6, 1)


@pytest.mark.skipif(not _can_collapse(), reason="needs Linux 6.1 with huge pages")
def test_pages_are_gathered_and_hold_what_they_held() -> None:
    with mmap.mmap(-1, 8 * HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        values = np.frombuffer(memory, dtype=np.uint8)
        values[:] = np.arange(values.size) % 251
        start = values.ctypes.data
        before = _huge_kb(start)
        assert collapse((start, start + values.size))
        assert _huge_kb(start) >= before + 6 * HUGE // 1024  # borders may fall inside a page
        np.testing.assert_array_equal(values, np.arange(values.size) % 251)
        del values


def test_less_than_a_huge_page_is_left_alone() -> None:
    assert not collapse((HUGE + 4096, 2 * HUGE + 4096))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what was allocated")
def test_what_the_block_allocates_is_gathered_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gathered: list[tuple[int, int]] = []
    monkeypatch.setattr("kdexport.runtime.huge_pages.collapse", gathered.append)

    def middle_of(memory: mmap.mmap) -> int:
        return np.frombuffer(memory, dtype=np.uint8).ctypes.data + 4 * HUGE

    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    before = mmap.mmap(-1, 8 * HUGE, flags=flags)
    with in_huge_pages(wanted=False):
        unwanted = mmap.mmap(-1, 8 * HUGE, flags=flags)
    assert not gathered
    with in_huge_pages():
        during = mmap.mmap(-1, 8 * HUGE, flags=flags)
    assert any(a <= middle_of(during) < b for a, b in gathered)
    for other in (before, unwanted):
        assert not any(a <= middle_of(other) < b for a, b in gathered)


@pytest.mark.parametrize("bundle", ["llama_bundle", "gpt2_bundle", "int8_bundle"])
def test_results_are_the_same_to_the_bit(bundle: str, request: pytest.FixtureRequest) -> None:
    opened: Bundle = request.getfixturevalue(bundle)
    ids = list(range(5, 45))
    with_huge = open_session(opened, n_threads=1).score(ids).copy()
    without_huge = open_session(opened, n_threads=1, huge_pages=False).score(ids)
    np.testing.assert_array_equal(with_huge, without_huge)
