"""A small network that says which rows local elimination tries first; numpy alone, no torch.

A `SectorGuide` searches a sector with it: rows are described once for each level, scores for a target are sums of parts that are looked
up. A guide changes how long a search takes, never a result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ibp.discovery import RuleFinder, SearchSpace
from ibp.identities import Equations
from ibp.rules import Rule, border_distance
from ibp.sectors import Sector

GUIDE_LEVELS = 3  # it learns from rules of the first ones,
GUIDED_LEVEL = 2  # and is used where rules are long and searches seldom in vain: of level 0 all rows are soon tried, of level 1 few help
GUIDED_SHARE = 0.5  # of the rows is tried first
MATRIX_PIECE, VECTOR_PIECE = 200_000, 9_000  # multiplications: OpenBLAS uses threads from 262,144 and 9,216 on
NEAR = 4  # distances from the border, the last one stands for all further ones
SHIFT_KINDS = 9  # signs of the changes of r and of s
SEED_RANGE = 2  # of a seed, in one index
TOKEN_INPUTS = 3 * SHIFT_KINDS + 2 * SEED_RANGE + 1 + 2
ROW_INPUTS = 2 * SHIFT_KINDS + 1 + 6 + GUIDE_LEVELS + 2
GUIDE_WIDTH = 32
GUIDE_SHAPES = {
    "token_in": (TOKEN_INPUTS, GUIDE_WIDTH), "token_in_bias": (GUIDE_WIDTH,),
    "token_out": (GUIDE_WIDTH, GUIDE_WIDTH + NEAR), "token_out_bias": (GUIDE_WIDTH + NEAR,),
    "row_in": (ROW_INPUTS, GUIDE_WIDTH), "row_in_bias": (GUIDE_WIDTH,),
    "row_mix": (GUIDE_WIDTH, GUIDE_WIDTH), "row_mix_bias": (GUIDE_WIDTH,),
    "row_score": (GUIDE_WIDTH,), "near": (2, NEAR, GUIDE_WIDTH),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class RowFeatures:
    """The rows of a level of a sector as the guide sees them, row = seed * O + operator; relative numbers only, for any family.

    rows [S * O, ROW_INPUTS]; tokens [O * n * 5, TOKEN_INPUTS], for what a seed may be in an index; seeds [S, n * 5], which of the tokens
    of each index a seed has; kind [1, n], 0 for a line, else 1; place [1, n], the numbers of the indices. Arrays, or tensors to train on.
    """

    rows: Any
    tokens: Any
    seeds: Any
    kind: Any
    place: Any


def describe_rows(sector: Sector, equations: Equations, seeds: np.ndarray, level: int) -> RowFeatures:
    """seeds [S, n] relative to the target."""
    positive, shift, count = sector.positive, equations.shift, equations.count
    dr, ds = sector.r_and_s(shift)
    kinds = 3 * (np.sign(dr) + 1) + np.sign(ds) + 1
    place = equations.operator * SHIFT_KINDS + kinds
    distance = (seeds @ sector.weights)[:, None] + (shift @ sector.weights)[None]
    places = np.eye(count * SHIFT_KINDS, dtype=np.float32)[place]
    heavier, same = (product(terms.astype(np.float32), places) for terms in (distance > 0, distance == 0))
    total = np.bincount(place, minlength=count * SHIFT_KINDS).reshape(1, count, SHIFT_KINDS)
    size = np.abs(seeds)
    parts = (seeds[:, positive], -seeds[:, ~positive], size, size[:, positive], seeds[:, positive] > 0, seeds[:, ~positive] > 0)
    constants = [level == k for k in range(GUIDE_LEVELS)] + [sector.n / 8, positive.sum() / 8]
    of_seed = np.column_stack([part.sum(1) for part in parts] + [np.full(len(seeds), value) for value in constants])
    heavier, same = (part.reshape(len(seeds), count, SHIFT_KINDS) for part in (heavier, same))
    columns = np.log1p(heavier), np.log1p(total), same.sum(2, keepdims=True), of_seed[:, None]
    rows = np.concatenate([np.broadcast_to(part, (len(seeds), count, part.shape[2])) for part in columns], 2)
    return RowFeatures(
        rows.reshape(-1, ROW_INPUTS).astype(np.float32),
        _token_features(sector, equations, kinds),
        np.eye(2 * SEED_RANGE + 1, dtype=np.float32)[seeds + SEED_RANGE].reshape(len(seeds), -1),
        (~positive).astype(np.int64)[None],
        np.arange(sector.n)[None],
    )


def _token_features(sector: Sector, equations: Equations, kinds: np.ndarray) -> np.ndarray:
    """[O * n * 5, TOKEN_INPUTS]: how the terms of an operator shift an index, what the seed is there, and whether it is a line."""
    count, n, values = equations.count, sector.n, 2 * SEED_RANGE + 1
    shifts = np.zeros((count, n, 3 * SHIFT_KINDS), np.float32)
    for i in range(n):
        np.add.at(shifts, (equations.operator, i, SHIFT_KINDS * (np.sign(equations.shift[:, i]) + 1) + kinds), 1)
    kind = np.stack([sector.positive, ~sector.positive], 1).astype(np.float32)
    parts = (np.log1p(shifts)[:, :, None], np.eye(values, dtype=np.float32)[None, None], kind[None, :, None])
    return np.concatenate([np.broadcast_to(part, (count, n, values, part.shape[3])) for part in parts], 3).reshape(-1, TOKEN_INPUTS)


def product(a: Any, b: Any) -> Any:
    """a [N, K] @ b [K, M]; of arrays in pieces for which OpenBLAS starts no threads, which only wait for each other on busy processors."""
    if not isinstance(a, np.ndarray):
        return a @ b
    size = max((MATRIX_PIECE if b.shape[1] > 1 else VECTOR_PIECE) // b.size, 1)
    return np.concatenate([a[begin : begin + size] @ b for begin in range(0, len(a), size)])


def guide_rows(weights: Any, features: RowFeatures) -> tuple[Any, Any]:
    """What does not depend on a target: vectors [S * O, width] of the rows, and what tokens [n, NEAR, 5, O] add; arrays or tensors."""
    seeds, n = len(features.seeds), features.kind.shape[1]
    values = features.seeds.shape[1] // n
    tokens = (product(features.tokens, weights["token_in"]) + weights["token_in_bias"]).clip(0)
    tokens = product(tokens, weights["token_out"]) + weights["token_out_bias"]
    operators = len(tokens) // (n * values)
    embedded = tokens[:, :GUIDE_WIDTH].reshape(operators, n * values, GUIDE_WIDTH).swapaxes(0, 1).reshape(n * values, -1)
    context = product(features.seeds, embedded).reshape(seeds * operators, GUIDE_WIDTH)
    hidden = (product(features.rows, weights["row_in"]) + weights["row_in_bias"] + context).clip(0)
    rows = (product(hidden, weights["row_mix"]) + weights["row_mix_bias"]).clip(0)
    added = tokens[:, GUIDE_WIDTH:].reshape(operators, n, values, NEAR).swapaxes(0, 1).swapaxes(1, 3)
    return rows, added


def guide_scores(weights: Any, features: RowFeatures, parts: tuple[Any, Any], distance: Any) -> Any:
    """Scores [M, S * O] of all rows for targets at these distances [M, n] from the border, below NEAR."""
    rows, added = parts
    wanted = weights["row_score"] + weights["near"][features.kind, distance].sum(1)
    near = added[features.place, distance].reshape(len(distance), features.seeds.shape[1], -1).swapaxes(0, 1)
    operators = near.shape[2]
    near = product(features.seeds, near.reshape(len(near), -1)).reshape(-1, len(distance), operators).swapaxes(0, 1)
    return product(rows, wanted.swapaxes(0, 1)).swapaxes(0, 1) + near.reshape(len(distance), -1)


class SectorGuide:
    """Searches a sector among the rows that a guide chooses: scores are sums of looked-up parts, computed once for each level."""

    def __init__(self, weights: dict[str, np.ndarray], finder: RuleFinder):
        self.weights, self.finder = weights, finder
        self.levels: dict[int, tuple[RowFeatures, tuple[Any, Any]]] = {}

    def find(self, target: np.ndarray, level: int) -> Rule | None:
        """A rule out of the best rows of a level for the integral with these indices [n]; None where there is none, or no guide is used."""
        finder, space = self.finder, self.finder.space(level, target) if level == GUIDED_LEVEL else None
        return space and finder.find_in(space, target, level, finder.structure, self.best(space, level, target))

    def best(self, space: SearchSpace, level: int, target: np.ndarray) -> np.ndarray:
        """Numbers of the rows to try first, ascending."""
        sector = self.finder.sector
        if level not in self.levels:
            features = describe_rows(sector, self.finder.structure, space.seeds, level)
            self.levels[level] = features, guide_rows(self.weights, features)
        features, parts = self.levels[level]
        scores = guide_scores(self.weights, features, parts, border_distance(target, sector.positive, NEAR - 1)[None])[0]
        inside = space.rows_inside(sector, target)
        count = max(int(len(inside) * GUIDED_SHARE), 1)
        best = np.argpartition(-scores[inside], count - 1)[:count] if len(inside) else inside
        return np.sort(inside[best])
