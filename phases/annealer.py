"""Low-energy states by simulated annealing: heat bath, over-relaxation and alignment on magnetic cells and the whole lattice, then T = 0.

`simulate` is all of it. A search anneals the magnetic cells first, tiles the lattice with the best of them, relaxes, anneals the best again
from a lower temperature, and relaxes what is left by conjugate gradients until no spin feels a torque.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from phases.clusters import Cell, Clusters, magnetic_cells
from phases.errors import InputError
from phases.model import SMALLEST_L, Couplings, Lattice, grid, luttinger_tisza, unit

TINY = 1e-12
HOT, COLD = 0.4, 0.005  # first and last temperature of an anneal, in units of |bound|
WARM = (0.03, 0.2)  # first temperatures of the anneals that start from a good state
REFLECTIONS = 3  # over-relaxation sweeps after each heat-bath sweep: 6 % of 48 short runs miss the best state, 10 % with 1
ALIGNMENTS = 60  # sweeps at T = 0 before the magnetic cells are compared
NOISE = 0.03  # added to tiled states, which may be saddle points on the larger lattice
TORQUE = 1e-7  # residual |S x H| in units of |J1xy|
AGREE = 1e-5  # energies per site that count as one state while relaxation is not complete
ROUGH, FINALISTS, LAST = 60, 4, 4000  # steps of relaxation of all states; states that go on; steps at most for the last one
PROVEN = 1e-6  # so close to the lower bound nothing is left to be searched


@dataclass(frozen=True)
class Mode:
    """Effort of a simulation. Three times these counts lowered the energy of none of 18 frustrated sets by 1e-6."""

    L: int  # lattice size unless another is asked for
    largest: int  # lattice cells in a magnetic unit cell, at most; L if that is more
    replicas: int  # of each magnetic unit cell
    temperatures: int  # of an anneal
    starts: int  # tiled states that go on
    kept: int  # of these annealed again on the whole lattice
    copies: int  # of each of the kept
    divisors: tuple[int, ...] = ()  # the lattices of L / divisor are searched first, in mode fast


MODES = {
    "screening": Mode(L=8, largest=64, replicas=8, temperatures=150, starts=8, kept=2, copies=4),
    "fast": Mode(L=12, largest=144, replicas=8, temperatures=200, starts=12, kept=4, copies=4),
    "accurate": Mode(L=24, largest=72, replicas=8, temperatures=300, starts=16, kept=4, copies=4, divisors=(2, 3)),
}


def heat_bath(H: np.ndarray, beta: float | np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Unit vectors (3, n, R) drawn from exp(-beta S.H) for fields H of that shape, which are overwritten; beta is a number or (R,).

    With x = beta |H| the cosine to -H has the density exp(x cos), so cos = 1 + log(1 - u + u exp(-2x)) / x for u uniform in [0, 1)
    (Miyatake et al., J. Phys. C 19 (1986) 2539). The frame around H: Duff et al., J. Comput. Graph. Tech. 6 (2017) 1.
    """
    one = H.dtype.type
    H[2] += one(TINY)
    norm = np.sqrt((H * H).sum(0))
    H /= -norm
    x, y, z = H
    norm *= np.asarray(beta, H.dtype)
    np.maximum(norm, one(1e-3), out=norm)
    u, angle = rng.random((2, *norm.shape), dtype=H.dtype)
    drop = np.log((1 - u) + u * np.exp(-2 * norm))  # becomes 1 - cos, exact for small angles too
    drop /= -norm
    sine = np.sqrt(np.maximum(drop * (2 - drop), 0))
    angle *= one(2 * np.pi)
    p, q, cosine = np.cos(angle) * sine, np.sin(angle) * sine, 1 - drop
    sign = np.copysign(one(1), z)
    scale = -1 / (sign + z)
    down = p * sign * x + q * y
    across = cosine + down * scale
    result = np.empty_like(H)
    np.add(across * x, p, out=result[0])
    np.add(across * y, q * sign, out=result[1])
    np.subtract(cosine * z, down, out=result[2])
    return result


def over_relax(spins: np.ndarray, H: np.ndarray) -> None:
    """Reflects spins (3, n, R) in place about their fields, at constant energy (Creutz, Phys. Rev. D 36 (1987) 515); H is overwritten."""
    H *= 2 * (spins * H).sum(0) / ((H * H).sum(0) + H.dtype.type(TINY**2))
    np.subtract(H, spins, out=spins)


def align(spins: np.ndarray, H: np.ndarray) -> None:
    """Turns spins (3, n, R) in place against their fields, where there is one."""
    norm = np.sqrt((H * H).sum(0))
    np.divide(H, -norm, out=spins, where=norm > TINY)


def anneal(clusters: Clusters, spins: np.ndarray, temperatures: np.ndarray, rng: np.random.Generator) -> None:
    """Cools spins (3, N, R) in place through temperatures (steps,) or (steps, R), then aligns them."""
    groups = tuple(enumerate(clusters.groups))
    for beta in 1 / temperatures:
        for g, sites in groups:
            spins[:, sites] = heat_bath(clusters.local_fields(spins, g), beta, rng)
        for _ in range(REFLECTIONS):
            for g, sites in groups:
                over_relax(spins[:, sites], clusters.local_fields(spins, g))
    for _ in range(ALIGNMENTS):
        for g, sites in groups:
            align(spins[:, sites], clusters.local_fields(spins, g))


def relax(cluster: Clusters, spins: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Spins (3, N, R) at T = 0 on one cluster, their energies per site (R,) and largest torques (R,), after at most so many steps.

    Conjugate gradients on the product of spheres, each replica by itself: gradient g = H - (S.H) S, preconditioned by 1/|H|,
    Polak-Ribiere with restarts (Nocedal, Wright, Numerical Optimization, 2006, section 5.2), Newton's step from the exact second
    derivative along the arc, shortened where it would raise the energy.
    """
    S, bias, N = unit(spins.astype(float)), cluster.bias, spins.shape[1]
    H = cluster.all_fields(S) + bias
    E = (S * (H + bias)).sum((0, 1)) / 2
    d, last_g = np.zeros_like(S), np.zeros_like(S)
    last_gz, reach = np.zeros(S.shape[2]), np.full(S.shape[2], 0.5)
    for step in range(steps + 1):
        along = (S * H).sum(0)
        g = H - along * S
        torque = np.sqrt((g * g).sum(0).max(0))
        if step == steps or (torque < TORQUE).all():
            break
        z = g / np.maximum(np.sqrt((H * H).sum(0)), TINY)
        gz = (g * z).sum((0, 1))
        d = d * np.maximum((gz - (z * last_g).sum((0, 1))) / np.where(last_gz > 0, last_gz, np.inf), 0) - z
        d -= (S * d).sum(0) * S
        slope = (g * d).sum((0, 1))
        d, slope = np.where(slope < 0, d, -z), np.where(slope < 0, slope, -gz)
        lengths = (d * d).sum(0)
        curvature = (d * cluster.all_fields(d)).sum((0, 1)) - (lengths * along).sum(0)
        longest = np.sqrt(lengths.max(0)) + TINY**2
        newton = np.divide(-slope, curvature, out=np.full_like(slope, np.inf), where=curvature > 0)
        length = np.minimum(newton, reach / longest)
        new_S = unit(S + length * d)
        new_H = cluster.all_fields(new_S) + bias
        new_E = (new_S * (new_H + bias)).sum((0, 1)) / 2
        good = new_E <= E + 1e-14 * (N + np.abs(E))
        reach = np.where(good, np.minimum(2 * reach, 0.5), length * longest / 4)
        S, H, E = np.where(good, new_S, S), np.where(good, new_H, H), np.where(good, new_E, E)
        d, last_gz, last_g = np.where(good, d, 0), np.where(good, gz, 0), g
    return S, E / N, torque


def repeated(state: np.ndarray, L: int) -> np.ndarray:
    """Spins (3, 2 L**2, 1) of the lattice that the state (3, 2 L'**2) of a smaller one tiles, L a multiple of L'."""
    part = math.isqrt(state.shape[1] // 2)
    i, j = grid(L, L)
    return state.reshape(3, part * part, 2)[:, i % part * part + j % part].reshape(3, -1, 1)


def distinct(energies: np.ndarray, most: int) -> list[int]:
    """Indices of at most so many lowest energies, no two closer than AGREE."""
    chosen: list[int] = []
    for k in np.argsort(energies, kind="stable").tolist():
        if len(chosen) < most and (not chosen or energies[k] - energies[chosen[-1]] > AGREE):
            chosen.append(k)
    return chosen


def tiled_starts(couplings: Couplings, L: int, mode: Mode, scale: float, rng: np.random.Generator) -> np.ndarray:
    """Spins (3, 2 L**2, starts) tiled from the magnetic unit cells whose annealed energies are lowest.

    A whole lattice is a glass to an annealer, a cell of a few spins is not; and the cells hold every order that the
    lattice allows up to their size: all collinear and 120-degree orders, all spirals, multi-q textures.
    """
    clusters = Clusters.of(magnetic_cells(L, max(mode.largest, L), couplings.second), couplings)
    spins = unit(rng.standard_normal((3, len(clusters.order), mode.replicas), dtype=np.float32))
    anneal(clusters, spins, scale * np.geomspace(HOT, COLD, mode.temperatures), rng)
    energies = clusters.energies(spins)
    lowest = np.argsort(energies.min(1), kind="stable")[: mode.starts]
    return np.stack([clusters.tiled(L, spins, c, int(energies[c].argmin())) for c in lowest], 2)


def search(
    couplings: Couplings, L: int, mode: Mode, bound: float, seed: int, smaller: Iterable[np.ndarray] = ()
) -> tuple[np.ndarray, float, float, np.ndarray]:
    """Lowest state found on L x L: spins (3, N) in the order of Lattice, energy, torque, and the energies of all restarts.

    smaller: states (3, 2 L'**2) of lattices that tile this one; the result is never above them.
    """
    rng, scale = np.random.default_rng([seed, L]), max(abs(bound), TINY)
    full = Clusters.of([Cell(L, 0, L)], couplings)
    fresh, old = tiled_starts(couplings, L, mode, scale, rng), [repeated(state, L) for state in smaller]
    starts = np.concatenate([fresh, *old], 2)
    spins = np.empty((3, 2 * L * L, starts.shape[2] + len(old)))
    spins[:, full.order] = np.concatenate([starts + NOISE * rng.standard_normal(starts.shape), *old], 2)
    pool, energies, _ = relax(full, spins, ROUGH)
    if energies.min() - bound > PROVEN:
        kept = distinct(energies, mode.kept)
        warm = np.repeat(pool[:, :, kept].astype(np.float32), mode.copies, axis=2)
        first = np.tile(np.geomspace(*WARM, mode.copies), len(kept))
        anneal(full, warm, scale * np.geomspace(first, COLD, mode.temperatures), rng)
        warm, warm_energies, _ = relax(full, warm, ROUGH)
        pool, energies = np.concatenate([pool, warm], 2), np.concatenate([energies, warm_energies])
    best, final, _ = relax(full, pool[:, :, distinct(energies, FINALISTS)], 4 * ROUGH)
    best, final, torque = relax(full, best[:, :, [final.argmin()]], LAST)
    return best[:, full.order, 0], float(final[0]), float(torque[0]), energies


@dataclass(frozen=True)
class Simulation:
    """Lowest state found; unpacks as (spins, positions, energy)."""

    spins: np.ndarray  # (N, 3)
    positions: np.ndarray  # (N, 2) in units of |a1|
    energy: float  # per site, in units of |J1xy|
    bound: float  # Luttinger-Tisza: no state of any size is lower
    spread: float  # standard deviation of the energies of the restarts
    agreeing: int  # restarts within AGREE of the lowest
    restarts: int
    torque: float  # largest |S x H| left
    converged: bool  # torque below TORQUE
    seconds: float

    def __iter__(self) -> Iterator[np.ndarray | float]:
        return iter((self.spins, self.positions, self.energy))


def simulate(parameters: Mapping[str, float] | Couplings, L: int | None = None, mode: str = "fast", seed: int = 0) -> Simulation:
    """Ground state of L x L cells (default: the mode's size) by annealing; the same seed gives the same state whatever runs beside it.

    Mode accurate searches the lattices of L / 2 and L / 3 first, as mode fast does with this seed, and starts from their states too: it
    is never above mode fast on those sizes. Where one of them reaches the lower bound, only short anneals remain. Raises InputError for an
    unknown mode or coupling, a bad size or a bad seed.

    >>> spins, positions, energy = simulate({"J3xy": 0.2}, L=6, mode="screening")
    >>> spins.shape, round(energy, 6)
    ((72, 3), -1.2)
    """
    began = time.perf_counter()
    if mode not in MODES:
        raise InputError(f"unknown mode {mode!r}: use {', '.join(MODES)}")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise InputError(f"seed {seed!r}: give a whole number, not negative")
    couplings = parameters if isinstance(parameters, Couplings) else Couplings.from_parameters(parameters)
    effort = MODES[mode]
    lattice = Lattice.of(effort.L if L is None else L)
    bound, _ = luttinger_tisza(couplings)
    parts = [lattice.L // d for d in effort.divisors if lattice.L % d == 0 and lattice.L // d >= SMALLEST_L]
    smaller: list[np.ndarray] = []
    for part in parts:
        state, value, *_ = search(couplings, part, MODES["fast"], bound, seed)
        smaller.append(state)
        if value - bound <= PROVEN:
            effort = replace(effort, largest=0, temperatures=100)
            break
    spins, final, torque, energies = search(couplings, lattice.L, effort, bound, seed, smaller)
    return Simulation(
        spins=np.ascontiguousarray(spins.T),
        positions=lattice.positions,
        energy=final,
        bound=bound,
        spread=float(energies.std()),
        agreeing=int((energies <= final + AGREE).sum()),
        restarts=len(energies),
        torque=torque,
        converged=torque <= TORQUE,
        seconds=time.perf_counter() - began,
    )
