"""Wave vectors found in a structure factor: its peaks (`find_waves`), and which of them are harmonics of stronger ones (`is_overtone`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import numpy as np

from phases.reciprocal import neighbour_phase, norm, place_of, shortest

TILED = 1e-6  # less intensity than this off the coarser grid: the state is a tiling of a smaller one
REACH = 1.3  # steps: allowed q nearer than this to a wave vector belong to it (a q that does not fit L sits on up to 4 of them)
SAME_WAVE = 0.4  # cos^2 of the angle between amplitudes S(q) of neighbouring q that belong to one wave (1 where q fits or not, 1/2 at M)
SHOULDER = 2.3  # steps: a weak peak nearer than this to a strong one is its tail
HARMONIC = 1 / 3  # a peak at n1 q1 + n2 q2 of OVERTONES with less than this share of the stronger one's weight is a harmonic
OVERTONES = ((2, 0), (3, 0), (1, 1), (1, -1), (2, 1), (2, -1), (1, 2), (1, -2))
MOST_PEAKS = 8


@dataclass(frozen=True)
class WaveVector:
    """One wave vector (+-q identified) of a state, folded into the first Brillouin zone.

    place: Γ, M, K, Γ-M, Γ-K, M-K or general; place_margin: 1 at an allowed q of that place, 0 halfway to the next.
    helicity: |S* x S| / |S|^2, 1 for a circular spiral, 0 for a collinear wave.
    bond: cos of the angle between neighbours that this wave alone would have, relative to the phase q gives them: 1 FM or zigzag,
    -1 Néel or stripy. members: the allowed q that belong to it, as indices into pairs_of(L).
    """

    q: tuple[float, float]
    weight: float
    place: str
    place_margin: float
    helicity: float
    bond: float
    members: np.ndarray = field(repr=False, compare=False)


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
