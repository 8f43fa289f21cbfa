"""The spin model: couplings, lattice, energy, and a lower bound of it.

H = sum_bonds S_i^T J_ij S_j - sum_i h.S_i on the honeycomb lattice, each bond once, |S| = 1; couplings and energies per site in units of
|J1xy|. Spins are arrays (N, 3), N = 2 L^2, site (i, j, s) at index (i L + j) 2 + s, sublattice s = 0 (A) or 1 (B).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np

from phases.errors import InputError

PARAMETERS = ("J1z", "D", "E", "F", "G", "J3xy", "J3z")
MEV = {  # BaCo2(AsO4)2: fits in meV, J1xy before PARAMETERS (emily: arXiv:2205.15262); where a search starts, no truths
    "fitting_param_2": (-6.772, -1.887, 0.815, 1.292, -0.091, 0.627, 1.823, -0.157),
    "fitting_param_4": (-6.646, -2.084, 0.675, 1.33, -1.516, 0.21, 1.697, 0.039),
    "fitting_param_8": (-6.646, -2.084, 0.675, 1.25, -1.516, -0.21, 1.697, 0.039),
    "emily": (-7.6, -1.2, 0.1, -0.1, 0.0, 0.0, 2.5, -0.85),
}
PUBLISHED_FITS = {name: dict(zip(PARAMETERS, (value / abs(fit[0]) for value in fit[1:]))) for name, fit in MEV.items()}  # in |J1xy|
A1, A2, B_OFFSET = (1.0, 0.0), (0.5, math.sqrt(3) / 2), (0.0, 1 / math.sqrt(3))
SMALLEST_L = 4  # below it a third neighbour is met twice around the torus
LARGEST_COUPLING = 1000.0  # spins are annealed in single precision
# One entry for each bond that starts in cell (i, j): its type, the sublattices it joins and the cell offset of its end.
BONDS = (
    ("Z", 0, 1, (0, 0)),
    ("X", 0, 1, (0, -1)),
    ("Y", 0, 1, (1, -1)),
    ("J3", 0, 1, (1, 0)),
    ("J3", 0, 1, (-1, 0)),
    ("J3", 0, 1, (1, -2)),
    *(("J2", s, s, step) for s in (0, 1) for step in ((1, 0), (0, 1), (1, -1))),
)


@dataclass(frozen=True)
class Couplings:
    """Couplings of H = sum_bonds S_i^T J_ij S_j - sum_i h.S_i in units of |J1xy|. Raises InputError for what is no number up to 1000.

    >>> Couplings(J3xy=0.3, hz=0.1).J1xy
    -1.0
    """

    J1z: float = 0.0
    D: float = 0.0
    E: float = 0.0
    F: float = 0.0
    G: float = 0.0
    J3xy: float = 0.0
    J3z: float = 0.0
    J1xy: float = -1.0
    J2xy: float = 0.0
    J2z: float = 0.0
    hx: float = 0.0
    hy: float = 0.0
    hz: float = 0.0

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if not isinstance(value, (int, float, np.integer, np.floating)) or not abs(value) <= LARGEST_COUPLING:
                raise InputError(f"coupling {f.name} = {value!r}: give a number up to {LARGEST_COUPLING:g} in size, in units of |J1xy|")
            object.__setattr__(self, f.name, float(value))

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, float]) -> Couplings:
        """From {name: number}; what is left out keeps its default. Raises InputError for an unknown name."""
        known = [f.name for f in fields(cls)]
        for name in parameters:
            if name not in known:
                raise InputError(f"unknown coupling {name!r}: use {', '.join(known)}")
        return cls(**parameters)

    @property
    def second(self) -> bool:
        """Whether sites of one sublattice are coupled to each other."""
        return bool(self.J2xy or self.J2z)

    @property
    def field(self) -> np.ndarray:
        return np.array([self.hx, self.hy, self.hz])


def exchange(couplings: Couplings) -> dict[str, np.ndarray]:
    """Matrices (3, 3) of the bond types Z, X, Y, J3, J2; J_X = U J_Z U^T and J_Y = U^T J_Z U, all symmetric."""
    k, s = couplings, math.sqrt(3) / 2
    z = np.array([[k.J1xy + k.D, k.E, k.F], [k.E, k.J1xy - k.D, k.G], [k.F, k.G, k.J1z]])
    u = np.array([[-0.5, s, 0.0], [-s, -0.5, 0.0], [0.0, 0.0, 1.0]])
    third, second = np.diag([k.J3xy, k.J3xy, k.J3z]), np.diag([k.J2xy, k.J2xy, k.J2z])
    return {"Z": z, "X": u @ z @ u.T, "Y": u.T @ z @ u, "J3": third, "J2": second}


def grid(n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices i, j of n x m cells, each flat, j the faster."""
    return np.divmod(np.arange(n * m), m)


@dataclass(frozen=True)
class Lattice:
    """Periodic honeycomb lattice of L x L cells; site (i, j, s) has index (i L + j) 2 + s.

    >>> Lattice.of(12).positions.shape
    (288, 2)
    """

    L: int
    positions: np.ndarray  # (N, 2) in units of |a1|
    bonds: np.ndarray  # (12, L**2, 2) site indices, row b for BONDS[b]; the last six are second neighbours

    @staticmethod
    @lru_cache(maxsize=16, typed=True)
    def of(L: int) -> Lattice:
        """The lattice of L x L cells, even or odd; its arrays are read-only. Raises InputError for L below 4."""
        if isinstance(L, bool) or not isinstance(L, (int, np.integer)) or L < SMALLEST_L:
            raise InputError(f"lattice size L = {L!r}: give a whole number, at least {SMALLEST_L}")
        i, j = grid(L, L)
        index = (i * L + j) * 2
        positions = np.empty((2 * L * L, 2))
        positions[0::2] = i[:, None] * A1 + j[:, None] * np.array(A2)
        positions[1::2] = positions[0::2] + B_OFFSET
        bonds = np.array([[index + s, ((i + n) % L * L + (j + m) % L) * 2 + t] for _, s, t, (n, m) in BONDS]).transpose(0, 2, 1)
        for array in (positions, bonds):
            array.flags.writeable = False
        return Lattice(int(L), positions, bonds)


def local_fields(spins: np.ndarray, couplings: Couplings) -> np.ndarray:
    """H_i = sum_j J_ij S_j - h of spins (..., N, 3), same shape: the energy falls fastest along -H_i."""
    lattice, matrices = Lattice.of(math.isqrt(spins.shape[-2] // 2)), exchange(couplings)
    total = np.broadcast_to(-couplings.field, spins.shape).copy()
    for (kind, *_), bond in zip(BONDS, lattice.bonds):
        for here, there in (bond.T, bond.T[::-1]):
            total[..., here, :] += spins[..., there, :] @ matrices[kind]
    return total


def energy(spins: np.ndarray, couplings: Couplings) -> np.ndarray:
    """Energy per site, in units of |J1xy|, of spins (..., N, 3), shape (...): sum_i S_i.(H_i - h) / (2 N), each bond counted once.

    >>> ferromagnet = np.tile([1.0, 0, 0], (72, 1))
    >>> float(energy(ferromagnet, Couplings(J3xy=0.5)))
    -0.75
    """
    return (spins * (local_fields(spins, couplings) - couplings.field)).sum((-2, -1)) / (2 * spins.shape[-2])


def exchange_fourier(couplings: Couplings, q: np.ndarray) -> np.ndarray:
    """Hermitian J(q) of shape (..., 6, 6) for q (..., 2), rows (A x, y, z, B x, y, z).

    J_st(q) = sum over bonds from (R, s) to (R + n, t) of J exp(2 pi i q.n), n in cells (no sublattice offset), so that with
    S_s(q) = sum_R S_(R,s) exp(-2 pi i q.R) / L the exchange energy is 1/2 sum_q S(q)^+ J(q) S(q).
    """
    matrices = exchange(couplings)
    result = np.zeros((*q.shape[:-1], 2, 3, 2, 3), complex)
    for kind, s, t, step in BONDS:
        term = np.exp(2j * np.pi * (q @ np.array(step)))[..., None, None] * matrices[kind]
        result[..., s, :, t, :] += term
        result[..., t, :, s, :] += term.conj()
    return result.reshape(*q.shape[:-1], 6, 6)


def luttinger_tisza(couplings: Couplings, L: int | None = None) -> tuple[float, tuple[float, float]]:
    """Lower bound of the energy per site and the wave vector (units b1, b2) at which it is reached.

    |S_i| = 1 is relaxed to sum |S_i|**2 = N, which gives half the lowest eigenvalue of J(q), minus |h| for a field
    (Luttinger, Tisza, Phys. Rev. 70 (1946) 954). With L only q = (m, n)/L; without it all q: a 36 x 36 grid, then shrinking
    grids around its four lowest points down to 1e-7, which leaves the bound some 1e-13 above the true minimum.

    >>> bound, (h, k) = luttinger_tisza(Couplings(J3xy=0.3))  # a spiral on the line from Γ to M
    >>> round(bound, 6)
    -1.069268
    """

    def lowest(points: np.ndarray) -> np.ndarray:
        return np.linalg.eigvalsh(exchange_fourier(couplings, points))[:, 0] / 2

    size = L or 36
    points = np.stack(grid(size // 2 + 1, size), 1) / size  # half of the zone: J(-q) = J(q)*
    values = lowest(points)
    best = np.argsort(values, kind="stable")[: 1 if L else 4]
    points, values = points[best], values[best]
    star = np.array([(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if a or b])
    step = np.full(len(points), 0.0 if L else 0.5 / size)
    while step.max() > 1e-7:
        near = points[:, None] + step[:, None, None] * star
        found = lowest(near.reshape(-1, 2)).reshape(len(points), -1)
        closest, better = near[np.arange(len(points)), found.argmin(1)], found.min(1) < values
        points, values = np.where(better[:, None], closest, points), np.minimum(values, found.min(1))
        step = np.where(better, step, step / 2)
    k = int(values.argmin())
    q = points[k] % 1.0
    return float(values[k]) - float(np.linalg.norm(couplings.field)), (float(q[0]), float(q[1]))


def unit(vectors: np.ndarray, axis: int = 0) -> np.ndarray:
    """The vectors, whose components lie along an axis, divided by their lengths."""
    return vectors / np.sqrt((vectors * vectors).sum(axis, keepdims=True))
