"""From spins to the name of a phase: `classify`.

Each decision (is there order, is it uniform, how many wave vectors, where, do the spins turn, are there merons) says by what margin it was
taken; the least of these margins is the state's, and the confidence is a measured function of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from phases.errors import InputError
from phases.model import unit
from phases.names import PhaseType
from phases.reciprocal import amplitudes, cartesian, in_wedge, norm, shortest, structure_factor, written
from phases.textures import at_sites, filtered, triangle_chirality
from phases.waves import MOST_PEAKS, TILED, WaveVector, find_waves, is_overtone, multiplicity

SMALLEST_RESOLVED = 6  # below this a wave vector and its neighbours fill the Brillouin zone
LENGTH_TOLERANCE = 1e-3  # of spin lengths in the input
ORDERED = 1 / 3  # order parameter (0 as random spins, 1 all weight in wave vectors) below which a state is disordered
COPLANAR = 0.04  # weight of the direction that a double-q state uses least, above which it is not coplanar (1/3 at most)
CHARGED = 0.1  # topological charge a magnetic cell, of either sign, above which a double-q state that is not coplanar has merons
OFF_LINE = 0.15  # steps: wave vectors are parallel if the shorter one is nearer than this to the line of the longer one
UNDECIDED = 0.02  # margin below which nothing is claimed
CONFIDENCE_AT_0, CONFIDENCE_SCALE = 0.4, 0.14  # fitted to 9,000 spoilt states, see tests

Step = tuple[float, str]  # margin, sentence
Name = tuple[PhaseType, str, list[Step], dict[str, float]]  # phase, description, steps, numbers


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


def classify(spins: np.ndarray, L: int) -> Classification:
    """Name of a spin configuration (N, 3), N = 2 L^2. Raises InputError: L below 6, wrong shape, not finite, not unit vectors.

    The name is the same after any lattice translation, rotation about a hexagon, mirror, global rotation, S -> -S, and tiling.

    >>> found = classify(np.tile([1.0, 0, 0], (288, 1)), 12)
    >>> found.phase.name, round(found.confidence, 2)
    ('FM', 1.0)
    """
    spins, L = smallest_tile(checked(spins, L), L)
    S = amplitudes(spins, L)
    peaks = find_waves(S)
    uniform, waves = [w for w in peaks if w.place == "Γ"], []
    for wave in peaks:
        if wave.place != "Γ" and not is_overtone(wave, waves, L):
            waves.append(wave)
    order = order_parameter(peaks, L)
    phase, description, steps, numbers = name_state(S, order, uniform, waves)
    margin = max(0.0, min(m for m, _ in steps))
    path = [f"{text} (margin {m:.2f})" for m, text in steps]
    confidence = 1 - (1 - CONFIDENCE_AT_0) * float(np.exp(-margin / CONFIDENCE_SCALE))
    if margin < UNDECIDED:
        path.append(f"undecided: the margin {margin:.3f} is below {UNDECIDED}; the nearest name was {phase.name}")
        phase, confidence = PhaseType.UNKNOWN, 0.0
    found = tuple(w for w in peaks if w in uniform or w in waves)
    return Classification(phase, description, confidence, margin, found, tuple(path), {"order": order, **numbers})


def checked(spins: np.ndarray, L: int) -> np.ndarray:
    """The spins as unit vectors (N, 3). Raises InputError."""
    spins = np.asarray(spins, dtype=float)
    if L < SMALLEST_RESOLVED:
        raise InputError(f"classify: L = {L} is too small to resolve wave vectors; use L >= {SMALLEST_RESOLVED}")
    if spins.shape != (2 * L * L, 3):
        raise InputError(f"classify: spins of shape {spins.shape}; L = {L} needs (2 L^2, 3) = {(2 * L * L, 3)}")
    if not np.isfinite(spins).all():
        raise InputError(f"classify: site {int(np.argwhere(~np.isfinite(spins))[0, 0])} has a spin that is not finite")
    lengths = np.linalg.norm(spins, axis=1)
    worst = int(np.argmax(np.abs(lengths - 1)))
    if abs(lengths[worst] - 1) > LENGTH_TOLERANCE:
        raise InputError(f"classify: site {worst} has |S| = {lengths[worst]:.6g}; spins are unit vectors: normalise them")
    return spins / lengths[:, None]


def smallest_tile(spins: np.ndarray, L: int) -> tuple[np.ndarray, int]:
    """The same state on the smallest lattice, not below SMALLEST_RESOLVED, that is a multiple of its period along a1 and a2."""
    intensity = structure_factor(spins, L)
    period = next(p for p in range(1, L + 1) if L % p == 0 and 1 - intensity[:: L // p, :: L // p].sum() < TILED)
    size = period * -(-SMALLEST_RESOLVED // period)
    return spins.reshape(L, L, 2, 3)[:size, :size].reshape(-1, 3), size


def order_parameter(waves: list[WaveVector], L: int) -> float:
    """Share of the weight in wave vectors beyond what random spins would have there: (W - c) / (1 - c), c = share of the allowed q; taken
    for the strongest, the two strongest, ... peaks as long as they leave a third of the allowed q beside them: the largest.
    """
    share = np.cumsum([multiplicity(L)[w.members].sum() for w in waves]) / L**2
    weight = np.cumsum([w.weight for w in waves])
    usable = np.maximum(share < 2 / 3, np.arange(len(waves)) == 0)
    return float(((weight - share)[usable] / (1 - share[usable])).max())


def about(value: float, limit: float, ideal: float) -> float:
    """Margin of a number against a limit: 0 at the limit, 1 at the ideal value and beyond (or at the mirror image of the ideal)."""
    return min(1.0, abs(value - limit) / abs(ideal - limit))


def name_state(S: np.ndarray, order: float, uniform: list[WaveVector], waves: list[WaveVector]) -> Name:
    """Is there order, is it uniform, and how many wave vectors has it? Then its name."""
    L = len(S)
    if order < ORDERED:
        text = f"order parameter {order:.2f} (random spins 0, an ordered state 1) is below {ORDERED:.2f}: disordered"
        return PhaseType.DISORDERED, "disordered", [(about(order, ORDERED, 0), text)], {}
    steps = [(about(order, ORDERED, 1), f"order parameter {order:.2f} (random spins 0, an ordered state 1): ordered")]
    still, moving = (sum(w.weight for w in group) for group in (uniform, waves))
    if still > moving:
        steps.append(((still - moving) / (still + moving), f"{still:.0%} of the weight at Γ, {moving:.0%} elsewhere: uniform"))
        return single_name(uniform[0], L, steps)
    if uniform:
        steps.append(((moving - still) / (still + moving), f"{still:.0%} of the weight at Γ, {moving:.0%} elsewhere: not uniform"))
    domains = len(waves) > 1 and all(w.place == "M" and w.bond * np.sign(waves[0].bond) > 0.5 for w in waves[:2])
    count, margin = number_of_waves(np.array([w.weight for w in waves]), domains)
    listed = ", ".join(f"{w.weight:.0%} at {w.place} {written(w.q, L)}" for w in waves[:4])
    words = ("one wave vector", "two wave vectors", "three wave vectors", "four wave vectors or more")
    steps.append((margin, f"{listed}: {words[count - 1]}"))
    if count == 2 and domains:
        phase, description, steps, _ = single_name(waves[1], L, single_name(waves[0], L, steps)[2])
        return phase, f"{description}, two domains", steps, {}
    if count == 1:
        return single_name(waves[0], L, steps)
    return multiple_name(waves[:count], filtered(S, uniform + waves[:count]), L, steps)


def number_of_waves(weights: np.ndarray, domains: bool) -> tuple[int, float]:
    """1, 2, 3 or 4 (four or more): the nearest to the shares of the weight among 1, (1/2, 1/2), (1/3, 1/3, 1/3), ...; and its margin.

    domains: one and two have the same name, as for zigzag: mixing two domains with orthogonal spins costs no energy in isotropic couplings.
    """
    shares = np.zeros(MOST_PEAKS)
    shares[: len(weights)] = weights / weights.sum()
    ideals = np.tril(np.ones((4, MOST_PEAKS))) / np.arange(1, 5)[:, None]
    squares = ((shares - ideals) ** 2).sum(axis=1)
    nearest = int(np.argmin(squares))
    rivals = [k for k in range(4) if k != nearest and not (domains and k + nearest == 1)]
    apart = ((ideals - ideals[nearest]) ** 2).sum(axis=1)
    return nearest + 1, float(min((squares[k] - squares[nearest]) / apart[k] for k in rivals))


def single_name(wave: WaveVector, L: int, steps: list[Step]) -> Name:
    """Name of a state with one wave vector."""
    steps = [*steps, (wave.place_margin, f"q = {written(wave.q, L)} is {'on ' if '-' in wave.place else ''}{wave.place}")]
    if wave.place in ("Γ", "M"):
        names = {"Γ": (PhaseType.FM, "ferromagnet", "Néel"), "M": (PhaseType.ZIGZAG, "zigzag", "stripy")}[wave.place]
        angle = f"neighbours relative to the phase of q: cos = {wave.bond:+.2f}"
        if abs(wave.bond) < 0.5:
            text = f"{angle}: sublattices neither parallel nor antiparallel"
            return PhaseType.SINGLE_Q, f"canted sublattices at {wave.place}", [*steps, (about(abs(wave.bond), 0.5, 0), text)], {}
        description = names[1] if wave.bond > 0 else names[2]
        phase = names[0] if wave.bond > 0 else PhaseType.AFM if wave.place == "Γ" else PhaseType.SINGLE_Q
        return phase, description, [*steps, (about(abs(wave.bond), 0.5, 1), f"{angle}: {description}")], {}
    if wave.place not in ("K", "Γ-M", "Γ-K"):
        return PhaseType.SINGLE_Q, f"one wave vector, {wave.place}", steps, {}
    spiral = wave.helicity > 0.5
    turning = (about(wave.helicity, 0.5, 1), f"helicity {wave.helicity:.2f}: {'the spins turn' if spiral else 'collinear'}")
    if not spiral:
        doubled = wave.place == "Γ-M" and abs(norm(np.array(wave.q)) - 0.25) * L < 0.5
        return PhaseType.SINGLE_Q, "double zigzag" if doubled else f"collinear wave, {wave.place}", [*steps, turning], {}
    phase = {"K": PhaseType.ORDER_120, "Γ-M": PhaseType.INCOMM_GAMMA_M, "Γ-K": PhaseType.INCOMM_GAMMA_K}[wave.place]
    return phase, "120° order" if wave.place == "K" else f"spiral on {wave.place}", [*steps, turning], {}


def distance_from_line(first: WaveVector, second: WaveVector, L: int) -> float:
    """Distance in steps of the shorter wave vector from the line through Γ and the longer one, the least over equivalent ones."""
    pairs = [(cartesian(a), cartesian(b)) for a in shortest(np.array(first.q)) for b in shortest(np.array(second.q))]
    return float(min(abs((a.conjugate() * b).imag) / max(abs(a), abs(b)) for a, b in pairs)) * L


def multiple_name(found: list[WaveVector], texture: np.ndarray, L: int, steps: list[Step]) -> Name:
    """Name of a state with several wave vectors; texture: the spins (N, 3) that these and the uniform part make."""
    away = max(distance_from_line(a, b, L) for a in found for b in found)
    parallel = away < OFF_LINE
    steps = [*steps, (about(away, OFF_LINE, 0), f"{away:.2f} steps off a common line: {'' if parallel else 'not '}parallel")]
    if parallel:
        return PhaseType.BEATING, "parallel wave vectors", steps, {}
    if len(found) == 3:
        wedge = [in_wedge(np.array(w.q)) for w in found]
        unlike = max(abs(a - b) for a in wedge for b in wedge) * L
        related = unlike < 0.5
        steps = [*steps, (about(unlike, 0.5, 0), f"{'' if related else 'not '}related by lattice symmetry, within {unlike:.2f} steps")]
        if related:
            return PhaseType.TRIPLE_Q, "triple-q", steps, {}
    numbers: dict[str, float] = {}
    if len(found) == 2:
        numbers = meron_numbers(found[0], found[1], texture, L)
        flat, both = numbers["non_coplanar"], min(numbers["charge_plus"], numbers["charge_minus"])
        steps.append((about(flat, COPLANAR, 2 * COPLANAR if flat > COPLANAR else 0), f"{flat:.3f} of the spins' weight out of a plane"))
        if flat > COPLANAR:
            merons = both > CHARGED
            text = (
                f"charges +{numbers['charge_plus']:.2f} and -{numbers['charge_minus']:.2f} a magnetic cell: {'' if merons else 'no '}merons"
            )
            steps.append((about(both, CHARGED, 2 * CHARGED if merons else 0), text))
            if merons:
                return PhaseType.MERON_ANTIMERON, "merons and antimerons", steps, numbers
    described_as = f"{('double', 'triple', 'multiple')[len(found) - 2]}-q"
    if all(w.place in ("M", "K") for w in found):
        return PhaseType.UNKNOWN, f"commensurate {described_as}, which has no name", steps, numbers
    return PhaseType.INCOMMENSURATE, described_as, steps, numbers


def meron_numbers(first: WaveVector, second: WaveVector, texture: np.ndarray, L: int) -> dict[str, float]:
    """non_coplanar: least eigenvalue of the mean S S^T over its trace, 0 for coplanar spins, 1/3 at most, mean of the sublattices; positive
    and negative charge, and scalar chirality in the same unit (equal to it if the texture is smooth), for a magnetic cell of a sublattice.
    """
    images = [(a, b) for a in shortest(np.array(first.q)) for b in shortest(np.array(second.q))]
    cells = 2 * L**2 * min(abs(a[0] * b[1] - a[1] * b[0]) for a, b in images)
    S = texture.reshape(-1, 2, 3)
    flat = np.linalg.eigvalsh(np.einsum("isa,isb->sab", S, S))
    numbers = {"non_coplanar": float(max(0.0, (flat[:, 0] / flat.sum(axis=1)).mean()))}
    triple, charge = triangle_chirality(unit(texture, axis=1), L)
    for name, density in (("charge", at_sites(charge)), ("chirality", at_sites(triple) / (8 * np.pi))):
        numbers |= {f"{name}_plus": float(density[density > 0].sum() / cells), f"{name}_minus": float(-density[density < 0].sum() / cells)}
    return numbers
