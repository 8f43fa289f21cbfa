"""The box of parameters that is explored: names and ranges, and points of the unit cube that stand for them.

A unit point is a tuple of parameters scaled to [0, 1]^d, on a grid of 10^-6 so that equal points are equal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from phases.errors import InputError
from phases.model import PARAMETERS

DIGITS = 6  # of unit coordinates: parameters that can be read, duplicates that can be seen
GRAIN = 10.0**-DIGITS


def encodable(text: str) -> str:
    """Without lone surrogates, which the names of files may hold but UTF-8 cannot."""
    return text.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True)
class Box:
    """The parameters of an exploration and their ranges. Raises InputError where a range is empty or a name is given twice."""

    names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self):
        if not self.names or len(set(self.names)) < len(self.names) or not len(self.names) == len(self.low) == len(self.high):
            raise InputError(f"parameters {', '.join(self.names) or '(none)'}: give each of them once, with its low and high bound")
        for name, low, high in zip(self.names, self.low, self.high):
            if not (math.isfinite(high - low) and low < high):
                raise InputError(f"parameter {name}: bounds {low:g}, {high:g}; the low bound must be below the high one, both finite")
            if name != encodable(name):
                raise InputError(f"parameter {encodable(name)}: not a name that can be written down")

    @staticmethod
    def of(bounds: Mapping[str, Sequence[float]]) -> Box:
        """From {name: (low, high)}. Raises InputError."""
        try:
            pairs = [(float(low), float(high)) for low, high in bounds.values()]
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f'parameter box {dict(bounds)}: give {{"name": [low, high], ...}}') from error
        return Box(tuple(bounds), tuple(low for low, _ in pairs), tuple(high for _, high in pairs))

    def bounds(self) -> dict[str, list[float]]:
        return {name: [low, high] for name, low, high in zip(self.names, self.low, self.high)}

    def to_unit(self, parameters: Mapping[str, float]) -> tuple[float, ...]:
        """A unit point. Raises InputError for a missing or unknown name or a value that is not within its bounds."""
        if set(parameters) != set(self.names):
            raise InputError(f"parameters {', '.join(parameters)}: expected {', '.join(self.names)}")
        point = [(parameters[name] - low) / (high - low) for name, low, high in zip(self.names, self.low, self.high)]
        for name, x in zip(self.names, point):
            if not -GRAIN < x < 1 + GRAIN:
                raise InputError(f"parameter {name} = {parameters[name]:g} lies outside its bounds {self.bounds()[name]}")
        return tuple(on_grain(np.array(point)).tolist())

    def middle(self) -> dict[str, float]:
        return {name: (low + high) / 2 for name, low, high in zip(self.names, self.low, self.high)}

    def parameters(self, point: Sequence[float]) -> dict[str, float]:
        return {name: low + x * (high - low) for name, low, high, x in zip(self.names, self.low, self.high, point)}


DEFAULT_BOX = Box.of(dict.fromkeys(PARAMETERS, (-1.0, 1.0)))


def on_grain(points: np.ndarray) -> np.ndarray:
    return np.round(np.clip(points, 0, 1), DIGITS)


def latin_hypercube(n: int, d: int, rng: np.random.Generator) -> np.ndarray:
    """n points (n, d) of the unit cube, one in each of the n slices of every coordinate."""
    return on_grain((np.stack([rng.permutation(n) for _ in range(d)], axis=1) + rng.random((n, d))) / n)


def r_sequence(n: int, shift: np.ndarray) -> np.ndarray:
    """n points (n, d) that fill the unit cube evenly: additive recurrence by powers of the root of x^(d+1) = x + 1 (M. Roberts, 2018)."""
    d, root = len(shift), 2.0
    for _ in range(60):
        root = (1 + root) ** (1 / (d + 1))
    return on_grain((shift + np.outer(np.arange(1, n + 1), root ** -np.arange(1.0, d + 1))) % 1)
