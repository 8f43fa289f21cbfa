"""Which points to simulate next."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from phases.box import GRAIN, on_grain, r_sequence
from phases.errors import ExplorerError, InputError
from phases.surrogate import squared_distances

STRATEGIES = ("balanced", "uncertainty", "target", "boundary", "random")
CANDIDATES = 1000  # all over the box, and as many again between neighbours with different labels
NEIGHBOURS = 4
SCORE_FLOOR = 1e-6  # where nothing is uncertain, points fill the box evenly


def check_strategy(strategy: str) -> str:
    if strategy not in STRATEGIES:
        raise InputError(f"strategy '{strategy}': choose one of {', '.join(STRATEGIES)}")
    return strategy


def scores(probabilities: np.ndarray, strategy: str, target: int | None) -> np.ndarray:
    """Worth of m points, (m,), from their probabilities (m, C) and the target's column; None, it was never seen: by uncertainty."""
    p = np.sort(probabilities, axis=1)
    if strategy == "boundary" and p.shape[1] > 1:
        return 4 * p[:, -1] * p[:, -2]
    if strategy == "target" and target is not None:
        return probabilities[:, target]
    return 1 - p[:, -1]


def candidates(points: np.ndarray, labels: np.ndarray, rng: np.random.Generator, wanted: int = 0) -> np.ndarray:
    """Unit points to choose from: an even cover of the cube, and points between labelled neighbours (n, d) whose labels (n,) differ."""
    count = max(CANDIDATES, 2 * wanted)
    cover = r_sequence(count, rng.random(points.shape[1]))
    distances = squared_distances(points, points, 1.0)
    distances[labels[:, None] == labels] = np.inf
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :NEIGHBOURS]
    first, second = np.repeat(np.arange(len(points)), nearest.shape[1]), nearest.ravel()
    unlike = np.isfinite(distances[first, second])
    first, second = first[unlike], second[unlike]
    if not len(first):
        return cover
    pick = rng.integers(len(first), size=count)
    share = rng.uniform(0.2, 0.8, (count, 1))
    reach = 0.25 * np.sqrt(distances[first, second][pick] / points.shape[1])
    between = points[first[pick]] * share + points[second[pick]] * (1 - share) + rng.normal(size=(count, points.shape[1])) * reach[:, None]
    return np.concatenate([cover, on_grain(between)])


def choose(worths: Sequence[np.ndarray], pool: np.ndarray, taken: np.ndarray, scales: np.ndarray | float) -> np.ndarray:
    """Indices into the pool (m, d), one by each of worths (m,): the greatest worth times distance from all points taken, greedily."""
    free = squared_distances(pool, taken, 1.0).min(axis=1, initial=np.inf) > (GRAIN / 2) ** 2
    distance = np.sqrt(squared_distances(pool, taken, scales).min(axis=1, initial=pool.shape[1] / np.min(scales) ** 2))
    chosen: list[int] = []
    for worth in worths:
        if not free.any():
            raise ExplorerError("no new point could be found: every candidate is known already; widen the box or ask for fewer points")
        best = int(np.argmax(np.where(free, (worth + SCORE_FLOOR) * distance, -1.0)))
        chosen.append(best)
        free &= squared_distances(pool, pool[best : best + 1], 1.0)[:, 0] > (GRAIN / 2) ** 2
        distance = np.minimum(distance, np.sqrt(squared_distances(pool, pool[best : best + 1], scales)[:, 0]))
    return np.array(chosen, dtype=int)
