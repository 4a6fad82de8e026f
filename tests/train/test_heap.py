"""What is freed goes back to the system; and large tensors are had in huge pages."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kdexport.system.machine import rss_mb
from kdexport.train.heap import give_back

BLOCK = 2**17  # numbers: half a megabyte, too small for pages of its own
glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="other C libraries give back by themselves, or never"
)


@glibc
def test_freed_blocks_between_others_go_back_to_the_system() -> None:
    blocks = [torch.ones(BLOCK) for _ in range(800)]
    kept = blocks[::8]  # so that no run of free blocks reaches the end of the heap
    kept.append(blocks[-1])
    del blocks
    before = rss_mb()
    give_back()
    assert before - rss_mb() > 200
    assert all(bool((block == 1).all()) for block in kept)


def run(words: str, **environment: str) -> str:
    env = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"}
    done = subprocess.run(
        [sys.executable, "-c", words], capture_output=True, text=True, env={**env, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


HUGE = """
import os, torch
from kdexport.train.heap import have_huge_pages
before = dict(os.environ)
have_huge_pages()
assert dict(os.environ) == before  # other processes have their own wishes
kept = torch.ones(2**24)
print(*[line.split()[1] for line in open("/proc/self/smaps_rollup") if "AnonHugePages" in line])
"""


def has_huge_pages() -> bool:
    try:
        told = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return False
    return "[madvise]" in told


@pytest.mark.skipif(not has_huge_pages(), reason="this system gives no huge pages for the asking")
def test_large_tensors_are_asked_for_in_huge_pages() -> None:
    assert int(run(HUGE)) > 16_000  # kB, of 64 MiB
    assert int(run(HUGE, THP_MEM_ALLOC_ENABLE="0")) == 0  # a user's own wish counts
