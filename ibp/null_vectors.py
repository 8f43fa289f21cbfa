"""Vectors that small dense matrices take to zero modulo a prime: at one point, or at many with the zeros known beforehand.

How the rows of a rule are combined to eliminate all integrals but one. `null_vector` is for one prime, `null_vectors` for the points of
`Residues`, by an `elimination_plan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ibp.residues import Residues

Step = tuple[Any, Any, Any]  # rows and columns that the elimination of a pivot changes, and columns where its row is not zero


def null_vector(matrix: np.ndarray, p: int) -> np.ndarray:
    """x [N, m+1] with matrix [N, m, m+1] @ x = 0 modulo p, without divisions; pivots on the diagonal, zero pivots give a useless x.

    Overwrites the matrix. A useless x is harmless: the rows combined with it are still a true equation, rejected if it does not reduce.
    """
    size = matrix.shape[1]
    for c in range(size - 1):
        below = matrix[:, c + 1 :, c + 1 :] * matrix[:, c, c, None, None] - matrix[:, c + 1 :, c, None] * matrix[:, c, None, c + 1 :]
        matrix[:, c + 1 :, c + 1 :] = below % p
    x = np.zeros((len(matrix), size + 1), np.int64)
    x[:, size] = 1
    for c in range(size - 1, -1, -1):
        x[:, c] = -(matrix[:, c, c + 1 :] * x[:, c + 1 :] % p).sum(1) % p
        x[:, c + 1 :] = x[:, c + 1 :] * matrix[:, c, c, None] % p
    return x


def elimination_plan(pattern: np.ndarray) -> tuple[Step, ...]:
    """How `null_vectors` eliminates a matrix that is zero outside a pattern, bool [m, m+1].

    Index arrays where they spare at least half of the work, else slices. (A third of the time on rules of the pentabox, of up to 136 rows.)
    """
    filled, plan = pattern.copy(), []
    for c in range(len(pattern)):
        rows, columns = c + 1 + np.flatnonzero(filled[c + 1 :, c]), c + 1 + np.flatnonzero(filled[c, c + 1 :])
        changed = c + 1 + np.flatnonzero(filled[[c, *rows.tolist()], c + 1 :].any(0))
        filled[np.ix_(rows, columns)] = True
        later, below = pattern.shape[1] - c - 1, len(pattern) - c - 1
        sparse = 2 * len(rows) * len(changed) < below * later
        block = (rows[:, None], changed[None]) if sparse else (slice(c + 1, None), slice(c + 1, None))
        plan.append((*block, columns if 2 * len(columns) < later else slice(c + 1, None)))
    return tuple(plan)


def null_vectors(matrix: Any, plan: Sequence[Step], ring: Residues) -> Any:
    """x [N, m+1, P] with matrix [N, m, m+1, P] @ x = 0 at every point, as `null_vector`; overwrites the matrix."""
    size = matrix.shape[1]
    for c, (rows, columns, _) in enumerate(plan[:-1]):
        if isinstance(rows, slice):
            above, left = matrix[:, c : c + 1, columns], matrix[:, rows, c : c + 1]
        elif len(rows):
            rows, columns = ring.place(rows), ring.place(columns)
            above, left = matrix[:, c, columns[0]][:, None], matrix[:, rows[:, 0], c][:, :, None]
        else:
            continue
        below = matrix[:, rows, columns] * matrix[:, c : c + 1, c : c + 1]
        below -= left * above
        matrix[:, rows, columns] = ring.reduce(below)
    x = ring.empty(len(matrix), size + 1, matrix.shape[3])
    x[:, size] = 1
    for c in range(size - 1, -1, -1):
        columns = plan[c][2] if isinstance(plan[c][2], slice) else ring.place(plan[c][2])
        x[:, c] = ring.reduce(-ring.product(matrix[:, c, columns], x[:, columns]).sum(1))
        x[:, c + 1 :] = ring.product(x[:, c + 1 :], matrix[:, c, c : c + 1])
    return x
