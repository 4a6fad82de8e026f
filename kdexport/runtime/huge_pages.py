"""Opened weights in huge pages, where Linux has them.

A token reads every weight once. In pages of 4 KiB those are tens of thousands of addresses to look
up, more than a CPU remembers; pages of 2 MiB are few. ONNX Runtime allocates with malloc, so the
pages are gathered afterwards, by madvise(MADV_COLLAPSE), Linux 6.1 and later. What the memory holds
does not change, so neither do results. Knows the process's memory; nothing of graphs.
"""

import ctypes
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

HUGE = 2 * 1024 * 1024
MADV_COLLAPSE = 25
MAPS = Path("/proc/self/maps")

Span = tuple[int, int]  # addresses: the first byte, and the one after the last


@contextmanager
def in_huge_pages(*, wanted: bool = True) -> Iterator[None]:
    """Gather into huge pages what the block allocates; does nothing where the system cannot."""
    if not (wanted and sys.platform == "linux"):
        yield
        return
    before = spans_of(_maps())
    yield
    for span in without(spans_of(_maps()), before):
        collapse(span)


def spans_of(maps: str) -> list[Span]:
    """The private, writable, anonymous memory in the text of /proc/self/maps, but for stacks."""
    spans = []
    for line in maps.splitlines():
        addresses, permissions, _, _, inode, *name = line.split(maxsplit=5)
        if permissions == "rw-p" and inode == "0" and not "".join(name).startswith("[stack"):
            first, end = (int(part, 16) for part in addresses.split("-"))
            spans.append((first, end))
    return spans


def without(spans: Sequence[Span], others: Sequence[Span]) -> list[Span]:
    """What of ``spans`` is in none of ``others``; either list is sorted and has no overlaps."""
    left = []
    for first, end in spans:
        met = [(max(a, first), min(b, end)) for a, b in others if a < end and first < b]
        edges = [(first, first), *met, (end, end)]
        left += [(a, b) for (_, a), (b, _) in pairwise(edges) if a < b]
    return left


def collapse(span: Span) -> bool:
    """Gather the whole huge pages inside ``span``; whether the system did."""
    first, end = -(-span[0] // HUGE) * HUGE, span[1] // HUGE * HUGE
    if first >= end:
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    length = ctypes.c_size_t(end - first)
    return bool(libc.madvise(ctypes.c_void_p(first), length, MADV_COLLAPSE) == 0)


def _maps() -> str:
    try:
        return MAPS.read_text("utf-8", errors="replace")
    except OSError:
        return ""
