"""Values at sample points: what is asked for, how it travels from a task, and asking at random points.

A `Sample` is a prime and residues of the variables; `Ask` gives the values there; an `Asker` draws points.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from executors.files import peak_memory_kb
from ibp.errors import Unlucky
from ibp.functions import ExactFunction
from ibp.polynomials import Places, rational_interpolation
from ibp.residues import probe_primes

ATTEMPTS = 4  # how often unlucky choices of random numbers are replaced
MOST_SLICE_POINTS = 6000  # functions of a higher degree than that in one variable are given up
Sample = tuple[int, tuple[int, ...]]  # a prime, and residues of the variables
Ask = Callable[[Sequence[Sample]], tuple[np.ndarray, np.ndarray]]  # values [P, F] and which are good [P]
Line = dict[int, tuple[np.ndarray, np.ndarray]]  # of functions on a line: numerator and denominator


def pack_points(values: np.ndarray, good: np.ndarray, started: float) -> dict[str, Any]:
    """What a task returns of residues [P, F] and good [P], begun at a time.monotonic(); builtin types only."""
    return {
        "values": values.astype(np.int64).tobytes(),
        "good": good.astype(np.int8).tobytes(),
        "seconds": time.monotonic() - started,
        "peak_memory_kb": peak_memory_kb(),
    }


def unpack_points(values: Any, good: Any, primes: Sequence[int], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Residues [P, F] and good [P] from a task or a journal. Raises ValueError or TypeError where they are not that."""
    table = np.frombuffer(values, np.int64).reshape(len(primes), count)
    flags = np.frombuffer(good, np.int8)
    limits = np.array(primes, np.int64).reshape(-1, 1)
    if len(flags) != len(primes) or not np.isin(flags, (0, 1)).all() or not ((table >= 0) & (table < limits)).all():
        raise ValueError("not residues of these points")
    return table, flags == 1


class Asker:
    """Asks for the values of functions at random points modulo random primes."""

    def __init__(self, ask: Ask, variables: Sequence[str], count: int, rng: np.random.Generator):
        self.ask, self.variables, self.count, self.rng = ask, tuple(variables), count, rng
        self.primes = probe_primes(rng)

    def draw(self, p: int, count: int | None = None) -> tuple[int, ...]:
        """Random residues, by default of the variables."""
        return tuple(self.rng.integers(1000, p - 1000, len(self.variables) if count is None else count).tolist())

    def distinct(self, p: int, count: int) -> np.ndarray:
        """Different random residues [count]."""
        nodes: dict[int, None] = {}
        while len(nodes) < count:
            nodes[int(self.rng.integers(1000, p - 1000))] = None
        return np.array(list(nodes), np.int64)

    def values(self, samples: Sequence[Sample]) -> np.ndarray:
        """Values [P, F]. Raises Unlucky where a point has none."""
        values, good = self.ask(samples)
        if not good.all():
            raise Unlucky("a point has no value")
        return values

    def along(
        self, p: int, place: Callable[[int], tuple[int, ...]], chosen: Sequence[int], size: int = 10, known: Sequence[ExactFunction] = ()
    ) -> Line:
        """The chosen functions on a line of points place(t), as numerators and denominators in t, from at least so many points.

        known: all functions as far as they are known, whose factors are left out. Raises Unlucky.
        """
        found: Line = {}
        nodes, values = np.zeros(0, np.int64), np.zeros((0, self.count), np.int64)
        while len(found) < len(chosen):
            if size > MOST_SLICE_POINTS:
                raise Unlucky(f"a function needs more than {MOST_SLICE_POINTS} points in one variable")
            fresh = self.distinct(p, size - len(nodes))
            fresh = fresh[~np.isin(fresh, nodes)]
            points = [place(t) for t in fresh.tolist()]
            more, good = self.ask([(p, point) for point in points])
            if good.mean() < 0.5:
                raise Unlucky("most points of a line have no values")
            if known:
                places = Places(points, p)
                more = np.stack([function.stripped(more[:, f], places) for f, function in enumerate(known)], axis=1)
            nodes, values = np.concatenate([nodes, fresh[good]]), np.concatenate([values, more[good]])
            for f in chosen:
                if f not in found and (function := rational_interpolation(nodes, values[:, f], p)) is not None:
                    found[f] = function
            size = max(size * 3 // 2, size + 4)
        return found
