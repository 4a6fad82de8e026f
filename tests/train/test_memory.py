"""Where memory ends, fewer examples are worked on at once, and nothing else is different."""

import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdexport.errors import KdexportError
from kdexport.train.memory import Memory, is_out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("MPS backend out of memory (MPS allocated: 18.00 GB)"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    ],
    ids=lambda error: str(error)[:40],
)
def test_memory_that_ended_is_known_by_its_error(error: RuntimeError) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "told",
    [
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED",
        "mat1 and mat2 shapes cannot be multiplied",
    ],
)
def test_other_errors_are_no_end_of_memory(told: str) -> None:
    assert not is_out_of_memory(RuntimeError(told))
    with pytest.raises(RuntimeError, match=told):
        Memory().each([1, 2], lambda items: failing(told))
    with pytest.raises(RuntimeError, match=told):
        Memory().anew(lambda: failing(told), 2, lambda: None)


def failing(told: str) -> None:
    raise RuntimeError(told)


def ended() -> RuntimeError:
    return RuntimeError("CUDA error: out of memory")


@given(st.lists(st.integers(), min_size=1, max_size=40), st.integers(1, 9))
def test_each_item_is_worked_on_once_and_in_its_order(items: list[int], room: int) -> None:
    done: list[int] = []

    def work(part: list[int]) -> list[int]:
        if len(part) > room:
            raise ended()
        done.extend(part)
        return part

    memory = Memory()
    found = memory.each(items, work)
    assert done == items == [item for part in found for item in part]
    assert (memory.at_most is None) == (len(items) <= room)
    n_asked = len(found)
    assert memory.each(items, work) == found and len(memory.each(items, work)) == n_asked


def test_what_fits_is_handed_on_as_it_is() -> None:
    items = [1, 2, 3]
    assert [part is items for part in Memory(3).parts(items)] == [True]
    assert list(Memory(2).parts(items)) == [[1], [2, 3]]


def test_it_is_said_when_it_ends_and_not_again(capsys: pytest.CaptureFixture[str]) -> None:
    memory = Memory()

    def work(part: list[int]) -> int:
        if len(part) > 2:
            raise ended()
        return sum(part)

    for _ in range(3):
        assert sum(memory.each([*range(8)], work)) == 28
    said = capsys.readouterr().err.splitlines()
    assert ["batches of 4" in said[0], "batches of 2" in said[1], len(said)] == [True, True, 2]


def test_what_is_begun_anew_forgets_what_it_had_done() -> None:
    memory, sums = Memory(), list[int]()

    def work() -> int:
        for part in memory.parts([*range(8)]):
            if len(part) > 2 and sums:  # the second part is too much
                raise ended()
            sums.append(sum(part))
        return sum(sums)

    def too_much() -> int:
        sums.append(1)
        return work()

    assert memory.anew(too_much, 8, sums.clear) == 29
    assert memory.at_most == 2


def test_what_a_failure_held_is_free_when_it_is_tried_again() -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def work(part: list[int]) -> None:
        assert all(one() is None for one in held)
        large = torch.zeros(1)
        held.append(weakref.ref(large))
        if len(part) > 1:
            raise ended()

    Memory().each([1, 2, 3, 4], work)
    assert len(held) > 4


def test_an_item_that_is_too_much_alone_is_one_line() -> None:
    def never(_: object) -> None:
        raise ended()

    with pytest.raises(KdexportError, match=r"not memory enough for 1 examples.*max_length"):
        Memory().each([1, 2, 3], never)
    with pytest.raises(KdexportError, match="not memory enough for 16 examples"):
        Memory(at_least=16).each([*range(16)], never)
