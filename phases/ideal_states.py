"""States whose phase is known: what every name looks like, for tests and the benchmark."""

from __future__ import annotations

import numpy as np

from phases.model import unit
from phases.reciprocal import neighbour_phase

M_POINTS = ((0.0, 0.5), (0.5, 0.0), (0.5, 0.5))  # domain 0: the Z bond is the odd one; 1: Y; 2: X
STRAIGHT = ("ferromagnet", "neel", "zigzag", "stripy", "double_zigzag", "collinear")


def ideal_state(name, L, *, domain=0, q=None, q2=None, q3=None, antiferro=False, handedness=1, tilt=0.4, rng=None) -> np.ndarray:
    """Spins (N, 3) of an ideal state: ferromagnet, neel, zigzag, stripy, double_zigzag (domain 0, 1, 2), order_120 (handedness 1, -1),
    spiral, conical (q), collinear (q, a square wave), double_q (q, q2; coplanar), meron (q, q2; four vortices a magnetic cell),
    chiral_stripe (helix along q, wave along q2), beating (the same with parallel q, q2), triple_q (q, q2, q3), random (rng: a generator).

    q, q2, q3: any (h, k); one that L does not fit leaves a seam. antiferro: B reversed; tilt: uniform part of conical and meron.
    """
    if name == "random":
        return unit(rng.normal(size=(2 * L * L, 3)), axis=1)
    M = np.array(M_POINTS[domain])
    turning = (handedness / 3, -handedness / 3)
    fixed = {"ferromagnet": (0, 0), "neel": (0, 0), "zigzag": M, "stripy": M, "double_zigzag": M / 2, "order_120": turning}
    wanted = [fixed[name]] if name in fixed else [v for v in (q, q2, q3) if v is not None]
    reversed_b = antiferro ^ (name in ("neel", "stripy"))
    a, b, c = ([wave_phase(v, L, reversed_b, name in STRAIGHT) for v in wanted] * 3)[:3]
    zero, helix = np.zeros_like(a), np.abs(np.cos(b + 0.4))
    components = {
        "conical": (np.cos(a), handedness * np.sin(a), zero + tilt),
        "double_q": (np.cos(a + 0.4), np.cos(b + 0.4), zero),
        "meron": (np.sin(a), np.sin(b), zero + tilt),
        "chiral_stripe": (np.cos(a) * helix, np.sin(a) * helix, np.sin(b + 0.4)),
        "beating": (np.cos(a) * helix, np.sin(a) * helix, np.sin(b + 0.4)),
        "triple_q": (np.cos(a), np.cos(b), np.cos(c)),
    }
    plain = (np.cos(a + 0.4), zero, zero) if name in STRAIGHT else (np.cos(a), handedness * np.sin(a), zero)
    return unit(np.stack(components.get(name, plain), axis=1), axis=1)


def wave_phase(q: tuple[float, float], L: int, reversed_b: bool, quarters: bool) -> np.ndarray:
    """q . r at each site (N,), with B so that neighbours on the average are parallel (or antiparallel); quarters: B by quarter turns."""
    cells = 2 * np.pi * (q[0] * np.arange(L)[:, None] + q[1] * np.arange(L)[None, :])
    shift = -np.angle(np.round(neighbour_phase(*q), 12))
    shift = np.round(shift / (np.pi / 2)) * (np.pi / 2) if quarters else shift
    return np.stack([cells, cells + shift + np.pi * reversed_b], axis=-1).ravel()
