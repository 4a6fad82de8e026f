"""How a process that trains asks for memory, and gives back what nothing in it needs any more."""

import ctypes
import os
import sys

import torch

HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
KERNELS = "64"  # more than a step's products of one length


def have_huge_pages() -> None:
    """Have PyTorch ask for large tensors in huge pages, if it has made no tensor yet.

    They are quicker to get where many are large, as in training. A model that reads one text is
    slower by them: processes that this one starts are not told.
    """
    if HUGE_PAGES not in os.environ:
        os.environ[HUGE_PAGES] = "1"
        torch.empty(1)  # it looks when it makes its first one
        del os.environ[HUGE_PAGES]


def keep_few_kernels() -> None:
    """Have oneDNN keep 64 products' kernels instead of 1024, if it has made none yet.

    It makes one for every product and length of batch, which with AMX takes some hundred kilobytes
    as long as it is kept, and a few milliseconds where it is made again.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", KERNELS)


def give_back() -> None:
    """Have the C library return what was freed to the system, which it does not by itself.

    Tensors of less than 32 MB lie in its heap, between others that stay. For glibc; it does nothing
    elsewhere. `bench/train_speed.py` has the memory of a run with it and without.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
