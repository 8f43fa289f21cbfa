"""Wave vectors found in a structure factor."""

from __future__ import annotations

from functools import cache

import numpy as np

from phases.model import norm
from phases.names import HARMONIC, MOST_PEAKS, OVERTONES, REACH, SAME_WAVE, SHOULDER, TILED, WaveVector
from phases.reciprocal import neighbour_phase, place_of, shortest


@cache
def pairs_of(L: int) -> np.ndarray:
    """One (m, n) of each pair +-q of allowed wave vectors, shape (P, 2), Γ first."""
    m, n = np.divmod(np.arange(L * L), L)
    return np.stack([m, n], axis=1)[np.arange(L * L) <= (-m % L) * L + (-n % L)]


def multiplicity(L: int) -> np.ndarray:
    """How many allowed wave vectors a pair +-q is, shape (P,): 1 at Γ and M, where q and -q are the same, else 2."""
    return np.where((2 * pairs_of(L) % L == 0).all(axis=1), 1, 2)


def offsets(centre: np.ndarray, L: int) -> tuple[np.ndarray, np.ndarray]:
    """From the centre to the nearer of +q and -q of each pair, shape (P, 2), in steps; and whether that is +q, shape (P,)."""
    plus = (pairs_of(L) - centre + L / 2) % L - L / 2
    minus = (-pairs_of(L) - centre + L / 2) % L - L / 2
    is_plus = norm(plus) <= norm(minus)
    return np.where(is_plus[:, None], plus, minus), is_plus


def strongest_wave(weights: np.ndarray, S: np.ndarray) -> WaveVector:
    """The largest weight and what belongs to it: the disc of radius REACH moves to its own centre of weight until it stays.

    In a wave that does not fit L all S(q) near its q are multiples of one vector; two waves that are neighbours by chance differ there.
    """
    L = len(S)
    pairs = S[tuple(pairs_of(L).T)]
    power = (np.abs(pairs) ** 2).sum(axis=(1, 2))
    top = int(np.argmax(weights))
    centre, members = pairs_of(L)[top].astype(float), np.array([top])
    for _ in range(20):
        x, is_plus = offsets(centre, L)
        near = np.flatnonzero((norm(x) < REACH) & (weights > TILED))
        there = np.where(is_plus[near, None, None], pairs[near], pairs[near].conj())
        overlap = np.abs((there * pairs[top].conj()).sum(axis=2)).sum(axis=1)
        inside = near[overlap**2 > SAME_WAVE * power[near] * power[top]]
        if np.array_equal(inside, members):
            break
        members = inside
        centre = centre + weights[members] @ x[members] / weights[members].sum()
    return described(centre / L, float(weights[members].sum()), members, S)


def described(q: np.ndarray, weight: float, members: np.ndarray, S: np.ndarray) -> WaveVector:
    """The wave vector with its place, helicity and bond."""
    L = len(S)
    m, n = pairs_of(L)[members].T
    wave, f = S[m, n], neighbour_phase(m / L, n / L)
    power = (np.abs(wave) ** 2).sum()
    across = (wave[:, 0].conj() * wave[:, 1]).sum(axis=1) * np.exp(1j * np.angle(f))
    helicity = np.linalg.norm(np.cross(wave.conj(), wave), axis=2).sum() / power
    images = np.concatenate([shortest(q), shortest(-q)])
    h, k = max(images.tolist(), key=lambda x: (round(x[0] + x[1], 6), x[0]))
    return WaveVector((h, k), weight, *place_of(q, L), float(helicity), float(2 * across.real.sum() / power), members)


def random_weight(L: int) -> float:
    """Weight of the strongest pair +-q of random spins that 1 state in 1000 exceeds (measured: 1500 to 4000 states each of L = 6 to 36)."""
    return (4 + 1.3 * np.log(L)) / L**2


def find_waves(S: np.ndarray) -> list[WaveVector]:
    """Peaks of the structure factor by weight, harmonics too, each with a pair +-q too strong for the remaining weight to be random.

    At least one: for random spins the strongest.
    """
    L = len(S)
    rest = (np.abs(S[tuple(pairs_of(L).T)]) ** 2).sum(axis=(1, 2)) * multiplicity(L)
    waves: list[WaveVector] = []
    while not waves or (len(waves) < MOST_PEAKS and rest.sum() > TILED and rest.max() > rest.sum() * random_weight(L)):
        waves.append(strongest_wave(rest, S))
        rest[waves[-1].members] = 0
    return sorted(waves, key=lambda w: -w.weight)


def is_overtone(wave: WaveVector, parents: list[WaveVector], L: int) -> bool:
    """Whether it is the tail of a parent of over three times its weight, or a sum or difference of two or three parents, one so strong."""
    q = np.array(wave.q)
    for a, parent in enumerate(parents):
        if wave.weight > HARMONIC * parent.weight:
            break
        first = np.array(parent.q)
        reach = np.array([SHOULDER] + [1] * len(OVERTONES) * (len(parents) - a))
        sums = np.array([first] + [n1 * first + n2 * np.array(p.q) for p in parents[a:] for n1, n2 in OVERTONES])
        if any((norm((sums - sign * q) - np.round(sums - sign * q)) * L < reach).any() for sign in (1, -1)):
            return True
    return False
