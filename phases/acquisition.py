"""Which points to simulate next: the strategies, and how a batch is spread out.

A strategy is one or more kinds of worth that take turns in a batch; STRATEGIES is the table of them. To add one, write a function of the
phase probabilities and put it there: the command line and the learner read the table.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from phases.box import GRAIN, on_grain, r_sequence
from phases.errors import ExplorerError, InputError
from phases.surrogate import squared_distances

CANDIDATES = 1000  # all over the box, and as many again between neighbours with different labels
NEIGHBOURS = 4
SCORE_FLOOR = 1e-6  # where nothing is uncertain, points fill the box evenly


def uncertainty(p: np.ndarray, target: int | None) -> np.ndarray:
    """Worth (m,) of m points with phase probabilities p (m, C): how likely the likeliest phase is wrong. target: the wanted column."""
    return 1 - p.max(axis=1)


def probable_target(p: np.ndarray, target: int | None) -> np.ndarray:
    """The probability of the wanted phase; the uncertainty while that was never seen (target None)."""
    return uncertainty(p, target) if target is None else p[:, target]


def near_boundary(p: np.ndarray, target: int | None) -> np.ndarray:
    """1 where two phases have all the probability and share it evenly."""
    two = np.sort(p, axis=1)[:, -2:]
    return 4 * two[:, 1] * two[:, 0] if two.shape[1] > 1 else uncertainty(p, target)


STRATEGIES = {  # name: kinds of worth, in turns; none: points anywhere
    "balanced": (uncertainty, probable_target),
    "uncertainty": (uncertainty,),
    "target": (probable_target,),
    "boundary": (near_boundary,),
    "random": (),
}


def check_strategy(strategy: str) -> str:
    """The same name. Raises InputError for one that STRATEGIES does not have."""
    if strategy not in STRATEGIES:
        raise InputError(f"strategy '{strategy}': choose one of {', '.join(STRATEGIES)}")
    return strategy


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
    """Indices into the pool (m, d), one by each of worths (m,): the greatest worth times distance from all points taken, greedily.

    Raises ExplorerError where the pool has no point that is not taken.
    """
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
