"""The memory that a process keeps although nothing in it needs it any more."""

import ctypes
import os
import sys

KERNELS = "64"  # more than a step's products of one length


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
