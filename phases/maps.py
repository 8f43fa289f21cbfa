"""Maps of two parameters: the phases that a surrogate predicts on a slice of the box, and the boundaries between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from phases.box import Box
from phases.errors import InputError
from phases.surrogate import Surrogate


def check_map(box: Box, wanted: Sequence[str] | None, fixed: Mapping[str, float]) -> None:
    """Raises InputError for axes and fixed values that the box does not have. wanted: None, whatever matters most."""
    if wanted is not None and (len(wanted) != 2 or len(set(wanted)) != 2 or not set(wanted) <= set(box.names)):
        raise InputError(f"map of {', '.join(wanted)}: give two of {', '.join(box.names)}")
    if unknown := set(fixed) - set(box.names):
        raise InputError(f"map at {', '.join(sorted(unknown))}: no parameter of this run; they are {', '.join(box.names)}")
    for name, value in fixed.items():
        low, high = box.bounds()[name]
        if not low <= value <= high:
            raise InputError(f"map at {name} = {value:g}: outside of its bounds {[low, high]}")


def slice_points(box: Box, a: str, b: str, fixed: Mapping[str, float], n: int) -> np.ndarray:
    """Unit points (n, n, d): [j, i] has a at i / (n - 1), b at j / (n - 1), the others fixed or in the middle. Raises InputError."""
    check_map(box, (a, b), fixed)
    points = np.tile(box.to_unit(box.middle() | dict(fixed)), (n, n, 1))
    points[..., box.names.index(a)] = np.linspace(0, 1, n)
    points[..., box.names.index(b)] = np.linspace(0, 1, n)[:, None]
    return points


def phase_map(box: Box, surrogate: Surrogate, a: str, b: str, fixed: Mapping[str, float], n: int) -> dict[str, Any]:
    """x (n,), y (n,), labels (C,), phases (n, n): indices into labels, [j, i] at (x[i], y[j]), confidence of that shape: the greatest
    probability, boundaries: rows (x, y, phase, phase) where neighbours on the grid differ. Raises InputError.
    """
    if n < 2:
        raise InputError(f"a map of {n} x {n} points: give at least 2")
    p = surrogate.probabilities(slice_points(box, a, b, fixed, n).reshape(n * n, -1)).reshape(n, n, -1)
    x, y = (low + np.linspace(0, 1, n) * (high - low) for low, high in (box.bounds()[name] for name in (a, b)))
    found = {"phases": p.argmax(axis=2), "confidence": p.max(axis=2), "boundaries": boundary_points(p, x, y, surrogate.labels)}
    return {"x": x, "y": y, "labels": surrogate.labels} | found


def boundary_points(p: np.ndarray, x: np.ndarray, y: np.ndarray, labels: Sequence[str]) -> list[tuple[float, float, str, str]]:
    """Where the most probable phase changes between neighbours of a grid: p (len(y), len(x), C), linear in between."""
    phase, found = p.argmax(axis=2), []
    for down, right in ((0, 1), (1, 0)):
        here, there = phase[: len(y) - down, : len(x) - right], phase[down:, right:]
        for j, i in np.argwhere(here != there):
            a, b, j2, i2 = here[j, i], there[j, i], j + down, i + right
            first, second = p[j, i, a] - p[j, i, b], p[j2, i2, b] - p[j2, i2, a]
            t = first / (first + second)
            found.append((float(x[i] + t * (x[i2] - x[i])), float(y[j] + t * (y[j2] - y[j])), labels[a], labels[b]))
    return found
