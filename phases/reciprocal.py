"""Structure factors, and places in the Brillouin zone.

q = (h, k) = h b1 + k b2 with a_i . b_j = 2 pi delta_ij; M = (1/2, 0), K = (2/3, 1/3) and their images; lengths in units of |b|; a step is
|b| / L, the spacing of the allowed q = (m, n) / L. The structure factor is resolved by sublattice, so that it is periodic in q.
"""

from __future__ import annotations

import numpy as np


def norm(x: np.ndarray) -> np.ndarray:
    """Length of x = (h, k), shape (..., 2), in units of |b|."""
    return np.sqrt(x[..., 0] ** 2 + x[..., 1] ** 2 - x[..., 0] * x[..., 1])


def amplitudes(spins: np.ndarray, L: int) -> np.ndarray:
    """S_s(q), shape (L, L, 2, 3) complex, at q = (m, n) / L, normalised so that the sum of |S|^2 over everything is the mean of |S_i|^2."""
    return np.fft.fft2(spins.reshape(L, L, 2, 3), axes=(0, 1)) / (np.sqrt(2.0) * L * L)


def structure_factor(spins: np.ndarray, L: int) -> np.ndarray:
    """I(q) = sum_s |S_s(q)|^2 of spins (N, 3) on the allowed q = (m, n) / L, shape (L, L), sum 1 (Parseval), I(q) = I(-q).

    >>> up = np.tile([0.0, 0, 1], (72, 1))
    >>> round(float(structure_factor(up, 6)[0, 0]), 9)  # all of the weight at Γ
    1.0
    """
    return (np.abs(amplitudes(spins, L)) ** 2).sum(axis=(2, 3))


def neighbour_phase(h: np.ndarray | float, k: np.ndarray | float) -> np.ndarray:
    """Sum of exp(i q . delta) over the three bonds Z (0, 0), X (0, -1), Y (1, -1) from A to B; 3 at Γ, modulus 1 at M, 0 at K."""
    return 1 + np.exp(-2j * np.pi * np.asarray(k)) + np.exp(2j * np.pi * (np.asarray(h) - k))


def shortest(q: np.ndarray) -> np.ndarray:
    """The vectors q + G of least length, shape (1 to 3, 2): more than one on the border of the Brillouin zone."""
    images = q - np.round(q) + np.array([(m, n) for m in (0, -1, 1) for n in (0, -1, 1)])
    lengths = norm(images)
    return images[lengths < lengths.min() + 1e-6]


def cartesian(q: np.ndarray) -> np.ndarray:
    """q as a complex number in units of |b|, with b1, a Γ-M line, along the real axis."""
    return q[..., 0] + q[..., 1] * np.exp(2j * np.pi / 3)


def in_wedge(q: np.ndarray) -> complex:
    """The image of q in the wedge Γ, M = 1/2, K = 1/2 + i/sqrt(12) of the Brillouin zone."""
    z = cartesian(shortest(q)[0])
    return abs(z) * np.exp(1j * abs((np.angle(z) + np.pi / 6) % (np.pi / 3) - np.pi / 6))


def place_of(q: np.ndarray, L: int) -> tuple[str, float]:
    """Name of q by symmetry and its margin: distances in the wedge, in steps."""
    wedge = in_wedge(q) * L
    # limits: half way to the nearest other allowed q for Γ, M, K, to the nearest row of allowed q for the lines between them
    corners = {
        "Γ": abs(wedge),
        "M": abs(wedge - L / 2) * (1 if L % 2 == 0 else 2),
        "K": abs(wedge - L * (0.5 + 1j / np.sqrt(12))) * (1 if L % 3 == 0 else np.sqrt(3)),
    }
    lines = {
        "Γ-M": wedge.imag / np.sqrt(0.75),
        "M-K": (L / 2 - wedge.real) * (2 if L % 2 == 0 else 1),
        "Γ-K": (wedge.real / 2 - wedge.imag * np.sqrt(0.75)) * 2,
    }
    outside = min(1.0, 2 * min(corners.values()) - 1)
    for places, beside in ((corners, 1.0), (lines, outside)):
        place = min(places, key=lambda name: places[name])
        if places[place] < 0.5:
            return place, min(1 - 2 * places[place], beside)
    return "general", min(outside, 2 * min(lines.values()) - 1)


def written(q: tuple[float, float], L: int) -> str:
    """q for a reader: as fractions where it is an allowed q, else as decimals."""
    if max(abs(x * L - round(x * L)) for x in q) > 0.05:
        return f"({q[0]:.3f}, {q[1]:.3f})"
    parts = [(round(x * L), np.gcd(round(x * L), L)) for x in q]
    return "(" + ", ".join("0" if m == 0 else f"{m // g}/{L // g}" for m, g in parts) + ")"
