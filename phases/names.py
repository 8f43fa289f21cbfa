"""Names of phases."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np

SMALLEST_RESOLVED = 6  # below this a wave vector and its neighbours fill the Brillouin zone
LENGTH_TOLERANCE = 1e-3  # of spin lengths in the input
TILED = 1e-6  # less intensity than this off the coarser grid: the state is a tiling of a smaller one
REACH = 1.3  # steps: allowed q nearer than this to a wave vector belong to it (a q that does not fit L sits on up to 4 of them)
SAME_WAVE = 0.4  # cos^2 of the angle between amplitudes S(q) of neighbouring q that belong to one wave (1 where q fits or not, 1/2 at M)
SHOULDER = 2.3  # steps: a weak peak nearer than this to a strong one is its tail
HARMONIC = 1 / 3  # a peak at n1 q1 + n2 q2 of OVERTONES with less than this share of the stronger one's weight is a harmonic
OVERTONES = ((2, 0), (3, 0), (1, 1), (1, -1), (2, 1), (2, -1), (1, 2), (1, -2))
MOST_PEAKS = 8
ORDERED = 1 / 3  # order parameter (0 as random spins, 1 all weight in wave vectors) below which a state is disordered
COPLANAR = 0.04  # weight of the direction that a double-q state uses least, above which it is not coplanar (1/3 at most)
CHARGED = 0.1  # topological charge a magnetic cell, of either sign, above which a double-q state that is not coplanar has merons
OFF_LINE = 0.15  # steps: wave vectors are parallel if the shorter one is nearer than this to the line of the longer one
UNDECIDED = 0.02  # margin below which nothing is claimed
CONFIDENCE_AT_0, CONFIDENCE_SCALE = 0.4, 0.14  # fitted to 9,000 spoilt states, see tests


class PhaseType(Enum):
    """Names of phases. Two choices where the list has no name: stripy, double zigzag and every other collinear or canted state with one
    wave vector are SINGLE_Q; several wave vectors without merons are INCOMMENSURATE, or UNKNOWN if all of them are M or K points. Two
    zigzag wave vectors M at once are still ZIGZAG (domains, or their superposition, degenerate if the couplings are isotropic).
    """

    FM = "Ferromagnetic"
    AFM = "Antiferromagnetic"
    ZIGZAG = "Zigzag"
    ORDER_120 = "120° Order"
    INCOMM_GAMMA_M = "Incommensurate Γ→M"
    INCOMM_GAMMA_K = "Incommensurate Γ→K"
    SINGLE_Q = "Single-Q"
    BEATING = "Beating"
    MERON_ANTIMERON = "Meron-Antimeron"
    TRIPLE_Q = "Triple-Q"
    INCOMMENSURATE = "Incommensurate"
    DISORDERED = "Disordered"
    TIMEOUT = "Timeout"
    UNKNOWN = "Unknown"


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


@dataclass(frozen=True)
class Classification:
    """phase: the name; description: in words; confidence: probability that the clean state behind this one has this name (0: undecided);
    margin: the least of the margins on the decision path, 1 for ideal states, 0 where two names meet; wave_vectors: by weight, the uniform
    part (Γ) included, harmonics not; path: one sentence for each decision; numbers: order, charge, chirality, ... as far as used.
    """

    phase: PhaseType
    description: str
    confidence: float
    margin: float
    wave_vectors: tuple[WaveVector, ...]
    path: tuple[str, ...]
    numbers: dict[str, float]


TIMEOUT, FAILED = "TIMEOUT", "FAILED"
