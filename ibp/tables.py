"""Sorted tables of keys, arrays of int64 or of Python integers: runs, membership, sums by key.

`Lines` is a table whose columns are the fields of a dataclass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np


def run_numbers(begin: np.ndarray, length: np.ndarray) -> np.ndarray:
    """The numbers begin[i], begin[i] + 1, ... of several runs, one run after the other."""
    return np.arange(length.sum()) + np.repeat(begin - np.cumsum(length) + length, length)


class Lines:
    """A table whose columns, arrays of the same length, are the fields of a dataclass."""

    @classmethod
    def join(cls, parts: Sequence[Any]) -> Any:
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))

    def lines(self, which: Any) -> Any:
        return type(self)(*(getattr(self, f.name)[which] for f in fields(self)))


def run_starts(values: np.ndarray) -> np.ndarray:
    """Where runs of equal values begin in a sorted array."""
    return np.flatnonzero(np.concatenate([np.ones(min(len(values), 1), bool), values[1:] != values[:-1]]))


def sorted_rows(*columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The order of the rows of a table, given by columns, and where runs of equal rows begin in it."""
    order = np.lexsort(columns[::-1])
    new = np.zeros(len(order), bool)
    new[:1] = True
    for column in columns:
        new[1:] |= np.diff(column[order]) != 0
    return order, np.flatnonzero(new)


def is_member(values: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Bool [N]: which values stand in the sorted table."""
    if len(table) == 0:
        return np.zeros(len(values), bool)
    return table[np.minimum(np.searchsorted(table, values), len(table) - 1)] == values


def sum_by_key(keys: np.ndarray, values: np.ndarray, p: int, keep_zeros: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Distinct keys, ascending, and the sums modulo p of their lines of values [N, K]; lines that are all zero are left out, or kept."""
    if len(keys) == 0:
        return keys, values
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    start = run_starts(keys)
    if values.shape[1] == 1:
        sums = np.add.reduceat(values[order, 0], start)[:, None] % p
    else:
        sums = np.add.reduceat(values[order], start, axis=0) % p
    some = sums.any(1) | keep_zeros
    return keys[start][some], sums[some]


def pack_keys(keys: np.ndarray) -> bytes | list[int]:
    """An array of int64, or of Python integers, in builtin types."""
    return keys.tolist() if keys.dtype == object else keys.astype(np.int64).tobytes()


def unpack_keys(packed: bytes | list[int]) -> np.ndarray:
    return np.frombuffer(packed, np.int64) if isinstance(packed, bytes) else np.array(packed, object)


def merge(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Sorted union of two sorted arrays without common elements."""
    return np.sort(np.concatenate([a, b]), kind="stable")
