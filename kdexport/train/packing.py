"""Which texts share a row: several short ones where one long one would fit.

Knows lengths only.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence


def best_fit(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Numbers of texts, row by row, in as few rows as best fit decreasing makes of them.

    Johnson 1974, "Fast algorithms for bin packing": at most 11/9 of the fewest rows, and a few.
    Each text is at most ``row_length`` long. Read one after the other, the texts fill these same
    rows again (`next_fit`): the first of a row has fitted in none before it.
    """
    rows: list[list[int]] = []
    free: list[tuple[int, int]] = []  # what is left of a row, and its number, ascending
    for number in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[number]
        place = bisect_left(free, (length, -1))
        if place == len(free):
            rows.append([])
            left, row = row_length, len(rows) - 1
        else:
            left, row = free.pop(place)
        rows[row].append(number)
        insort(free, (left - length, row))
    return rows


def next_fit(lengths: Sequence[int], row_length: int) -> list[slice]:
    """Texts in their order, cut into rows: a new one begins where the next text does not fit."""
    begins, used = [0], 0
    for number, length in enumerate(lengths):
        if used + length > row_length and number > begins[-1]:
            begins.append(number)
            used = 0
        used += length
    ends = [*begins[1:], len(lengths)]
    return [slice(begin, end) for begin, end in zip(begins, ends, strict=True)]
