"""The real-space texture of a state: scalar chirality and topological charge, and what a few wave vectors make alone."""

from __future__ import annotations

import numpy as np

from phases.waves import WaveVector, pairs_of


def triangle_chirality(spins: np.ndarray, L: int) -> tuple[np.ndarray, np.ndarray]:
    """Scalar chirality S1 . (S2 x S3) and topological charge = solid angle / 4 pi of the triangles of each sublattice, (2, L, L, 2) each.

    First axis: triangles up and down, corners counterclockwise. The charges of a sublattice add up to an integer (Berg, Lüscher, Nucl.
    Phys. B190 (1981) 412). Coplanar corners carry 0: where they go around the circle the sign would be arbitrary.
    """
    S = spins.reshape(L, L, 2, 3)
    right, up = np.roll(S, -1, axis=0), np.roll(S, -1, axis=1)
    a, b, c = np.stack([S, right]), np.stack([right, np.roll(right, -1, axis=1)]), np.stack([up, up])
    triple = (a * np.cross(b, c)).sum(axis=-1)
    rest = 1 + (a * b + b * c + c * a).sum(axis=-1)
    return triple, np.where(np.abs(triple) < 1e-12, 0.0, np.arctan2(triple, rest)) / (2 * np.pi)


def at_sites(values: np.ndarray) -> np.ndarray:
    """A third of each of the six triangles (2, L, L, 2) around a site, shape (N,): what alternates between up and down cancels."""
    up, down = values
    around = up + np.roll(up, 1, axis=0) + np.roll(up, 1, axis=1)
    around = around + np.roll(down, 1, axis=0) + np.roll(down, 1, axis=1) + np.roll(down, (1, 1), axis=(0, 1))
    return around.ravel() / 3


def topological_charge(spins: np.ndarray, L: int) -> tuple[np.ndarray, np.ndarray]:
    """Of spins (N, 3): the charge at each site, shape (N,), for plots, and the total of each sublattice, shape (2,), integers.

    >>> at_site, total = topological_charge(np.tile([0.0, 0, 1], (72, 1)), 6)
    >>> at_site.shape, total.tolist()
    ((72,), [0.0, 0.0])
    """
    charges = triangle_chirality(spins, L)[1]
    return at_sites(charges), charges.sum(axis=(0, 1, 2))


def filtered(S: np.ndarray, waves: list[WaveVector]) -> np.ndarray:
    """What these waves make alone, shape (N, 3), not normalised: the texture without its noise."""
    L = len(S)
    kept = np.zeros((L, L, 1, 1))
    for wave in waves:
        m, n = pairs_of(L)[wave.members].T
        kept[m, n] = kept[-m % L, -n % L] = 1
    return np.fft.ifft2(S * kept, axes=(0, 1)).real.reshape(-1, 3) * np.sqrt(2.0) * L * L
