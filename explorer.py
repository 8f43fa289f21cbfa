#!/usr/bin/env python3
"""Explore the phase diagram of a honeycomb magnet, or of any simulation, by parallel active learning.

    python explorer.py --n-jobs 8                              # 54 + 100 points of the seven couplings of BaCo2(AsO4)2
    python explorer.py --n-jobs 8                              # again: goes on where it was interrupted
    python explorer.py --skip-simulation --report report.html  # pictures and tables of what is there
    python explorer.py --parameters '{"J3xy": [0, 1], "J1z": [-1, 1]}' --output-dir plane --plots
    python explorer.py --simulation my_model:simulate --parameters box.json --n-jobs -1
    python explorer.py --point 17
    python explorer.py --test-parallel --n-jobs 8
    python explorer.py --benchmark

How an exploration goes (the sections below, in this order):
    Errors                      one root, one line for the user
    Model                       couplings, lattice, energy, the Luttinger-Tisza bound
    Annealer                    heat bath on magnetic cells and the whole lattice, then T = 0 relaxation
    Phases: names               the list, and what a classification says
    Phases: reciprocal          sublattice-resolved structure factor, the places of a wave vector
    Phases: wave vectors        peaks, their members, harmonics
    Phases: real space          topological charge and chirality
    Phases: decisions           from wave vectors to a name, with a margin at each step
    Phases: ideal states        what every name looks like
    Parameter box               names and ranges, unit points
    Surrogate                   phase probabilities, a Gaussian-process classifier
    Acquisition                 where to simulate next
    Explorer core               ask and tell
    History                     append-only events, snapshots
    Simulations                 one point in a worker, progress
    Active learning             the class that a script uses: points, batches, the loop
    Reading a run               a history without claiming it; summaries
    Plots                       pictures, with matplotlib
    Report                      one HTML page
    Simulations of this program what a worker is asked to call
    Test of parallel running    sequential against parallel
    Benchmark                   the figures asked for, and what is reached
    Command line                options, checks, main

Glossary: L x L cells, N = 2 L^2 sites, s sublattice (0 = A, 1 = B), R replicas; q = (h, k) = h b1 + k b2 with a_i . b_j = 2 pi delta_ij;
M = (1/2, 0), K = (2/3, 1/3) and their images; step = |b| / L, the spacing of the allowed q; weight = share of the total intensity; energies
per site and couplings in units of |J1xy|; d parameters, n labelled points, m points asked about, C phases; unit point = parameters scaled
to [0, 1]^d; label = name of a phase; iteration = a batch of points chosen together, 0 the initial ones; probes = fixed points where
predictions are compared.
References: arXiv:2205.15262 (XXZ fit of the model), arXiv:2304.06062 (its spin-1/2 ground states, which differ from these);
Luttinger, Tisza, Phys. Rev. 70 (1946) 954; Miyatake et al., J. Phys. C 19 (1986) 2539 (heat bath); Creutz, Phys. Rev. D 36 (1987) 515
(over-relaxation); Berg, Luescher, Nucl. Phys. B190 (1981) 412 (topological charge); Rasmussen, Williams, Gaussian Processes for
Machine Learning, 2006; arXiv:2409.07042 (active learning of a honeycomb phase diagram).
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import html
import importlib
import io
import json
import math
import multiprocessing
import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, as_completed
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from condor_worker import (
    LONGEST_TIMEOUT_S,
    CondorExecutor,
    CondorMissing,
    DirectoryRefused,
    ExecutorError,
    LocalExecutor,
    TaskTimeout,
    check_condor_tools,
    check_submit_options,
    claim_directory,
    ensure_standard_streams,
    process_exists,
    read_claim,
    remove_run,
    replace_file,
    split_options,
)

__version__ = "0.1.0"

# =====================================================================================================================
# Errors
# =====================================================================================================================


class ExplorerError(Exception):
    """Root of what this program refuses or cannot do; its text is one line: what, where, what to do."""


class InputError(ExplorerError):
    """The user's input is wrong (exit code 2)."""


# =====================================================================================================================
# Model
# =====================================================================================================================

PARAMETERS = ("J1z", "D", "E", "F", "G", "J3xy", "J3z")
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
    """Couplings of H = sum_bonds S_i^T J_ij S_j - sum_i h.S_i in units of |J1xy|."""

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
        """Couplings from a dict name -> number; what is left out keeps its default. Raises InputError."""
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
    """Periodic honeycomb lattice; site (i, j, s) has index (i L + j) 2 + s."""

    L: int
    positions: np.ndarray  # (N, 2) in units of |a1|
    bonds: np.ndarray  # (12, L**2, 2) site indices, row b for BONDS[b]; the last six are second neighbours
    first: np.ndarray  # (N, 3) neighbours by bonds Z, X, Y
    second: np.ndarray  # (N, 6)
    third: np.ndarray  # (N, 3)

    @staticmethod
    @lru_cache(maxsize=16, typed=True)
    def of(L: int) -> Lattice:
        """The lattice of L x L cells, even or odd; its arrays are read-only. Raises InputError."""
        if isinstance(L, bool) or not isinstance(L, (int, np.integer)) or L < SMALLEST_L:
            raise InputError(f"lattice size L = {L!r}: give a whole number, at least {SMALLEST_L}")
        i, j = grid(L, L)
        index = (i * L + j) * 2
        positions = np.empty((2 * L * L, 2))
        positions[0::2] = i[:, None] * A1 + j[:, None] * np.array(A2)
        positions[1::2] = positions[0::2] + B_OFFSET
        bonds = np.array([[index + s, ((i + n) % L * L + (j + m) % L) * 2 + t] for _, s, t, (n, m) in BONDS]).transpose(0, 2, 1)
        tables = []
        for rows, width in ((slice(0, 3), 3), (slice(6, 12), 6), (slice(3, 6), 3)):
            pairs = np.concatenate([bonds[rows], bonds[rows, :, ::-1]]).reshape(-1, 2)
            tables.append(pairs[np.argsort(pairs[:, 0], kind="stable"), 1].reshape(-1, width))
        for array in (positions, bonds, *tables):
            array.flags.writeable = False
        return Lattice(int(L), positions, bonds, tables[0], tables[1], tables[2])


def local_fields(spins: np.ndarray, couplings: Couplings) -> np.ndarray:
    """H_i = sum_j J_ij S_j - h of spins (..., N, 3), same shape: the energy falls fastest along -H_i."""
    lattice, matrices = Lattice.of(math.isqrt(spins.shape[-2] // 2)), exchange(couplings)
    total = np.broadcast_to(-couplings.field, spins.shape).copy()
    for (kind, *_), bond in zip(BONDS, lattice.bonds):
        for here, there in (bond.T, bond.T[::-1]):
            total[..., here, :] += spins[..., there, :] @ matrices[kind]
    return total


def energy(spins: np.ndarray, couplings: Couplings) -> np.ndarray:
    """Energy per site of spins (..., N, 3), each bond counted once: sum_i S_i.(H_i - h) / (2 N), shape (...)."""
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


# =====================================================================================================================
# Annealer
# =====================================================================================================================

GEMM_WORK = 1 << 18  # OpenBLAS uses threads for larger products only; kept below, no result depends on their number
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


@dataclass(frozen=True)
class Cell:
    """Magnetic unit cell spanned by d1 a1 + shear a2 and d2 a2."""

    d1: int
    shear: int
    d2: int

    @property
    def size(self) -> int:
        return self.d1 * self.d2

    def member(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Which member 0 .. size - 1 the lattice cell (i, j) repeats."""
        return i % self.d1 * self.d2 + (j - self.shear * (i // self.d1)) % self.d2


def magnetic_cells(L: int, largest: int, second: bool = False) -> list[Cell]:
    """All unit cells of at most `largest` lattice cells that tile L x L: the Hermite normal forms of its sublattices.

    With second neighbours a cell in which a site would be its own neighbour is left out: its update would not be a heat bath.
    """
    divisors = [d for d in range(1, L + 1) if L % d == 0]
    cells = [Cell(a, shear, b) for a in divisors for b in divisors for shear in range(b) if L // a * shear % b == 0]
    steps = np.array([step for kind, *_, step in BONDS if kind == "J2"]).T
    return [c for c in cells if c.size <= largest and not (second and (c.member(*steps) == 0).any())]


def colouring(neighbours: np.ndarray) -> np.ndarray:
    """Greedy colours (n,): no site has the colour of one of its neighbours (n, z)."""
    colours = np.full(len(neighbours), -1)
    for site, near in enumerate(neighbours):
        taken = set(colours[near].tolist())
        colours[site] = next(c for c in range(len(taken) + 1) if c not in taken)
    return colours


@dataclass(frozen=True)
class Clusters:
    """Periodic clusters, one for each magnetic cell, side by side in one array of spins (3, N, R).

    Sites are sorted by colour, and no two sites of one colour are coupled: without J2 the colours are the sublattices.
    """

    cells: tuple[Cell, ...]
    groups: tuple[slice, ...]  # the sites of each colour
    gather: tuple[np.ndarray, ...]  # for each colour of n sites: (z n,) their neighbours, those by the first bond first
    matrices: tuple[np.ndarray, ...]  # for each colour: (3, 3 z), columns (component, bond)
    bias: np.ndarray  # (3, 1, 1), -h
    order: np.ndarray  # (N,) places in the array of site 2 (first + member) + s, clusters one after the other
    first: np.ndarray  # members of all clusters before each

    @staticmethod
    def of(cells: Iterable[Cell], couplings: Couplings) -> Clusters:
        """Tables of the clusters of these cells."""
        cells = tuple(cells)
        sizes = np.array([c.size for c in cells])
        first = np.cumsum(sizes) - sizes
        bonds = [b for b in BONDS if b[0] != "J2" or couplings.second]
        corners = [(c, start, *grid(c.d1, c.d2)) for c, start in zip(cells, first)]
        near, kinds = ([], []), ([], [])  # by sublattice, by bond: the neighbours' sites, the type
        for kind, s, t, (n, m) in bonds:
            for here, there, sign in ((s, t, 1), (t, s, -1)):
                members = [start + c.member(i + sign * n, j + sign * m) for c, start, i, j in corners]
                near[here].append(2 * np.concatenate(members) + there)
                kinds[here].append(kind)
        colour = np.tile([0, 1], sizes.sum())
        for s in (0, 1) if couplings.second else ():
            colour[s::2] += 2 * colouring(np.array(near[s][6:]).T // 2)
        by_colour = np.argsort(colour, kind="stable")
        order = np.argsort(by_colour)
        ends = np.cumsum(np.bincount(colour)).tolist()
        groups = tuple(slice(a, b) for a, b in zip([0, *ends], ends))
        sublattices = [int(by_colour[g.start]) % 2 for g in groups]
        gather = tuple(order[np.array(near[s])[:, by_colour[g] // 2]].ravel() for s, g in zip(sublattices, groups))
        matrix = exchange(couplings)
        columns = [np.stack([matrix[kind] for kind in kinds[s]], 2).reshape(3, -1) for s in (0, 1)]
        return Clusters(cells, groups, gather, tuple(columns[s] for s in sublattices), -couplings.field[:, None, None], order, first)

    def fields(self, spins: np.ndarray, group: int) -> np.ndarray:
        """Sum of J_ij S_j, shape (3, n, R), at the n sites of one colour."""
        near = np.take(spins, self.gather[group], axis=1, mode="clip")
        matrix = self.matrices[group].astype(spins.dtype)
        near = near.reshape(matrix.shape[1], -1)
        result = np.empty((3, near.shape[1]), spins.dtype)
        width = GEMM_WORK // matrix.size
        for k in range(0, near.shape[1], width):
            np.matmul(matrix, near[:, k : k + width], out=result[:, k : k + width])
        return result.reshape(3, -1, spins.shape[2])

    def local_fields(self, spins: np.ndarray, group: int) -> np.ndarray:
        """H_i = sum of J_ij S_j - h, shape (3, n, R), at the n sites of one colour."""
        H = self.fields(spins, group)
        if self.bias.any():
            H += self.bias.astype(H.dtype)
        return H

    def all_fields(self, spins: np.ndarray) -> np.ndarray:
        """Sum of J_ij S_j, shape (3, N, R), at all sites."""
        return np.concatenate([self.fields(spins, g) for g in range(len(self.groups))], axis=1)

    def energies(self, spins: np.ndarray) -> np.ndarray:
        """Energy per site of each cluster, shape (clusters, R)."""
        density = (spins * (self.all_fields(spins) / 2 + self.bias)).sum(0)[self.order]
        return np.add.reduceat(density, 2 * self.first, axis=0) / (2 * np.array([[c.size] for c in self.cells]))

    def tiled(self, L: int, spins: np.ndarray, cluster: int, replica: int) -> np.ndarray:
        """Spins (3, 2 L**2) of the lattice that one cluster tiles, sites as in Lattice."""
        member = self.first[cluster] + self.cells[cluster].member(*grid(L, L))
        return spins[:, self.order[2 * member[:, None] + (0, 1)].ravel(), replica]


def unit(vectors: np.ndarray) -> np.ndarray:
    """vectors (3, ...) divided by their lengths."""
    return vectors / np.sqrt((vectors * vectors).sum(0))


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


# =====================================================================================================================
# Phases: names
# =====================================================================================================================

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


# =====================================================================================================================
# Phases: reciprocal
# =====================================================================================================================


def amplitudes(spins: np.ndarray, L: int) -> np.ndarray:
    """S_s(q), shape (L, L, 2, 3) complex, at q = (m, n) / L, normalised so that the sum of |S|^2 over everything is the mean of |S_i|^2."""
    return np.fft.fft2(spins.reshape(L, L, 2, 3), axes=(0, 1)) / (np.sqrt(2.0) * L * L)


def structure_factor(spins: np.ndarray, L: int) -> np.ndarray:
    """I(q) = sum_s |S_s(q)|^2 on the allowed q = (m, n) / L, shape (L, L), sum 1 (Parseval), I(q) = I(-q)."""
    return (np.abs(amplitudes(spins, L)) ** 2).sum(axis=(2, 3))


def neighbour_phase(h: np.ndarray | float, k: np.ndarray | float) -> np.ndarray:
    """Sum of exp(i q . delta) over the three bonds Z (0, 0), X (0, -1), Y (1, -1) from A to B; 3 at Γ, modulus 1 at M, 0 at K."""
    return 1 + np.exp(-2j * np.pi * np.asarray(k)) + np.exp(2j * np.pi * (np.asarray(h) - k))


def norm(x: np.ndarray) -> np.ndarray:
    """Length of x = (h, k), shape (..., 2), in units of |b|."""
    return np.sqrt(x[..., 0] ** 2 + x[..., 1] ** 2 - x[..., 0] * x[..., 1])


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


# =====================================================================================================================
# Phases: wave vectors
# =====================================================================================================================


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


# =====================================================================================================================
# Phases: real space
# =====================================================================================================================


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
    """Charge at each site, shape (N,), for plots, and the total of each sublattice, shape (2,), integers."""
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


# =====================================================================================================================
# Phases: decisions
# =====================================================================================================================

Step = tuple[float, str]  # margin, sentence
Name = tuple[PhaseType, str, list[Step], dict[str, float]]  # phase, description, steps, numbers


def classify(spins: np.ndarray, L: int) -> Classification:
    """Name of a spin configuration (N, 3), N = 2 L^2. InputError: L too small, wrong shape, not finite, not unit vectors.

    The name is the same after any lattice translation, rotation about a hexagon, mirror, global rotation, S -> -S, and tiling.
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
    """The spins as unit vectors (N, 3), or InputError."""
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
    triple, charge = triangle_chirality(normalised(texture), L)
    for name, density in (("charge", at_sites(charge)), ("chirality", at_sites(triple) / (8 * np.pi))):
        numbers |= {f"{name}_plus": float(density[density > 0].sum() / cells), f"{name}_minus": float(-density[density < 0].sum() / cells)}
    return numbers


# =====================================================================================================================
# Phases: ideal states
# =====================================================================================================================

M_POINTS = ((0.0, 0.5), (0.5, 0.0), (0.5, 0.5))  # domain 0: the Z bond is the odd one; 1: Y; 2: X
STRAIGHT = ("ferromagnet", "neel", "zigzag", "stripy", "double_zigzag", "collinear")


def ideal_state(name, L, *, domain=0, q=None, q2=None, q3=None, antiferro=False, handedness=1, tilt=0.4, rng=None) -> np.ndarray:
    """Spins (N, 3) of an ideal state: ferromagnet, neel, zigzag, stripy, double_zigzag (domain 0, 1, 2), order_120 (handedness 1, -1),
    spiral, conical (q), collinear (q, a square wave), double_q (q, q2; coplanar), meron (q, q2; four vortices a magnetic cell),
    chiral_stripe (helix along q, wave along q2), beating (the same with parallel q, q2), triple_q (q, q2, q3), random (rng: a generator).

    q, q2, q3: any (h, k); one that L does not fit leaves a seam. antiferro: B reversed; tilt: uniform part of conical and meron.
    """
    if name == "random":
        return normalised(rng.normal(size=(2 * L * L, 3)))
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
    return normalised(np.stack(components.get(name, plain), axis=1))


def wave_phase(q: tuple[float, float], L: int, reversed_b: bool, quarters: bool) -> np.ndarray:
    """q . r at each site (N,), with B so that neighbours on the average are parallel (or antiparallel); quarters: B by quarter turns."""
    cells = 2 * np.pi * (q[0] * np.arange(L)[:, None] + q[1] * np.arange(L)[None, :])
    shift = -np.angle(np.round(neighbour_phase(*q), 12))
    shift = np.round(shift / (np.pi / 2)) * (np.pi / 2) if quarters else shift
    return np.stack([cells, cells + shift + np.pi * reversed_b], axis=-1).ravel()


def normalised(vectors: np.ndarray) -> np.ndarray:
    """The vectors (N, 3) at length 1."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


# =====================================================================================================================
# Parameter box
# =====================================================================================================================

DIGITS = 6  # of unit coordinates: parameters that can be read, duplicates that can be seen
GRAIN = 10.0**-DIGITS


def encodable(text: str) -> str:
    """Without lone surrogates, which the names of files may hold but UTF-8 cannot."""
    return text.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True)
class Box:
    """The parameters of an exploration and their ranges."""

    names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self):
        if not self.names or len(set(self.names)) < len(self.names) or not len(self.names) == len(self.low) == len(self.high):
            raise InputError(f"parameters {', '.join(self.names) or '(none)'}: give each of them once, with its low and high bound")
        for name, low, high in zip(self.names, self.low, self.high):
            if not (math.isfinite(high - low) and low < high):
                raise InputError(f"parameter {name}: bounds {low:g}, {high:g}; the low bound must be below the high one, both finite")
            if name != encodable(name):
                raise InputError(f"parameter {encodable(name)}: not a name that can be written down")

    @staticmethod
    def of(bounds: Mapping[str, Sequence[float]]) -> Box:
        """From {name: (low, high)}. Raises InputError."""
        try:
            pairs = [(float(low), float(high)) for low, high in bounds.values()]
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f'parameter box {dict(bounds)}: give {{"name": [low, high], ...}}') from error
        return Box(tuple(bounds), tuple(low for low, _ in pairs), tuple(high for _, high in pairs))

    def bounds(self) -> dict[str, list[float]]:
        return {name: [low, high] for name, low, high in zip(self.names, self.low, self.high)}

    def to_unit(self, parameters: Mapping[str, float]) -> tuple[float, ...]:
        """A unit point. Raises InputError for a missing or unknown name or a value that is not within its bounds."""
        if set(parameters) != set(self.names):
            raise InputError(f"parameters {', '.join(parameters)}: expected {', '.join(self.names)}")
        point = [(parameters[name] - low) / (high - low) for name, low, high in zip(self.names, self.low, self.high)]
        for name, x in zip(self.names, point):
            if not -GRAIN < x < 1 + GRAIN:
                raise InputError(f"parameter {name} = {parameters[name]:g} lies outside its bounds {self.bounds()[name]}")
        return tuple(on_grain(np.array(point)).tolist())

    def parameters(self, point: Sequence[float]) -> dict[str, float]:
        return {name: low + x * (high - low) for name, low, high, x in zip(self.names, self.low, self.high, point)}


DEFAULT_BOX = Box.of(dict.fromkeys(PARAMETERS, (-1.0, 1.0)))


def on_grain(points: np.ndarray) -> np.ndarray:
    return np.round(np.clip(points, 0, 1), DIGITS)


def latin_hypercube(n: int, d: int, rng: np.random.Generator) -> np.ndarray:
    """n points (n, d) of the unit cube, one in each of the n slices of every coordinate."""
    return on_grain((np.stack([rng.permutation(n) for _ in range(d)], axis=1) + rng.random((n, d))) / n)


def r_sequence(n: int, shift: np.ndarray) -> np.ndarray:
    """n points (n, d) that fill the unit cube evenly: additive recurrence by powers of the root of x^(d+1) = x + 1 (M. Roberts, 2018)."""
    d, root = len(shift), 2.0
    for _ in range(60):
        root = (1 + root) ** (1 / (d + 1))
    return on_grain((shift + np.outer(np.arange(1, n + 1), root ** -np.arange(1.0, d + 1))) % 1)


# =====================================================================================================================
# Surrogate
# =====================================================================================================================

# Phases as a Gaussian-process softmax classifier with one Matérn-5/2 kernel for all phases. Three quick steps instead of
# one slow Laplace evidence: length scales from the evidence of a regression on one-hot labels (Rasmussen & Williams,
# Gaussian Processes for Machine Learning, 2006, 5.4.1 and 6.5), latent functions by the softmax mode, amplitude and
# temperature by leave-one-out log loss (Vehtari et al., arXiv:1412.7461, the linear-response cavity).
HYPER_POINTS = 1000  # length scales, amplitude and temperature are learnt from at most so many points
AMPLITUDES = (2.0, 5.0, 12.0, 30.0)  # of the latent functions, compared by leave-one-out
SHARPNESSES = np.exp(np.linspace(-2, 2, 25))  # inverse temperatures, compared likewise
LEAST_WEIGHT = 0.1  # of a label with confidence 0


@dataclass(frozen=True)
class Surrogate:
    """Phase probabilities of unit points, learnt from labelled ones."""

    labels: tuple[str, ...]  # the C phases, sorted
    points: np.ndarray  # (n, d)
    scales: np.ndarray  # (d,) length scales in unit coordinates
    coefficients: np.ndarray  # (n, C), of the kernels around the points
    doubt: float  # probability given to all phases alike: what n points cannot exclude

    def probabilities(self, points: np.ndarray) -> np.ndarray:
        """Shape (m, C), each row sums to 1, for unit points (m, d)."""
        kernel, _ = matern(squared_distances(points, self.points, self.scales))
        return (1 - self.doubt) * softmax(kernel @ self.coefficients) + self.doubt / len(self.labels)

    def predict(self, points: np.ndarray) -> np.ndarray:
        """The most probable label of each unit point, shape (m,)."""
        return np.array(self.labels)[self.probabilities(points).argmax(axis=1)]


def fit_labels(points: np.ndarray, labels: Sequence[str], weights: np.ndarray) -> Surrogate:
    """The surrogate of n >= 1 labelled unit points (n, d), whatever their order; weights (n,) in (0, 1] say how sure a label is."""
    order = np.lexsort(points.T)
    points, weights = points[order], weights[order]
    names, classes = np.unique(np.array(labels)[order], return_inverse=True)
    onehot = np.eye(len(names))[classes]
    n, d = points.shape
    doubt = 1 / (n + 1)
    if len(names) == 1:
        return Surrogate(tuple(names.tolist()), points, np.full(d, default_scale(d)), np.zeros((n, 1)), doubt)
    some = np.sort(np.random.default_rng(0).permutation(n)[:HYPER_POINTS])
    scales = evidence_scales(points[some], onehot[some], weights[some])
    kernel = matern(squared_distances(points[some], points[some], scales))[0]
    amplitude, sharpness, alpha = best_mode(kernel, onehot[some], weights[some])
    if len(some) < n:
        kernel = amplitude**2 * matern(squared_distances(points, points, scales))[0]
        _, alpha = latent_mode(kernel, onehot, weights)
    return Surrogate(tuple(names.tolist()), points, scales, sharpness * amplitude**2 * alpha, doubt)


def default_scale(d):
    return 0.3 * math.sqrt(d)


def squared_distances(a: np.ndarray, b: np.ndarray, scales: np.ndarray | float) -> np.ndarray:
    a, b = a / scales, b / scales
    return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T, 0)


def matern(r2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The Matérn-5/2 kernel of squared scaled distances, and its derivative by them."""
    root = np.sqrt(5 * r2)
    decay = np.exp(-root)
    return (1 + root + root**2 / 3) * decay, -5 / 6 * (1 + root) * decay


def softmax(z: np.ndarray) -> np.ndarray:
    z = np.exp(z - z.max(axis=-1, keepdims=True))
    return z / z.sum(axis=-1, keepdims=True)


def evidence_scales(points: np.ndarray, onehot: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Length scales (d,) of greatest evidence for a regression on one-hot labels, amplitude profiled out, noise fitted along."""
    (n, d), C = points.shape, onehot.shape[1]
    targets = onehot - 1 / C
    start = np.append(np.full(d, math.log(default_scale(d))), math.log(0.01))

    def loss(x):
        scales, noise = np.exp(x[:d]), np.exp(x[d])
        kernel, slope = matern(squared_distances(points, points, scales))
        root = np.linalg.cholesky(kernel + np.diag((noise + 1e-4) / weights))
        inverse = np.linalg.inv(root)
        inverse = inverse.T @ inverse
        alpha = inverse @ targets
        count = n * (C - 1)  # the C targets of a point sum to 0
        variance = (targets * alpha).sum() / count
        value = (0.5 * count * math.log(variance) + (C - 1) * np.log(np.diag(root)).sum()) / n
        by_kernel = (-0.5 / variance * alpha @ alpha.T + 0.5 * (C - 1) * inverse) / n
        by_r2, scaled = by_kernel * slope, points / scales
        by_scales = -4 * (by_r2.sum(1) @ scaled**2 - (scaled * (by_r2 @ scaled)).sum(0))
        gradient = np.append(by_scales, noise * (np.diag(by_kernel) / weights).sum())
        away, pull = x - start, 1 / n  # a prior a factor e wide; without it a parameter may drop out by chance while points are few
        return value + 0.5 * pull * away @ away, gradient + pull * away

    return np.exp(minimise(loss, start, steps=60, tolerance=1e-5)[:d])


def latent_mode(kernel: np.ndarray, onehot: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Latent functions F (n, C) of greatest posterior probability, softmax likelihood, and alpha (n, C): F = kernel @ alpha.

    At the mode alpha is the residual onehot - p. Where the search stops that is not quite so: predictions by the residual may be far off.
    """
    n, C = onehot.shape
    root = np.linalg.cholesky(kernel + 1e-6 * kernel[0, 0] * np.eye(n))

    def loss(x):
        white = x.reshape(n, C)
        latent = root @ white
        top = latent.max(axis=1, keepdims=True)
        log_p = latent - top - np.log(np.exp(latent - top).sum(axis=1, keepdims=True))
        residual = weights[:, None] * (onehot - np.exp(log_p))
        return 0.5 * (white**2).sum() - (weights[:, None] * onehot * log_p).sum(), (white - root.T @ residual).ravel()

    white = minimise(loss, np.zeros(n * C), steps=200, tolerance=1e-6).reshape(n, C)
    return root @ white, np.linalg.solve(root.T, white)


def best_mode(kernel: np.ndarray, onehot: np.ndarray, weights: np.ndarray) -> tuple[float, float, np.ndarray]:
    """(amplitude, inverse temperature, alpha (n, C)) of least leave-one-out log loss."""
    best = (math.inf, 0.0, 0.0, np.zeros_like(onehot))
    for amplitude in AMPLITUDES:
        latent, alpha = latent_mode(amplitude**2 * kernel, onehot, weights)
        left_out = leave_one_out(amplitude**2 * kernel, latent, alpha, weights)
        for sharpness in SHARPNESSES:
            own = (softmax(sharpness * left_out) * onehot).sum(axis=1)
            loss = -(weights * np.log(np.maximum(own, 1e-300))).sum()
            if loss < best[0]:
                best = (loss, amplitude, float(sharpness), alpha)
    return best[1:]


def leave_one_out(kernel: np.ndarray, latent: np.ndarray, alpha: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Latent values (n, C) predicted for each point by the others, linearised about the mode, phases taken as independent."""
    p, left_out = softmax(latent), np.empty_like(latent)
    for c in range(latent.shape[1]):
        curvature = np.maximum(weights * p[:, c] * (1 - p[:, c]), 1e-8)
        root = np.sqrt(curvature)
        shrink = np.diag(np.linalg.inv(np.eye(len(p)) + root[:, None] * kernel * root))
        left_out[:, c] = latent[:, c] + alpha[:, c] * (1 - 1 / shrink) / curvature
    return left_out


def minimise(loss: Callable, x: np.ndarray, steps: int, tolerance: float, memory: int = 15, longest: float = 1.5) -> np.ndarray:
    """A local minimum of loss(x) -> (value, gradient) by L-BFGS with backtracking; no coordinate moves by more than `longest` in a step."""
    value, gradient = loss(x)
    moves: list[tuple[np.ndarray, np.ndarray]] = []  # the last (step, change of the gradient)
    for _ in range(steps):
        direction = quasi_newton(gradient, moves)
        direction *= min(1.0, longest / max(np.abs(direction).max(), 1e-300))
        slope, length = gradient @ direction, 1.0
        while True:
            new = x - length * direction
            new_value, new_gradient = loss(new)
            if new_value <= value - 1e-4 * length * slope:
                break
            length *= 0.4
            if length < 1e-4:
                return x
        if (new - x) @ (new_gradient - gradient) > 1e-10:
            moves = [*moves[1 - memory :], (new - x, new_gradient - gradient)]
        gained = value - new_value
        x, value, gradient = new, new_value, new_gradient
        if gained < tolerance * max(1.0, abs(value)):
            break
    return x


def quasi_newton(gradient, moves):
    """The inverse Hessian, as the moves show it, times the gradient (two-loop recursion)."""
    direction, factors = gradient.copy(), []
    for step, change in reversed(moves):
        factors.append(step @ direction / (step @ change))
        direction -= factors[-1] * change
    direction *= moves[-1][0] @ moves[-1][1] / (moves[-1][1] @ moves[-1][1]) if moves else 1 / max(1.0, np.abs(gradient).sum())
    for (step, change), factor in zip(moves, reversed(factors)):
        direction += step * (factor - change @ direction / (step @ change))
    return direction


# =====================================================================================================================
# Acquisition
# =====================================================================================================================

STRATEGIES = ("balanced", "uncertainty", "target", "boundary", "random")
CANDIDATES = 1000  # all over the box, and as many again between neighbours with different labels
NEIGHBOURS = 4
SCORE_FLOOR = 1e-6  # where nothing is uncertain, points fill the box evenly


def check_strategy(strategy: str) -> str:
    if strategy not in STRATEGIES:
        raise InputError(f"strategy '{strategy}': choose one of {', '.join(STRATEGIES)}")
    return strategy


def scores(probabilities: np.ndarray, strategy: str, target: int | None) -> np.ndarray:
    """Worth of m points, (m,), from their probabilities (m, C) and the target's column; None, it was never seen: by uncertainty."""
    p = np.sort(probabilities, axis=1)
    if strategy == "boundary" and p.shape[1] > 1:
        return 4 * p[:, -1] * p[:, -2]
    if strategy == "target" and target is not None:
        return probabilities[:, target]
    return 1 - p[:, -1]


def candidates(points: np.ndarray, labels: np.ndarray, rng: np.random.Generator, wanted: int = 0) -> np.ndarray:
    """Unit points to choose from: an even cover of the cube, and points between labelled neighbours (n, d) whose labels (n,) differ."""
    count = max(CANDIDATES, 2 * wanted)
    cover = r_sequence(count, rng.random(points.shape[1]))
    distances = squared_distances(points, points, 1.0)
    distances[labels[:, None] == labels] = np.inf
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :NEIGHBOURS]
    first, second = np.repeat(np.arange(len(points)), nearest.shape[1]), nearest.ravel()
    unlike = np.isfinite(distances[first, second])
    first, second = first[unlike], second[unlike]
    if not len(first):
        return cover
    pick = rng.integers(len(first), size=count)
    share = rng.uniform(0.2, 0.8, (count, 1))
    reach = 0.25 * np.sqrt(distances[first, second][pick] / points.shape[1])
    between = points[first[pick]] * share + points[second[pick]] * (1 - share) + rng.normal(size=(count, points.shape[1])) * reach[:, None]
    return np.concatenate([cover, on_grain(between)])


def choose(worths: Sequence[np.ndarray], pool: np.ndarray, taken: np.ndarray, scales: np.ndarray | float) -> np.ndarray:
    """Indices into the pool (m, d), one by each of worths (m,): the greatest worth times distance from all points taken, greedily."""
    free = squared_distances(pool, taken, 1.0).min(axis=1, initial=np.inf) > (GRAIN / 2) ** 2
    distance = np.sqrt(squared_distances(pool, taken, scales).min(axis=1, initial=pool.shape[1] / np.min(scales) ** 2))
    chosen: list[int] = []
    for worth in worths:
        if not free.any():
            raise ExplorerError("no new point could be found: every candidate is known already; widen the box or ask for fewer points")
        best = int(np.argmax(np.where(free, (worth + SCORE_FLOOR) * distance, -1.0)))
        chosen.append(best)
        free &= squared_distances(pool, pool[best : best + 1], 1.0)[:, 0] > (GRAIN / 2) ** 2
        distance = np.minimum(distance, np.sqrt(squared_distances(pool, pool[best : best + 1], scales)[:, 0]))
    return np.array(chosen, dtype=int)


# =====================================================================================================================
# Explorer core
# =====================================================================================================================

PROBES = 256


@dataclass(frozen=True)
class Point:
    """A point that is to be, or was, simulated."""

    id: int  # counts from 0 in the order of asking
    unit: tuple[float, ...]
    origin: str  # where it comes from: seeds, lhs, or a strategy
    iteration: int


@dataclass(frozen=True)
class Answer:
    """What was told of a point: a label, or why there is none."""

    label: str | None = None
    confidence: float = 1.0
    energy: float | None = None
    failure: str | None = None  # "TIMEOUT", "FAILED"


@dataclass(frozen=True)
class Iteration:
    """How an iteration ended."""

    number: int
    predicted: tuple[str, ...]  # labels of the probes
    changed: float | None  # fraction of the probes whose label differs from that of the iteration before
    entropy: float | None  # mean over the probes, in nats; None: no labels yet


class Explorer:
    """Ask and tell: chooses the points, learns from their labels, and knows neither the model nor who simulates it.

    All it says is a function of (box, seed, what was asked and told so far); the order of telling does not matter.
    no_phase: labels that are kept but not learnt from.
    """

    def __init__(self, box: Box, seed: int = 0, strategy: str = "balanced", target: str | None = None, no_phase: Iterable[str] = ()):
        self.box, self.seed, self.strategy, self.target = box, seed, check_strategy(strategy), target
        self.no_phase = frozenset(no_phase)
        self.points: list[Point] = []
        self.answers: dict[int, Answer] = {}
        self.iterations: list[Iteration] = []
        self._known: set[tuple[float, ...]] = set()
        self._surrogate: Surrogate | None = None

    @property
    def iteration(self) -> int:
        """The one now under way."""
        return len(self.iterations)

    @property
    def pending(self) -> list[Point]:
        return [point for point in self.points if point.id not in self.answers]

    @property
    def failed(self) -> list[Point]:
        return [point for point in self.points if point.id in self.answers and self.answers[point.id].failure]

    def propose(self, n: int, strategy: str | None = None) -> list[Point]:
        """The n points that are worth most now, not yet registered."""
        strategy = check_strategy(strategy or self.strategy)
        if n < 1:
            raise InputError(f"{n} points asked for; ask for at least 1")
        rng = np.random.default_rng([self.seed, len(self.points)])
        taken = np.array([point.unit for point in self.points]).reshape(-1, len(self.box.names))
        if strategy == "random":
            pool = on_grain(rng.random((2 * n + 100, len(self.box.names))))
            free = squared_distances(pool, taken, 1.0).min(axis=1, initial=np.inf) > 1e-10
            chosen = pool[free][:n]
        elif not self._training():
            pool = r_sequence(CANDIDATES + 10 * n, rng.random(len(self.box.names)))
            chosen = pool[choose([np.ones(len(pool))] * n, pool, taken, 1.0)]
        else:
            chosen = self._most_worth(n, strategy, taken, rng)
        return self._new_points(chosen.tolist(), strategy)

    def _most_worth(self, n, strategy, taken, rng):
        """Unit points (n, d). A balanced batch is half uncertainty, half target, taken in turns."""
        surrogate = self.surrogate()
        pool = candidates(surrogate.points, self._sorted_labels(), rng, n)
        p = surrogate.probabilities(pool)
        target = surrogate.labels.index(self.target) if self.target in surrogate.labels else None
        kinds = ("uncertainty", "target") if strategy == "balanced" else (strategy,)
        worths = [scores(p, kind, target) for kind in kinds]
        turns = [worths[(len(self.points) + k) % len(kinds)] for k in range(n)]
        return pool[choose(turns, pool, taken, surrogate.scales)]

    def new_points(self, units: Iterable[Sequence[float]], origin: str) -> list[Point]:
        """Points of the caller's choice, without those that are known already; not yet registered."""
        fresh = dict.fromkeys(tuple(unit) for unit in units)
        return self._new_points([unit for unit in fresh if unit not in self._known], origin)

    def _new_points(self, units, origin):
        return [Point(len(self.points) + k, tuple(unit), origin, self.iteration) for k, unit in enumerate(units)]

    def register(self, points: Iterable[Point]) -> None:
        """Make points pending. Raises InputError if they do not continue the ids, or one is known already."""
        for point in points:
            if point.id != len(self.points) or point.unit in self._known:
                raise InputError(f"point {point.id} is known already, or out of turn: {len(self.points)} points are registered")
            self.points.append(point)
            self._known.add(point.unit)

    def ask(self, n: int, strategy: str | None = None) -> list[Point]:
        """n new points, pending from now on."""
        points = self.propose(n, strategy)
        self.register(points)
        return points

    def tell(self, id: int, label=None, confidence: float = 1.0, energy: float | None = None, failure: str | None = None) -> None:
        """What came of a point: a label with its confidence in [0, 1], or a failure. Telling the same again changes nothing."""
        if not 0 <= id < len(self.points):
            raise InputError(f"point {id} was never asked for; {len(self.points)} points are known")
        if (label is None) == (failure is None):
            raise InputError(f"point {id}: tell either a label or a failure")
        before = self.answers.get(id, Answer())
        if before.label is not None and label != before.label:
            raise InputError(f"point {id} has the label {before.label} already; {label or failure} contradicts it")
        self.answers[id] = Answer(label, float(confidence), energy, failure)
        self._surrogate = None

    def retry(self, ids: Iterable[int]) -> None:
        """Failed points become pending again."""
        for id in ids:
            if self.answers.get(id, Answer()).failure:
                del self.answers[id]

    def _training(self):
        """(point, answer) of all points to learn from, sorted as in the surrogate."""
        pairs = [(self.points[id], answer) for id, answer in self.answers.items() if answer.label and answer.label not in self.no_phase]
        return sorted(pairs, key=lambda pair: pair[0].unit[::-1])

    def _sorted_labels(self):
        return np.array([answer.label for _, answer in self._training()])

    def surrogate(self) -> Surrogate:
        """Fitted to all labels told so far. Raises InputError if there are none."""
        if self._surrogate is None:
            pairs = self._training()
            if not pairs:
                raise InputError("no point has a label yet; simulate some first")
            weights = np.clip([answer.confidence for _, answer in pairs], LEAST_WEIGHT, 1)
            self._surrogate = fit_labels(np.array([point.unit for point, _ in pairs]), self._sorted_labels(), weights)
        return self._surrogate

    def probes(self) -> np.ndarray:
        return r_sequence(PROBES, np.full(len(self.box.names), 0.5))

    def summarise(self) -> Iteration:
        """How the present iteration ends."""
        if not self._training():
            return Iteration(self.iteration, (), None, None)
        surrogate = self.surrogate()
        p = surrogate.probabilities(self.probes())
        predicted = tuple(surrogate.labels[c] for c in p.argmax(axis=1))
        before = self.iterations[-1].predicted if self.iterations else ()
        changed = float(np.mean([a != b for a, b in zip(predicted, before)])) if before else None
        return Iteration(self.iteration, predicted, changed, float(-(p * np.log(p)).sum(axis=1).mean()))

    def should_stop(self, change_below: float | None = None, entropy_below: float | None = None) -> str:
        """Why to stop after the last iteration, or ''. change_below applies to the last two iterations."""
        changes = [iteration.changed for iteration in self.iterations[-2:] if iteration.changed is not None]
        if change_below is not None and len(changes) == 2 and max(changes) < change_below:
            return f"fewer than {change_below:.2%} of the predicted labels changed in each of two iterations"
        entropy = self.iterations[-1].entropy if self.iterations else None
        if entropy_below is not None and entropy is not None and entropy < entropy_below:
            return f"the mean entropy {entropy:.3f} is below {entropy_below:g}"
        return ""

    def importances(self) -> dict[str, float]:
        """How much each parameter matters: mean change of the probabilities when it alone is drawn anew, relative to their sum."""
        surrogate, probes = self.surrogate(), self.probes()
        p, other = surrogate.probabilities(probes), np.random.default_rng(0).permutation(probes)
        effects = []
        for j in range(len(self.box.names)):
            changed = probes.copy()
            changed[:, j] = other[:, j]
            effects.append(0.5 * np.abs(surrogate.probabilities(changed) - p).sum(axis=1).mean())
        total = sum(effects)
        return {name: float(effect / total) if total > 0 else 0.0 for name, effect in zip(self.box.names, effects)}


# =====================================================================================================================
# History
# =====================================================================================================================

# history.jsonl, one event a line, only ever appended to. Every line is a JSON object whose last entry `crc` is the CRC-32
# of the line without it. Events:
#   run        version, box, model, seed                          the first line; a run that differs in any is refused
#   opened     time, host, pid                                    somebody works on it from here on
#   asked      iteration, origin, ids, points, parameters         points: unit coordinates, which alone count
#   told       id, time, phase, confidence, energy, seconds, host, path, numbers         a label; spins are in spins/<id>.npz
#   told       id, failure, error, message, traceback, seconds, host               or why there is none
#   retry      ids                                                failed points are pending again
#   iteration  number, changed, entropy, predicted                the end of an iteration
# state.json holds what the first `offset` bytes amount to, as fewer and shorter events; it may be deleted.
HISTORY_VERSION = 1
FIRST_BYTES = b'{"event":"run"'


def encode(event: Mapping[str, Any]) -> bytes:
    text = json.dumps(event, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return f'{text[:-1]},"crc":"{zlib.crc32(text.encode()):08x}"}}\n'.encode()


def decode(line: bytes) -> dict | None:
    """The event of a line; None if it is torn or damaged."""
    try:
        event = json.loads(line)
        del event["crc"]
        return event if encode(event) == line else None
    except (ValueError, KeyError, TypeError):
        return None


class History:
    """The file of events of one run. A last line that was torn by a crash is cut off; anything else unsound is refused."""

    def __init__(self, directory: Path, box: Box, model: Mapping[str, Any], seed: int):
        """Writes nothing where it refuses. Raises InputError."""
        self.path, self.state_path = directory / "history.jsonl", directory / "state.json"
        header = {"event": "run", "version": HISTORY_VERSION, "box": box.bounds(), "model": dict(model), "seed": seed}
        content = self.path.read_bytes() if self.path.exists() else b""
        end = self._sound_length(content)
        first = decode(content[: content.find(b"\n") + 1]) if end else header
        self._check_header(first, json.loads(json.dumps(header)) if end else header)
        condensed_events, offset = self._read_state(content[:end])
        self.past = condensed_events + [self._decoded(line, offset) for line in content[offset:end].splitlines(keepends=True)]
        self._length, self._crc = end, zlib.crc32(content[:end])
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115
        self._file.truncate(end)
        if not end:
            self.append("run", **{key: value for key, value in header.items() if key != "event"})

    def _sound_length(self, content):
        """How many bytes from the start are whole lines, the last of them sound."""
        end = content.rfind(b"\n") + 1
        if end and decode(content[content.rfind(b"\n", 0, end - 1) + 1 : end]) is None and content.count(b"\n") > 1:
            end = content.rfind(b"\n", 0, end - 1) + 1
        if not end and not FIRST_BYTES.startswith(content[: len(FIRST_BYTES)]):
            raise InputError(f"{self.path} is not a history of this program; choose another output directory")
        return end

    def _check_header(self, found, wanted):
        if found is None or found.get("event") != "run":
            raise InputError(f"{self.path} is not a history of this program, or its first line is damaged; choose another output directory")
        for key in ("version", "model", "box", "seed"):
            if found.get(key) != wanted[key] or (key == "box" and list(found["box"]) != list(wanted["box"])):
                raise InputError(
                    f"{self.path} is of another run: its {key} is {json.dumps(found.get(key))}, not {json.dumps(wanted[key])}; "
                    "choose another output directory, or start afresh"
                )

    def _decoded(self, line, offset):
        if (event := decode(line)) is None:
            raise InputError(f"{self.path} is damaged after byte {offset}: {line[:60]!r}; restore it from a copy, or start afresh")
        return event

    def _read_state(self, content):
        """(events, offset) of the last snapshot, ([], 0) where there is none that fits the content."""
        try:
            snapshot = decode(self.state_path.read_bytes())
        except OSError:
            snapshot = None
        if (
            snapshot
            and "events" in snapshot
            and snapshot["offset"] <= len(content)
            and zlib.crc32(content[: snapshot["offset"]]) == snapshot["history_crc"]
        ):
            return snapshot["events"], snapshot["offset"]
        return [], 0

    def append(self, event: str, **fields) -> dict:
        """Write an event, safe from the death of this process once this returns."""
        whole = {"event": event, **fields}
        line = encode(whole)
        try:
            if self._file.write(line) != len(line):
                raise OSError("no space left")
        except OSError as error:
            self._file.truncate(self._length)
            raise ExplorerError(f"{self.path} cannot be written ({error}); make room and resume") from error
        self._length, self._crc = self._length + len(line), zlib.crc32(line, self._crc)
        return whole

    def save(self, events: list[dict[str, Any]]) -> None:
        """Put all on disk, safe from a power cut, with a snapshot."""
        os.fsync(self._file.fileno())
        replace_file(self.state_path, encode({"offset": self._length, "history_crc": self._crc, "events": events}))

    @property
    def closed(self) -> bool:
        return self._file.closed

    def close(self) -> None:
        self._file.close()


def condensed(explorer: Explorer) -> list[dict[str, Any]]:
    """Events that bring a new explorer to the state of this one."""
    events: list[dict[str, Any]] = []
    for p in explorer.points:
        events.append({"event": "asked", "iteration": p.iteration, "origin": p.origin, "ids": [p.id], "points": [p.unit]})
    for id, a in explorer.answers.items():
        told = {"failure": a.failure} if a.failure else {"phase": a.label, "confidence": a.confidence, "energy": a.energy}
        events.append({"event": "told", "id": id, **told})
    return events + [{"event": "iteration", **vars(iteration)} for iteration in explorer.iterations]


def apply_event(explorer: Explorer, event: Mapping[str, Any]) -> None:
    """Bring an explorer to where it was after an event; events that do not concern it pass."""
    kind = event["event"]
    if kind == "asked":
        explorer.register(Point(id, tuple(unit), event["origin"], event["iteration"]) for id, unit in zip(event["ids"], event["points"]))
    elif kind == "told" and "failure" in event:
        explorer.tell(event["id"], failure=event["failure"])
    elif kind == "told":
        explorer.tell(event["id"], event["phase"], event["confidence"], event["energy"])
    elif kind == "retry":
        explorer.retry(event["ids"])
    elif kind == "iteration":
        explorer.iterations.append(Iteration(event["number"], tuple(event["predicted"]), event["changed"], event["entropy"]))


# =====================================================================================================================
# Simulations
# =====================================================================================================================

POSITION_TOLERANCE = 1e-3  # of lattice constants, where sites are put in order
SCRATCH_PREFIX = "spin_solver_pid"
TIMEOUT, FAILED = "TIMEOUT", "FAILED"


def _run_simulation_safe(params, simulation_func, timeout=300):
    """Run simulation_func(params) and check what it returns; raises nothing but KeyboardInterrupt.

    A record of builtin types: {"ok": True, "spins", "positions" (bytes of float64), "sites", "energy", "numbers", "seconds", "host"}
    or {"ok": False, "error": type, "message", "traceback", "seconds", "host"}. A timeout in seconds interrupts Python code of the main
    thread (error "SimulationTimeout"); the hard limit, for compiled loops as well, is the executor's, which kills the process.
    """
    started = time.monotonic()
    try:
        with alarm(timeout):
            record = {"ok": True} | checked_result(simulation_func(dict(params)))
    except BaseException as error:  # sys.exit() too costs its point only
        if isinstance(error, KeyboardInterrupt) and multiprocessing.parent_process() is None:
            raise  # a Ctrl-C; worker processes ignore it
        record = {"ok": False} | error_fields(error)
    return record | {"seconds": time.monotonic() - started, "host": os.uname().nodename}


def error_fields(error: BaseException) -> dict[str, str]:
    summary = traceback.TracebackException.from_exception(error)  # survives an exception whose __str__ fails
    return {"error": type(error).__qualname__, "message": encodable(str(summary)), "traceback": encodable("".join(summary.format()))}


class SimulationTimeout(TimeoutError):
    """The limit of `alarm`, as opposed to a TimeoutError of the simulation's own."""


@contextlib.contextmanager
def alarm(timeout_s: float | None) -> Iterator[None]:
    """Raises SimulationTimeout within the block after timeout_s seconds; no limit outside of the main thread, where no signal arrives."""
    if timeout_s is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number, _frame):
        raise SimulationTimeout(f"the simulation reached its time limit of {timeout_s:g} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def checked_result(result: Any) -> dict[str, Any]:
    """The fields of a record from a Simulation or a tuple (spins (N, 3), positions (N, 2), energy per site). Raises ValueError."""
    if hasattr(result, "spins"):
        parts = (result.spins, result.positions, result.energy)
    else:
        parts = tuple(result) if isinstance(result, (tuple, list)) else ()
    if len(parts) != 3:
        raise ValueError(f"the simulation returned {type(result).__name__}; expected (spins (N, 3), positions (N, 2), energy per site)")
    spins, positions, energy = (np.ascontiguousarray(part, dtype=np.float64) for part in parts)
    if spins.ndim != 2 or spins.shape[1] != 3 or not len(spins) or positions.shape != (len(spins), 2) or energy.size != 1:
        shapes = f"spins {spins.shape}, positions {positions.shape}, energy {energy.shape}"
        raise ValueError(f"the simulation returned {shapes}; expected (N, 3), (N, 2) and a number")
    if not (np.isfinite(spins).all() and np.isfinite(positions).all() and np.isfinite(energy).all()):
        raise ValueError("the simulation returned NaN or infinite numbers")
    lengths = np.linalg.norm(spins, axis=1)
    if np.abs(lengths - 1).max() > LENGTH_TOLERANCE:
        raise ValueError(f"the simulation returned spins of length {lengths.min():.4g} to {lengths.max():.4g}; expected unit spins")
    numbers = {name: float(getattr(result, name)) for name in ("spread", "torque", "converged", "restarts") if hasattr(result, name)}
    content = {"spins": spins.tobytes(), "positions": positions.tobytes(), "sites": len(spins)}
    return content | {"energy": float(energy.item()), "numbers": finite(numbers)}


def finite(numbers: Mapping[str, Any]) -> dict[str, float]:
    return {str(name): float(value) for name, value in numbers.items() if math.isfinite(value)}


def simulate_point(
    id: int, params: dict, simulation_func: Callable, classify: Callable, L: int, timeout: float | None, scratch: str
) -> dict:
    """The task of a worker: simulate in a private directory, classify. A record of _run_simulation_safe with phase, confidence, path."""
    with private_scratch(id, scratch):
        record = _run_simulation_safe(params, simulation_func, timeout)
        if not record["ok"]:
            return record
        try:
            spins, positions = (np.frombuffer(record[name]).reshape(record["sites"], -1) for name in ("spins", "positions"))
            if (order := site_order(positions, L)) is not None:
                spins, positions = spins[order], positions[order]
                record |= {"spins": spins.tobytes(), "positions": positions.tobytes()}
            found = classify(spins, L)
            confidence = float(found.confidence)
            path = [encodable(str(step)) for step in getattr(found, "path", ())]
            label = {"phase": found.phase.name, "confidence": confidence if math.isfinite(confidence) else 0.0, "path": path}
            return record | label | {"numbers": record["numbers"] | finite(getattr(found, "numbers", {}))}
        except Exception as error:
            return {"ok": False, "seconds": record["seconds"], "host": record["host"]} | error_fields(error)


def site_order(positions: np.ndarray, L: int) -> np.ndarray | None:
    """Indices that bring sites at positions (N, 2) into the order of Lattice; None where they are not L x L cells of the honeycomb."""
    inverse = np.linalg.inv(np.array([A1, A2]))
    for origin in (np.zeros(2), np.array(B_OFFSET)):  # the first site may be an A or a B
        cells = np.stack([(positions - positions[0] + origin - s * np.array(B_OFFSET)) @ inverse for s in (0, 1)])
        fits = np.abs(cells - np.round(cells)).max(axis=2) < POSITION_TOLERANCE
        sublattice = fits[1].astype(int)
        i, j = (np.round(cells)[sublattice, np.arange(len(positions))].astype(int) % L).T
        index = (i * L + j) * 2 + sublattice
        if (fits[0] ^ fits[1]).all() and len(index) == 2 * L * L and len(np.unique(index)) == len(index):
            return np.argsort(index)
    return None


def scratch_path(id: int, scratch: str) -> Path:
    return Path(scratch) / f"point-{id}"


@contextlib.contextmanager
def private_scratch(id: int, scratch: str) -> Iterator[None]:
    """A temporary directory of one's own as working directory and TMPDIR, removed afterwards: within scratch, where this host has it."""
    if os.path.isdir(scratch):
        directory = scratch_path(id, scratch)
        shutil.rmtree(directory, ignore_errors=True)  # of an attempt that died
        directory.mkdir()
    else:
        directory = Path(tempfile.mkdtemp(prefix=f"{SCRATCH_PREFIX}{os.getpid()}_"))
    before = os.getcwd(), os.environ.get("TMPDIR"), tempfile.tempdir
    os.environ["TMPDIR"] = tempfile.tempdir = str(directory)
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before[0])
        tempfile.tempdir = before[2]
        os.environ.pop("TMPDIR")
        if before[1] is not None:
            os.environ["TMPDIR"] = before[1]
        shutil.rmtree(directory, ignore_errors=True)


def can_be_imported(function: Callable) -> bool:
    """Whether a spawned process can load this function without running the main program's calls again, which wants a guard in it."""
    main = getattr(sys.modules["__main__"], "__file__", None)
    if main is None:  # standard input, -c, a notebook
        return function.__module__ != "__main__"
    try:
        return "__name__" in Path(main).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def processes_of(n_jobs: int) -> int:
    """The number of processes meant by n_jobs; -1: one for each CPU this process may use."""
    if n_jobs == -1:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if n_jobs < 1:
        raise InputError(f"n_jobs = {n_jobs}: give at least 1, or -1 for all CPUs")
    return n_jobs


class Progress:
    """A tqdm bar on a terminal, plain lines elsewhere."""

    def __init__(self, total: int, heading: str):
        self.total, self.done, self.failed, self.started = total, 0, 0, time.monotonic()
        self.bar = None
        if sys.stderr.isatty():
            with contextlib.suppress(ImportError):
                from tqdm import tqdm

                self.bar = tqdm(total=total, desc="Classifying", unit="sim")
        if self.bar is None:
            print(heading, flush=True)

    def line(self, text: str) -> None:
        if self.bar is None:
            print(f"  {text}", flush=True)

    def count(self, failed: bool, text: str) -> None:
        self.done, self.failed = self.done + 1, self.failed + failed
        if self.bar is not None:
            rate = 1 - self.failed / self.done
            self.bar.set_postfix_str(
                f"completed: {self.done - self.failed}, failed: {self.failed}, success_rate: {rate:.1%}", refresh=False
            )
            self.bar.update()
        self.line(text)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        seconds = max(time.monotonic() - self.started, 1e-9)
        rate = 1 - self.failed / max(self.done, 1)
        self.line(
            f"{self.done}/{self.total} done in {seconds:.1f} s: completed: {self.done - self.failed}, failed: {self.failed}, "
            f"success_rate: {rate:.1%}, {self.done / seconds:.2f} sim/s"
        )


# =====================================================================================================================
# Active learning
# =====================================================================================================================

# BaCo2(AsO4)2: fits in meV (emily: arXiv:2205.15262); where the search starts, no truths
KNOWN_FITS = {
    "fitting_param_2": {"J1xy": -6.772, "J1z": -1.887, "D": 0.815, "E": 1.292, "F": -0.091, "G": 0.627, "J3xy": 1.823, "J3z": -0.157},
    "fitting_param_4": {"J1xy": -6.646, "J1z": -2.084, "D": 0.675, "E": 1.33, "F": -1.516, "G": 0.21, "J3xy": 1.697, "J3z": 0.039},
    "fitting_param_8": {"J1xy": -6.646, "J1z": -2.084, "D": 0.675, "E": 1.25, "F": -1.516, "G": -0.21, "J3xy": 1.697, "J3z": 0.039},
    "emily": {"J1xy": -7.6, "J1z": -1.2, "D": 0.1, "E": -0.1, "F": 0.0, "G": 0.0, "J3xy": 2.5, "J3z": -0.85},
}
NO_PHASE = ("TIMEOUT", "UNKNOWN")  # labels that are no phases


@dataclass(frozen=True)
class Batch:
    """Points that are simulated together."""

    scratch: str  # where their temporary directories are
    progress: Progress
    checkpoint_interval: int


class ActiveLearningExplorer:
    """Explores phase diagrams: asks the explorer core for points, has them simulated, keeps the history in a directory of its own.

    output_dir    made if need be, and claimed until close(); what lies there already is continued
    target_phase  name or member of the enum of phases; None: none
    parameters    Box or {name: (low, high)}
    classify      classify(spins (N, 3), L) -> object with phase (an enum member), confidence, path; a module-level function
    model         what else the labels depend on (JSON types); a history of another model is refused
    """

    def __init__(
        self, output_dir, L=12, target_phase=None, strategy="balanced", seed=0, parameters=DEFAULT_BOX, classify=classify, model=None
    ):
        """Raises InputError; DirectoryRefused where another run uses the directory."""
        self.L, self.seed, self.classify = L, seed, classify
        box = parameters if isinstance(parameters, Box) else Box.of(parameters)
        self.explorer = Explorer(box, seed, strategy, getattr(target_phase, "name", target_phase), NO_PHASE)
        self._resources = contextlib.ExitStack()
        with contextlib.ExitStack() as until_sound:
            self.output_dir = until_sound.enter_context(claim_directory(output_dir))
            self.history = History(self.output_dir, box, {"L": L, **(model or {})}, seed)
            until_sound.callback(self.history.close)
            self._resume()
            self._resources = until_sound.pop_all()

    def _resume(self):
        for event in self.history.past:
            apply_event(self.explorer, event)
        self._remove_left_scratch()
        self.history.append("opened", time=time.time(), host=os.uname().nodename, pid=os.getpid())

    def close(self) -> None:
        """Save, and give the directory back."""
        if not self.history.closed:
            self.save()
        self._resources.close()

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.close()

    def _record(self, event, **fields):
        apply_event(self.explorer, self.history.append(event, **fields))

    def _record_points(self, points: Sequence[Point]) -> list[dict[str, float]]:
        parameters = [self.explorer.box.parameters(point.unit) for point in points]
        if points:
            units = [point.unit for point in points]
            ids = [point.id for point in points]
            self._record("asked", iteration=points[0].iteration, origin=points[0].origin, ids=ids, points=units, parameters=parameters)
        return parameters

    # ---- points

    def add_points(self, points: Iterable[Mapping[str, float]], origin: str = "user") -> list[dict[str, float]]:
        """Add points by their parameters; those known already are left out, so that adding twice changes nothing. Raises InputError."""
        return self._record_points(self.explorer.new_points([self.explorer.box.to_unit(point) for point in points], origin))

    def add_known_seeds(self) -> list[dict[str, float]]:
        """Add the published fits, in units of |J1xy|, that lie within the box; none where the box leaves out one of their couplings."""
        inside, box = [], self.explorer.box
        for fit in KNOWN_FITS.values():
            if {*box.names, "J1xy"} == set(fit):
                point = {name: fit[name] / abs(fit["J1xy"]) for name in box.names}
                if all(low <= point[name] <= high for name, (low, high) in box.bounds().items()):
                    inside.append(point)
        return self.add_points(inside, "seeds")

    def add_lhs_samples(self, n_samples: int, seed: int | None = None) -> list[dict[str, float]]:
        """Add a Latin hypercube; the same again for the same seed (default: the explorer's)."""
        if n_samples < 1:
            raise InputError(f"n_samples = {n_samples}: give at least 1")
        rng = np.random.default_rng(self.seed if seed is None else seed)
        return self._record_points(self.explorer.new_points(latin_hypercube(n_samples, len(self.explorer.box.names), rng).tolist(), "lhs"))

    def select_next_points(self, n_points: int, strategy: str | None = None) -> list[dict[str, float]]:
        """The parameters of n_points new points, which are pending from now on."""
        return self._record_points(self.explorer.propose(n_points, strategy))

    def retry_failed(self) -> int:
        """Make the failed points pending again; how many there are."""
        ids = [point.id for point in self.explorer.failed]
        if ids:
            self._record("retry", ids=ids)
        return len(ids)

    # ---- simulations

    def classify_pending_points(self, simulation_func, n_jobs=1, checkpoint_interval=10, timeout=300, executor: Executor | None = None):
        """Simulate and classify all pending points; (completed, failed).

        timeout in seconds is a hard limit on each: the process is killed. Give an executor to run elsewhere; it stays open, and its own
        limits apply. What is not a module-level function cannot be sent to processes: with n_jobs = 1 it runs in this one, where the limit
        stops Python code only. On any exception, Ctrl-C included, what is done is saved; call again to go on.
        """
        points = self.explorer.pending
        if self.classify is None:
            raise InputError("no classifier was given: ActiveLearningExplorer(..., classify=...)")
        if checkpoint_interval < 1 or (timeout is not None and timeout <= 0):
            raise InputError(f"checkpoint_interval = {checkpoint_interval}, timeout = {timeout}: give at least 1, and more than 0 s")
        processes = processes_of(n_jobs)
        if not points:
            return 0, 0
        here = executor is None and self._must_run_here(simulation_func, processes, timeout)
        with contextlib.ExitStack() as stack:
            scratch = stack.enter_context(self._scratch())
            if executor is None and not here:
                executor = stack.enter_context(LocalExecutor(min(processes, len(points)), timeout_s=timeout, retries=0))
            number = 1 if here else min(getattr(executor, "processes", processes), len(points))
            workers = f"{number} parallel workers" if number > 1 else "one worker"
            progress = Progress(len(points), f"[Iteration {self.explorer.iteration}] Classifying {len(points)} points using {workers}...")
            stack.callback(progress.close)
            common = (simulation_func, self.classify, self.L, timeout if here else None, scratch)
            calls = {point: (point.id, self.explorer.box.parameters(point.unit), *common) for point in points}
            batch = Batch(scratch, progress, checkpoint_interval)
            try:
                if here:
                    for point, call in calls.items():
                        self._settle(point, partial(simulate_point, *call), batch)
                else:
                    self._run_elsewhere(calls, executor, batch)
            finally:
                self.save()
        return progress.done - progress.failed, progress.failed

    def _must_run_here(self, simulation_func, processes, timeout):
        try:
            pickle.dumps((simulation_func, self.classify))
        except Exception as error:
            if processes > 1:
                raise InputError(
                    f"the simulation cannot be sent to other processes ({error}); use a module-level function, or n_jobs=1"
                ) from error
            return True
        if not can_be_imported(simulation_func):
            if processes > 1:
                raise InputError(
                    "worker processes cannot import this program: put its calls under if __name__ == '__main__', or use n_jobs=1"
                )
            return True
        return processes == 1 and timeout is None

    def _run_elsewhere(self, calls, executor, batch):
        futures = self._recovered(executor, calls)
        waiting = [point for point in calls if point not in futures.values()]
        try:
            futures |= {executor.submit(simulate_point, *calls[point]): point for point in waiting}
            for future in as_completed(list(futures)):
                self._settle(futures[future], future.result, batch)
                del futures[future]
                if hasattr(executor, "forget"):
                    executor.forget(future)
        finally:  # nothing is left but after an exception
            for future, point in futures.items():
                if future.done() and not future.cancelled():
                    self._settle(point, future.result, batch)
                future.cancel()

    @staticmethod
    def _recovered(executor, calls) -> dict[Future, Point]:
        """Where the executor outlives its controller: the tasks that an earlier one left of these calls."""
        try:
            left = executor.recover() if hasattr(executor, "recover") else []
        except RuntimeError:  # asked before: this is not its first batch
            left = []
        wanted = {pickle.dumps(call[:-2]): point for point, call in calls.items()} if left else {}
        found = {future: wanted.get(pickle.dumps(args[:-2])) for future, fn, args, _ in left if fn is simulate_point}
        return {future: point for future, point in found.items() if point is not None}

    def _settle(self, point: Point, outcome: Callable[[], dict], batch: Batch) -> None:
        """Write down what came of a point: first its spins, then its event."""
        try:
            record = outcome()
        except Exception as error:  # of the executor: killed at the time limit, died, cannot be sent
            record = {"ok": False, "seconds": None, "host": None} | error_fields(error)
        shutil.rmtree(scratch_path(point.id, batch.scratch), ignore_errors=True)  # a killed process has left it
        if record["ok"]:
            self._save_spins(point.id, record)
            fields = {key: record[key] for key in ("phase", "confidence", "energy", "seconds", "host", "path", "numbers")}
            text = f"Point {point.id}: {record['phase']} (conf={record['confidence']:.2f}, E={record['energy']:.4f})"
        else:
            failure = TIMEOUT if record["error"] in (TaskTimeout.__name__, SimulationTimeout.__name__) else FAILED
            fields = {"failure": failure} | {key: record[key] for key in ("error", "message", "traceback", "seconds", "host")}
            text = f"Point {point.id}: {failure} ({record['error']}: {record['message'].splitlines()[0] if record['message'] else ''})"
        self._record("told", id=point.id, time=time.time(), **fields)
        batch.progress.count(not record["ok"], text)
        if batch.progress.done % batch.checkpoint_interval == 0:
            self.save()
            batch.progress.line(f"Checkpoint saved ({batch.progress.done}/{batch.progress.total} completed)")

    def _save_spins(self, id, record):
        path = self.spins_path(id)
        path.parent.mkdir(exist_ok=True)
        arrays = {name: np.frombuffer(record[name]).reshape(record["sites"], -1).astype(np.float32) for name in ("spins", "positions")}
        temporary = path.with_suffix(".partial.npz")
        np.savez_compressed(temporary, **arrays)
        os.replace(temporary, path)

    def spins_path(self, id: int) -> Path:
        """Where spins (N, 3) and positions (N, 2) of a simulated point are, as float32."""
        return self.output_dir / "spins" / f"{id}.npz"

    @contextlib.contextmanager
    def _scratch(self):
        root, note = tempfile.mkdtemp(prefix=f"{SCRATCH_PREFIX}{os.getpid()}_"), self.output_dir / "scratch.json"
        try:
            replace_file(note, json.dumps({"host": os.uname().nodename, "path": root}).encode())
            yield root
        finally:
            shutil.rmtree(root, ignore_errors=True)
            note.unlink(missing_ok=True)

    def _remove_left_scratch(self):
        """Of a run that was killed: its processes are gone, for we hold its directory."""
        note = self.output_dir / "scratch.json"
        if note.exists():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # damaged: the directories stay in the system's temporary one
                left = json.loads(note.read_bytes())
                path = Path(left["path"])
                if left["host"] == os.uname().nodename and path.name.startswith(SCRATCH_PREFIX):
                    shutil.rmtree(path, ignore_errors=True)
            note.unlink()

    def save(self) -> None:
        self.history.save(condensed(self.explorer))

    # ---- what is known

    def fit_surrogate(self) -> Surrogate:
        """Fitted to all labels so far. Raises InputError where there are none."""
        return self.explorer.surrogate()

    def predict_phase(self, params: Mapping[str, float]) -> tuple[str, dict[str, float]]:
        """(most probable phase, {phase: probability}) at a point."""
        surrogate = self.fit_surrogate()
        p = surrogate.probabilities(np.array([self.explorer.box.to_unit(params)]))[0]
        return surrogate.labels[int(p.argmax())], dict(zip(surrogate.labels, p.tolist()))

    def get_phase_boundaries(self, param1: str, param2: str, n_grid: int = 50, fixed: Mapping[str, float] | None = None) -> dict[str, Any]:
        """The predicted map of two parameters, the others at `fixed` or in the middle of their range.

        x (n_grid,), y (n_grid,), labels (C,), phases (n_grid, n_grid): indices into labels, [j, i] at (x[i], y[j]), confidence of that
        shape: the greatest probability, boundaries: rows (x, y, phase, phase) where neighbours on the grid differ.
        """
        box, surrogate = self.explorer.box, self.fit_surrogate()
        if param1 == param2 or not {param1, param2, *(fixed or {})} <= set(box.names) or n_grid < 2:
            raise InputError(f"map of {param1}, {param2} with {n_grid} points: give two of {', '.join(box.names)}, and at least 2 points")
        middle = dict(zip(box.names, [(low + high) / 2 for low, high in zip(box.low, box.high)])) | dict(fixed or {})
        axis = np.linspace(0, 1, n_grid)
        points = np.tile(box.to_unit(middle), (n_grid * n_grid, 1))
        points[:, box.names.index(param1)] = np.tile(axis, n_grid)
        points[:, box.names.index(param2)] = np.repeat(axis, n_grid)
        p = surrogate.probabilities(points)
        (x0, x1), (y0, y1) = box.bounds()[param1], box.bounds()[param2]
        x, y = x0 + axis * (x1 - x0), y0 + axis * (y1 - y0)
        boundaries = boundary_points(p.reshape(n_grid, n_grid, -1), x, y, surrogate.labels)
        phases, confidence = (array.reshape(n_grid, n_grid) for array in (p.argmax(axis=1), p.max(axis=1)))
        return {"x": x, "y": y, "labels": surrogate.labels, "phases": phases, "confidence": confidence, "boundaries": boundaries}

    def get_feature_importances(self) -> dict[str, float]:
        return self.explorer.importances()

    def counts(self) -> dict[str, int]:
        """How many points have each label, failed, or are pending; the most frequent first."""
        states = [answer.label or answer.failure for answer in self.explorer.answers.values()]
        return dict(Counter(states + ["pending"] * len(self.explorer.pending)).most_common())

    def print_summary(self) -> None:
        core = self.explorer
        print(f"{self.output_dir}: {len(core.points)} points, iteration {core.iteration}, strategy {core.strategy}, target {core.target}")
        for label, number in self.counts().items():
            energies = [answer.energy for answer in core.answers.values() if answer.label == label and answer.energy is not None]
            print(f"  {label:16s} {number:6d}" + (f"   energy per site {min(energies):.6f} to {max(energies):.6f}" if energies else ""))
        if len(self.counts().keys() - {"pending", FAILED, *NO_PHASE}) > 1:
            ranked = sorted(self.get_feature_importances().items(), key=lambda item: -item[1])
            print("  importance of parameters: " + ", ".join(f"{name} {share:.0%}" for name, share in ranked))

    # ---- the loop

    def run(self, simulation_func, n_initial=50, n_iterations=10, n_per_iteration=10, change_below=None, entropy_below=None, **how) -> str:
        """Explore until n_iterations have ended or a stop rule holds; why it ended. Called again after an interruption, it goes on.

        how: options of classify_pending_points. change_below, entropy_below: see Explorer.should_stop
        """
        core = self.explorer
        if not any(point.origin == "lhs" for point in core.points):
            self.add_known_seeds()
            self.add_lhs_samples(n_initial)
        while True:
            self.classify_pending_points(simulation_func, **how)
            if not any(point.iteration == core.iteration for point in core.points):
                if core.iteration > n_iterations:
                    return f"{n_iterations} iterations are done"
                if reason := core.should_stop(change_below, entropy_below):
                    return reason
                self.select_next_points(n_per_iteration)
            else:
                self._end_iteration()

    def _end_iteration(self):
        self._record("iteration", **vars(self.explorer.summarise()))
        self.save()


def boundary_points(p: np.ndarray, x: np.ndarray, y: np.ndarray, labels: Sequence[str]) -> list[tuple[float, float, str, str]]:
    """Where the most probable phase changes between neighbours of a grid: p (len(y), len(x), C), linear in between."""
    phase, found = p.argmax(axis=2), []
    for down, right in ((0, 1), (1, 0)):
        here, there = phase[: len(y) - down, : len(x) - right], phase[down:, right:]
        for j, i in np.argwhere(here != there):
            a, b, j2, i2 = here[j, i], there[j, i], j + down, i + right
            first, second = p[j, i, a] - p[j, i, b], p[j2, i2, b] - p[j2, i2, a]
            t = first / (first + second)
            found.append((float(x[i] + t * (x[i2] - x[i])), float(y[j] + t * (y[j2] - y[j])), labels[a], labels[b]))
    return found


# =====================================================================================================================
# Reading a run
# =====================================================================================================================


@dataclass(frozen=True)
class Run:
    """What the history of a directory holds; nothing is claimed or written, a run may be at work there."""

    directory: Path
    header: dict[str, Any]  # version, box, model, seed
    explorer: Explorer
    told: dict[int, dict]  # the last answer of each point, in the order in which they came

    @property
    def L(self) -> int:
        return int(self.header["model"]["L"])

    @property
    def failures(self) -> dict[int, dict]:
        return {id: event for id, event in self.told.items() if "failure" in event}

    @property
    def labelled(self) -> dict[int, dict]:
        return {id: event for id, event in self.told.items() if "phase" in event}

    def parameters(self, id: int) -> dict[str, float]:
        return self.explorer.box.parameters(self.explorer.points[id].unit)

    def states(self) -> dict[str, int]:
        """How many points have each label, failed, or are pending; the most frequent first."""
        pending = len(self.explorer.points) - len(self.told)
        return dict(Counter([event.get("phase") or event["failure"] for event in self.told.values()] + ["pending"] * pending).most_common())

    def spins(self, id: int) -> tuple[np.ndarray, np.ndarray]:
        """Spins and positions of a point. Raises InputError where there are none."""
        path = self.directory / "spins" / f"{id}.npz"
        try:
            with np.load(path) as stored:
                return stored["spins"].astype(float), stored["positions"].astype(float)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(f"{path}: the spins of point {id} are not readable ({type(error).__name__})") from None


def read_history(directory: Path) -> Run:
    """Raises InputError where there is no sound history. A last line that is just being written is left out."""
    path = directory / "history.jsonl"
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise InputError(f"{path}: no run to read there ({error.strerror})") from None
    events = [decode(line) for line in lines]
    if events and events[-1] is None:
        events.pop()
    if not events or None in events or events[0].get("event") != "run":
        raise InputError(f"{path} is not a history of this program, or it is damaged")
    if events[0].get("version") != HISTORY_VERSION:
        raise InputError(f"{path} is of version {events[0].get('version')}; this program reads version {HISTORY_VERSION}")
    explorer, told = Explorer(Box.of(events[0]["box"]), events[0]["seed"], no_phase=NO_PHASE), {}
    for event in events[1:]:
        apply_event(explorer, event)
        for id in (event["id"],) if event["event"] == "told" else event["ids"] if event["event"] == "retry" else ():
            told.pop(id, None)
        if event["event"] == "told":
            told[event["id"]] = event
    return Run(directory, events[0], explorer, told)


def has_surrogate(run: Run) -> bool:
    return any(event["phase"] not in NO_PHASE for event in run.labelled.values())


def summary_text(run: Run) -> str:
    """Phases with their numbers and energies, failures with their reasons, what the surrogate has learnt."""
    core = run.explorer
    seconds = sum(event["seconds"] or 0 for event in run.told.values())
    lines = [f"{run.directory}: {len(core.points)} points, {core.iteration} iterations, {seconds:.1f} s of simulations"]
    for state, number in run.states().items():
        energies = [event["energy"] for event in run.labelled.values() if event["phase"] == state]
        sure = np.mean([event["confidence"] for event in run.labelled.values() if event["phase"] == state] or [0.0])
        tail = f"  energy {min(energies):9.6f} to {max(energies):9.6f}  mean confidence {sure:.2f}" if energies else ""
        lines.append(f"  {state:16} {number:5}{tail}")
    reasons = Counter(f"{event['error']}: {first_line(event['message'])}" for event in run.failures.values())
    lines += [f"  failed {number} x {reason}" for reason, number in reasons.most_common(5)]
    if has_surrogate(run):
        ranked = sorted(core.importances().items(), key=lambda item: -item[1])
        lines.append("  importance: " + ", ".join(f"{name} {share:.0%}" for name, share in ranked))
    if core.iterations and core.iterations[-1].entropy is not None:
        last = core.iterations[-1]
        changed = f", {last.changed:.1%} of its labels changed in the last iteration" if last.changed is not None else ""
        lines.append(f"  predicted map: mean entropy {last.entropy:.3f}{changed}")
    return "\n".join(lines)


def first_line(text: str) -> str:
    return (text.splitlines() or [""])[0][:200]


def summary_record(run: Run) -> dict[str, Any]:
    """The same for programs: what summary.json holds."""
    core = run.explorer
    return {
        "version": __version__,
        "seed": run.header["seed"],
        "model": run.header["model"],
        "box": run.header["box"],
        "points": len(core.points),
        "iterations": core.iteration,
        "states": run.states(),
        "failures": [{"id": id, "error": event["error"], "message": event["message"]} for id, event in run.failures.items()],
        "importance": core.importances() if has_surrogate(run) else {},
        "entropy": core.iterations[-1].entropy if core.iterations else None,
        "lowest_energy": min((event["energy"] for event in run.labelled.values()), default=None),
        "seconds": sum(event["seconds"] or 0 for event in run.told.values()),
    }


def point_text(run: Run, id: int) -> str:
    """All that is known of a point. Raises InputError for one that was never asked for."""
    if not 0 <= id < len(run.explorer.points):
        raise InputError(f"--point {id}: {run.directory} holds the points 0 to {len(run.explorer.points) - 1}")
    point, event = run.explorer.points[id], run.told.get(id)
    lines = [f"point {id}, from {point.origin} in iteration {point.iteration}"]
    lines += [f"  {name:12} {value: .6f}" for name, value in run.parameters(id).items()]
    if event is None:
        return "\n".join([*lines, "not simulated yet"])
    if "failure" in event:
        return "\n".join([*lines, f"{event['failure']}: {event['error']}: {event['message']}", event["traceback"]])
    where = f"{event['seconds']:.1f} s on {event['host']}"
    lines.append(f"{event['phase']}, confidence {event['confidence']:.2f}, energy per site {event['energy']:.8f}, {where}")
    lines += [f"  - {step}" for step in event["path"]]
    return "\n".join([*lines, *(f"  {name:12} {value:.6g}" for name, value in event["numbers"].items())])


# =====================================================================================================================
# Plots
# =====================================================================================================================

PHASE_STYLES = {  # a colour and a marker for each phase, the same in all pictures
    "FM": ("#4477aa", "o"),
    "AFM": ("#ee6677", "s"),
    "ZIGZAG": ("#228833", "^"),
    "ORDER_120": ("#ccbb44", "v"),
    "INCOMM_GAMMA_M": ("#66ccee", "D"),
    "INCOMM_GAMMA_K": ("#aa3377", "p"),
    "SINGLE_Q": ("#ee7733", "<"),
    "BEATING": ("#ffaabb", ">"),
    "MERON_ANTIMERON": ("#332288", "*"),
    "TRIPLE_Q": ("#7a4a1e", "h"),
    "INCOMMENSURATE": ("#44bb99", "P"),
    "DISORDERED": ("#bbbbbb", "X"),
    "UNKNOWN": ("#777777", "d"),
}
OTHER_STYLE = ("#000000", "x")  # failures
OUT_OF_PLANE = ("#1f6fe5", "#3a3a3a", "#e0301e")  # colours of S_z = -1, 0, 1: in-plane arrows must be seen on white
MAP_GRID = 120
PICTURE_DPI = 120


class PlotsMissing(ExplorerError):
    """matplotlib is not there."""


def new_figure(width: float, height: float) -> Any:
    """A figure of so many inches that no window or global state knows of. Raises PlotsMissing."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotsMissing(f"no pictures: matplotlib is not installed ({error}); pip install matplotlib") from None
    return Figure(figsize=(width, height), layout="constrained")


def png_bytes(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=PICTURE_DPI)
    return buffer.getvalue()


def phase_order(names: Iterable[str]) -> list[str]:
    """In the order of PHASE_STYLES, others after them."""
    known = list(PHASE_STYLES)
    return sorted(set(names), key=lambda name: (known.index(name) if name in known else len(known), name))


def phase_colour(name: str) -> str:
    return PHASE_STYLES.get(name, OTHER_STYLE)[0]


def map_axes(run: Run, wanted: Sequence[str] | None = None) -> tuple[str, str]:
    """Two parameters for a map, the most important ones unless others are wanted."""
    if wanted is None:
        shares = run.explorer.importances()
        wanted = sorted(shares, key=lambda name: -shares[name])[:2]
    return wanted[0], wanted[1]


def check_map(box: Box, wanted: Sequence[str] | None, fixed: Mapping[str, float]) -> None:
    """Raises InputError for axes and fixed values that the box does not have."""
    names, bounds = box.names, box.bounds()
    if wanted is not None and (len(wanted) != 2 or len(set(wanted)) != 2 or not set(wanted) <= set(names)):
        raise InputError(f"--map {','.join(wanted)}: give two of {', '.join(names)}")
    if unknown := set(fixed) - set(names):
        raise InputError(f"--at {', '.join(sorted(unknown))}: no parameter of this run; they are {', '.join(names)}")
    for name, value in fixed.items():
        if not bounds[name][0] <= value <= bounds[name][1]:
            raise InputError(f"--at {name}={value:g}: outside of its bounds {bounds[name]}")


def plain(text: str) -> str:
    """For matplotlib, which takes a dollar sign for the start of a formula."""
    return text.replace("$", r"\$")


def slice_points(box: Box, a: str, b: str, fixed: Mapping[str, float], n: int) -> np.ndarray:
    """Unit points (n, n, d): [j, i] has a at i / (n - 1), b at j / (n - 1), the others fixed or in the middle. Raises InputError."""
    middle = dict(zip(box.names, [(low + high) / 2 for low, high in zip(box.low, box.high)]))
    points = np.tile(box.to_unit(middle | dict(fixed)), (n, n, 1))
    points[..., box.names.index(a)] = np.linspace(0, 1, n)
    points[..., box.names.index(b)] = np.linspace(0, 1, n)[:, None]
    return points


def draw_phase_map(run: Run, a: str, b: str, fixed: Mapping[str, float]) -> Any:
    """Regions and boundaries of the surrogate in a slice, sampled points over it, the nearer to the slice the larger."""
    figure, box, surrogate = new_figure(8.2, 6), run.explorer.box, run.explorer.surrogate()
    from matplotlib.colors import to_rgb

    axes = figure.add_subplot()
    points = slice_points(box, a, b, fixed, MAP_GRID)
    p = surrogate.probabilities(points.reshape(-1, len(box.names))).reshape(MAP_GRID, MAP_GRID, -1)
    extent = [bound for name in (a, b) for bound in box.bounds()[name]]
    best, colours = p.argmax(axis=2), np.array([to_rgb(phase_colour(label)) for label in surrogate.labels])
    strength = (0.15 + 0.45 * p.max(axis=2))[..., None]
    axes.imshow(1 - strength * (1 - colours[best]), origin="lower", extent=extent, aspect="auto", interpolation="nearest")
    for c in range(p.shape[2] if p.shape[2] > 1 else 0):
        margin = p[..., c] - np.delete(p, c, axis=2).max(axis=2)
        if margin.min() < 0 < margin.max():
            axes.contour(np.linspace(*extent[:2], MAP_GRID), np.linspace(*extent[2:], MAP_GRID), margin, [0], colors="k", linewidths=0.9)
    draw_map_points(axes, run, a, b, points[0, 0], surrogate.scales)
    shown = set(run.states()) | set(np.array(surrogate.labels)[np.unique(best)].tolist())
    add_phase_legend(figure, shown)
    axes.set(xlabel=plain(a), ylabel=plain(b), xlim=extent[:2], ylim=extent[2:])
    others = [f"{name} = {value:g}" for name, value in box.parameters(points[0, 0]).items() if name not in (a, b)]
    title = "Phases predicted where " + ", ".join(others) if others else "Predicted phases"
    axes.set_title(plain(title) + ("\npoints: the nearer to this slice, the larger" if others else ""), fontsize=10)
    return figure


def draw_map_points(axes: Any, run: Run, a: str, b: str, corner: np.ndarray, scales: np.ndarray) -> None:
    """The sampled points, by phase, sized by their distance from the slice through `corner` along a and b."""
    box = run.explorer.box
    away = np.array([name not in (a, b) for name in box.names])
    units = np.array([point.unit for point in run.explorer.points]).reshape(-1, len(box.names))
    apart = squared_distances(units * away, (corner * away)[None], scales)[:, 0]
    near = np.exp(-3 * apart)
    states = np.array([event.get("phase") or event["failure"] if (event := run.told.get(k)) else "pending" for k in range(len(units))])
    values = np.array([list(box.parameters(unit).values()) for unit in units]).reshape(units.shape)
    x, y = values[:, box.names.index(a)], values[:, box.names.index(b)]
    for state in phase_order(states):
        here = states == state
        colour, marker = PHASE_STYLES.get(state, OTHER_STYLE)
        edge = {} if marker == "x" else {"edgecolors": "k", "linewidths": 0.6}
        size = (8 + 60 * near[here]) * (1.8 if marker == "*" else 1)
        axes.scatter(x[here], y[here], size, c=colour, marker=marker, alpha=0.35 + 0.65 * near[here], zorder=3, clip_on=False, **edge)


def add_phase_legend(figure: Any, shown: Iterable[str]) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for name in phase_order(shown):
        colour, marker = PHASE_STYLES.get(name, OTHER_STYLE)
        edge = colour if marker == "x" else "k"
        handles.append(
            Line2D([], [], color=colour, marker=marker, linestyle="", markeredgecolor=edge, markeredgewidth=0.6, markersize=7, label=name)
        )
    figure.legend(handles=handles, loc="outside right upper", fontsize=8, frameon=False)


def draw_probability_line(run: Run) -> Any:
    """For a box of one parameter: the probability of each phase along it."""
    figure, box, surrogate = new_figure(8, 4), run.explorer.box, run.explorer.surrogate()
    axes, unit_line = figure.add_subplot(), np.linspace(0, 1, 400)[:, None]
    x = box.low[0] + unit_line[:, 0] * (box.high[0] - box.low[0])
    for label, p in zip(surrogate.labels, surrogate.probabilities(unit_line).T):
        axes.plot(x, p, color=phase_colour(label))
    for id, event in run.labelled.items():
        colour, marker = PHASE_STYLES.get(event["phase"], OTHER_STYLE)
        axes.plot(run.parameters(id)[box.names[0]], 1.03, marker, color=colour, markersize=5, clip_on=False)
    axes.set(xlabel=plain(box.names[0]), ylabel="probability", ylim=(0, 1.08), xlim=(box.low[0], box.high[0]))
    add_phase_legend(figure, run.states())
    return figure


def draw_counts(run: Run) -> Any:
    states = run.states()
    figure = new_figure(7, 1 + 0.36 * max(len(states), 2))
    axes, names = figure.add_subplot(), list(states)[::-1]
    bars = axes.barh(
        names, [states[name] for name in names], color=["#dddddd" if name == "pending" else phase_colour(name) for name in names]
    )
    axes.bar_label(bars, padding=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(xlabel="points", xlim=(0, 1.1 * max(states.values(), default=1)))
    return figure


def draw_timeline(run: Run) -> Any:
    """What came of the simulations, in the order of their ends: numbers of each phase, energies, and how the predictions settle."""
    figure, told = new_figure(8, 7.5), run.told
    upper, middle, lower = figure.subplots(3, height_ratios=(3, 3, 2))
    states = np.array([event.get("phase") or event["failure"] for event in told.values()])
    number, names = np.arange(1, len(states) + 1), phase_order(states)
    upper.stackplot(
        number, *(np.cumsum(states == name) for name in names), colors=[phase_colour(name) for name in names], alpha=0.75, step="post"
    )
    failed = int(np.isin(states, [FAILED, TIMEOUT]).sum())
    upper.set_title(f"{len(states) - failed} completed, {failed} failed", fontsize=10)
    upper.set(ylabel="points so far", xlim=(1, max(number[-1], 2)))
    energies = np.array([event.get("energy", np.nan) for event in told.values()], dtype=float)
    for name in names:
        here = (states == name) & np.isfinite(energies)
        colour, marker = PHASE_STYLES.get(name, OTHER_STYLE)
        middle.scatter(number[here], energies[here], 20, c=colour, marker=marker)
    middle.set(ylabel="energy per site", xlim=upper.get_xlim(), xlabel="simulations, in the order of their ends")
    draw_convergence(lower, run.explorer.iterations)
    add_phase_legend(figure, names)
    for axes in (upper, middle, lower):
        axes.spines[["top"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
    return figure


def draw_convergence(axes: Any, iterations: Sequence[Any]) -> None:
    """Changed labels and entropy of the predictions after each iteration."""
    known = [iteration for iteration in iterations if iteration.entropy is not None]
    axes.plot([i.number for i in known], [i.entropy for i in known], "o-", color="#4477aa", markersize=4)
    axes.set(xlabel="iteration", ylim=(0, None))
    axes.set_ylabel("entropy of the\npredictions, nats", color="#4477aa")
    axes.xaxis.get_major_locator().set_params(integer=True)
    other, moved = axes.twinx(), [i for i in known if i.changed is not None]
    other.plot([i.number for i in moved], [100 * i.changed for i in moved], "s--", color="#ee7733", markersize=4)
    other.set_ylabel("labels changed, %", color="#ee7733")
    other.set_ylim(0, None)
    other.spines[["top"]].set_visible(False)


def draw_importance(run: Run) -> Any:
    ranked = sorted(run.explorer.importances().items(), key=lambda item: item[1])
    figure = new_figure(7, 1 + 0.36 * max(len(ranked), 2))
    axes = figure.add_subplot()
    bars = axes.barh([plain(name) for name, _ in ranked], [100 * share for _, share in ranked], color="#4477aa")
    axes.bar_label(bars, fmt="%.0f %%", padding=3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set(
        xlabel="share of the changes of phase when it alone changes, %", xlim=(0, 1.12 * max(1e-9, *(100 * share for _, share in ranked)))
    )
    return figure


def draw_point(run: Run, id: int) -> Any:
    """Spin texture and structure factor of a point."""
    spins, positions = run.spins(id)
    figure, event = new_figure(11, 5.6), run.told[id]
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    draw_texture(left, figure, spins, positions)
    draw_structure_factor(right, figure, spins, math.isqrt(len(spins) // 2))
    figure.suptitle(
        f"point {id}: {event['phase']}, confidence {event['confidence']:.2f}, energy per site {event['energy']:.6f}", fontsize=11
    )
    return figure


def draw_texture(axes: Any, figure: Any, spins: np.ndarray, positions: np.ndarray) -> None:
    """In-plane components as arrows, out-of-plane ones as colour, over the bonds; the periodic lattice is cut to a rectangle."""
    from matplotlib.collections import LineCollection
    from matplotlib.colors import LinearSegmentedColormap

    lattice = Lattice.of(math.isqrt(len(spins) // 2))
    if np.allclose(positions, lattice.positions, atol=1e-4):
        positions = positions * 1.0
        positions[:, 0] = (positions[:, 0] + 0.01) % lattice.L
    pairs, colours = lattice.bonds[:3].reshape(-1, 2), LinearSegmentedColormap.from_list("out of plane", OUT_OF_PLANE)
    segments = positions[pairs]
    inside = np.linalg.norm(segments[:, 0] - segments[:, 1], axis=1) < 0.7  # not those across the border
    axes.add_collection(LineCollection(segments[inside], colors="#cccccc", linewidths=0.8, zorder=1))
    x, y = positions.T
    arrows = axes.quiver(
        x, y, spins[:, 0], spins[:, 1], spins[:, 2], cmap=colours, clim=(-1, 1), pivot="mid", units="x", scale=1.7, width=0.09, zorder=3
    )
    upright = np.hypot(spins[:, 0], spins[:, 1]) < 0.3  # arrows too short to be seen
    axes.scatter(x[upright], y[upright], 18, c=spins[upright, 2], cmap=colours, vmin=-1, vmax=1, zorder=2)
    axes.set(aspect="equal", xlim=(x.min() - 0.7, x.max() + 0.7), ylim=(y.min() - 0.7, y.max() + 0.7))
    axes.axis("off")
    bar = {"location": "bottom", "shrink": 0.6, "aspect": 40, "pad": 0.02, "ticks": [-1, -0.5, 0, 0.5, 1]}
    figure.colorbar(arrows, ax=axes, label="out-of-plane component", **bar)


def draw_structure_factor(axes: Any, figure: Any, spins: np.ndarray, L: int) -> None:
    """Intensity on the allowed q, area and colour, with the Brillouin zone; b1 and b2 as the reciprocals of a1 and a2 on paper."""
    intensity = structure_factor(spins, L).ravel()
    m, n = np.divmod(np.arange(L * L), L)
    images = np.array([(h, k) for h in (-2, -1, 0, 1) for k in (-2, -1, 0, 1)])
    q = cartesian(np.stack([m, n], 1)[None] / L + images[:, None]).ravel() * np.exp(-1j * np.pi / 6)
    weight = np.tile(intensity, len(images))
    inside = np.abs(q) < 0.8
    q, weight = q[inside], weight[inside]
    axes.scatter(q.real, q.imag, 2, c="#bbbbbb", zorder=1)
    order = np.argsort(weight)
    spots = axes.scatter(
        q.real[order], q.imag[order], 320 * weight[order] / weight.max() + 1e-9, c=weight[order], cmap="plasma_r", vmin=0, zorder=3
    )
    corners = np.exp(1j * np.pi / 3 * np.arange(7)) / math.sqrt(3)
    axes.plot(corners.real, corners.imag, color="k", linewidth=1, zorder=2)
    for name, place in (("Γ", 0), ("M", 0.5 * np.exp(1j * np.pi / 6)), ("K", corners[0])):
        axes.annotate(name, (np.real(place), np.imag(place)), (9, 7), textcoords="offset points", fontsize=11, zorder=4)
    axes.set(aspect="equal", xlim=(-0.86, 0.86), ylim=(-0.86, 0.86))
    axes.axis("off")
    figure.colorbar(spots, ax=axes, location="bottom", shrink=0.6, aspect=40, pad=0.02, label="share of the intensity at q")


def example_points(run: Run) -> list[int]:
    """For each phase the point that was named with most confidence."""
    best: dict[str, int] = {}
    for id, event in sorted(run.labelled.items()):
        other = best.get(event["phase"])
        if other is None or event["confidence"] > run.told[other]["confidence"] + 1e-3:
            best[event["phase"]] = id
    return [best[name] for name in phase_order(best)]


def draw_all(run: Run, wanted: Sequence[str] | None = None, fixed: Mapping[str, float] | None = None) -> dict[str, tuple[str, bytes]]:
    """File name: (caption, PNG) of all pictures of a run. Raises PlotsMissing, InputError."""
    figures: dict[str, tuple[str, Any]] = {}
    check_map(run.explorer.box, wanted, fixed or {})
    if has_surrogate(run) and len(run.explorer.box.names) > 1:
        a, b = map_axes(run, wanted)
        figures["map_" + re.sub(r"[^\w.-]", "_", f"{a}_{b}")] = (f"Phase map of {a} and {b}", draw_phase_map(run, a, b, fixed or {}))
    elif has_surrogate(run):
        figures["map"] = (f"Phases along {run.explorer.box.names[0]}", draw_probability_line(run))
    if run.told:
        figures["counts"] = ("Points of each phase", draw_counts(run))
        figures["timeline"] = ("Timeline", draw_timeline(run))
    if has_surrogate(run) and len(run.explorer.box.names) > 1:
        figures["importance"] = ("Importance of the parameters", draw_importance(run))
    for id in example_points(run):
        try:
            figures[f"point-{id}"] = (f"{run.told[id]['phase']}: point {id}", draw_point(run, id))
        except InputError as error:  # its spins are gone: no reason to withhold the others
            say(str(error))
    new_figure(1, 1)  # without any picture to draw, say so all the same where there is no matplotlib
    return {name: (caption, png_bytes(figure)) for name, (caption, figure) in figures.items()}


# =====================================================================================================================
# Report
# =====================================================================================================================

PAGE_BEGINS = b"<!doctype html>"
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 0 auto; padding: 0 1rem 3rem; color: #222; background: #fff; }}
h1 {{ font-size: 1.5rem; overflow-wrap: anywhere; }} h2 {{ font-size: 1.2rem; margin-top: 2rem; }}
img {{ max-width: 100%; height: auto; }} figure {{ margin: 1rem 0; }} figcaption {{ color: #555; }}
.wide {{ overflow-x: auto; }} table {{ border-collapse: collapse; font-size: 0.85rem; }}
th, td {{ padding: 0.2rem 0.6rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; vertical-align: top; }}
th {{ text-align: left; }} td.text {{ text-align: left; }} td.path {{ text-align: left; white-space: normal; min-width: 18rem; }}
.chip {{ display: inline-block; width: 0.8em; height: 0.8em; border-radius: 2px; margin-right: 0.4em; }}
pre {{ overflow-x: auto; font-size: 0.8rem; background: #f4f4f4; padding: 0.5rem; }} ol {{ margin: 0.3rem 0; padding-left: 1.2rem; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def escaped(value: Any) -> str:
    return html.escape(f"{value:.6g}" if isinstance(value, float) else str(value))


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML already: '<td …>' as they are, all others as numbers."""
    lines = ["".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in row) for row in rows]
    header = "".join(f"<th>{escaped(name)}</th>" for name in head)
    return (
        f'<div class="wide"><table><thead><tr>{header}</tr></thead><tbody>\n'
        + "\n".join(f"<tr>{line}</tr>" for line in lines)
        + "\n</tbody></table></div>"
    )


def html_pairs(pairs: Mapping[str, Any]) -> str:
    return html_table(
        ["", ""], [[f'<td class="text">{escaped(name)}</td>', f'<td class="path">{escaped(value)}</td>'] for name, value in pairs.items()]
    )


def chip(name: str) -> str:
    return f'<td class="text"><span class="chip" style="background:{phase_colour(name)}"></span>{escaped(name)}</td>'


def points_table(run: Run) -> str:
    names = run.explorer.box.names
    rows = []
    for id, event in sorted(run.labelled.items()):
        point, steps = run.explorer.points[id], "".join(f"<li>{escaped(step)}</li>" for step in event["path"])
        path = f'<td class="path"><details><summary>{len(event["path"])} steps</summary><ol>{steps}</ol></details></td>'
        values = [f"{value:.4f}" for value in run.parameters(id).values()]
        origin = f'<td class="text">{escaped(point.origin)}, {point.iteration}</td>'
        rows.append(
            [
                str(id),
                chip(event["phase"]),
                f"{event['confidence']:.2f}",
                f"{event['energy']:.6f}",
                *values,
                f"{event['seconds']:.1f}",
                origin,
                path,
            ]
        )
    return html_table(["point", "phase", "confidence", "energy", *names, "seconds", "from, iteration", "decision path"], rows)


def failures_table(run: Run) -> str:
    rows = []
    for id, event in sorted(run.failures.items()):
        message, trace = escaped(first_line(event["message"]) or "no message"), escaped(event["traceback"])
        trace = f'<td class="path"><details><summary>{message}</summary><pre>{trace}</pre></details></td>'
        values = [f"{value:.4f}" for value in run.parameters(id).values()]
        rows.append(
            [
                str(id),
                f'<td class="text">{escaped(event["failure"])}</td>',
                f'<td class="text">{escaped(event["error"])}</td>',
                trace,
                *values,
            ]
        )
    return html_table(["point", "failure", "error", "message", *run.explorer.box.names], rows)


def report_page(run: Run, options: Mapping[str, Any], pictures: Mapping[str, tuple[str, bytes]], missing: str) -> str:
    """One HTML page that needs no other file; missing: why there are no pictures."""
    parts = [f"<h1>Exploration {escaped(run.directory.name)}</h1>", f"<pre>{escaped(summary_text(run))}</pre>"]
    if missing:
        parts.append(f"<p>{escaped(missing)}</p>")
    for caption, png in pictures.values():
        data = base64.b64encode(png).decode()
        parts.append(
            f'<figure><img alt="{escaped(caption)}" src="data:image/png;base64,{data}"><figcaption>{escaped(caption)}</figcaption></figure>'
        )
    if run.failures:
        parts += [f"<h2>Failures ({len(run.failures)})</h2>", failures_table(run)]
    parts += [f"<h2>Points ({len(run.labelled)})</h2>", points_table(run)]
    box = {name: f"{low:g} to {high:g}" for name, (low, high) in run.explorer.box.bounds().items()}
    parts += ["<h2>Parameters</h2>", html_pairs(box)]
    about_run = {"version": __version__, "seed": run.header["seed"]} | {
        name: json.dumps(value) for name, value in run.header["model"].items()
    }
    parts += ["<h2>Run</h2>", html_pairs(about_run), "<h2>Options of this command</h2>", html_pairs(options)]
    return PAGE.format(title=escaped(f"Exploration {run.directory.name}"), body="\n".join(parts))


# =====================================================================================================================
# Simulations of this program
# =====================================================================================================================


def simulate_spins(parameters: Mapping[str, float], L: int, mode: str, seed: int, fixed: Mapping[str, float] | None = None) -> Any:
    """The default simulation: module-level, so that it can be sent to other processes; its seed comes from the parameters alone."""
    couplings = dict(fixed or {}) | dict(parameters)
    return simulate(couplings, L, mode, point_seed(seed, couplings))


def point_seed(seed: int, parameters: Mapping[str, float]) -> int:
    """A seed for a point, whoever simulates it and when."""
    return zlib.crc32(json.dumps([seed, sorted(parameters.items())]).encode())


def with_fixed(parameters: Mapping[str, float], function: Callable, fixed: Mapping[str, float]) -> Any:
    return function(dict(fixed) | dict(parameters))


def spoilt_simulation(parameters: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray, float]:
    """For the benchmark: an ideal state whose name the parameter x decides; 10 % raise, 5 % hang, 5 % crash, decided by x as well."""
    x = parameters["x"]
    fate = zlib.crc32(repr(x).encode()) % 100
    if fate < 10:
        raise ValueError(f"spoilt at x = {x}")
    if fate < 15:
        time.sleep(3600)
    if fate < 20:
        os.kill(os.getpid(), 11)
    time.sleep(0.02)
    name = "zigzag" if x > 0.5 else "ferromagnet"
    return ideal_state(name, 6), np.asarray(Lattice.of(6).positions), x


# =====================================================================================================================
# Test of parallel running
# =====================================================================================================================

SHORTEST_TEST_S = 3.0  # of sequential time; below it a speed-up says nothing
ALLOWED_SHARE = 0.7  # of min(processes, cores): what a machine must reach that has other work too
ROUNDS = 4  # at most; the best time of each kind counts
POSSIBLE = 1.05  # times the number of processes: a larger speed-up is one of a disturbed measurement
RULER = "=" * 50


def start_worker() -> None:
    """A task that ends once its process has loaded this module."""
    time.sleep(0.05)


def timed_batch(plan: Plan, number: int, processes: int, timeout_s: float) -> tuple[float, dict[int, tuple]]:
    """Seconds for so many simulations, net of the start of processes, and (label or failure, energy) of each point."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        where = {"parameters": plan.box, "classify": classify, "model": plan.model, "seed": plan.seed}
        run = stack.enter_context(ActiveLearningExplorer(Path(scratch) / "run", plan.L, **where))
        run.add_lhs_samples(number)
        executor = stack.enter_context(LocalExecutor(processes, timeout_s=timeout_s))
        executor.warm_up()
        for future in [executor.submit(start_worker) for _ in range(processes)]:
            future.result()
        started = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            run.classify_pending_points(plan.simulation, executor=executor, timeout=timeout_s)
        seconds = time.perf_counter() - started
        return seconds, {id: (answer.label or answer.failure, answer.energy) for id, answer in run.explorer.answers.items()}


@dataclass(frozen=True)
class Comparison:
    """Times and results of the same simulations by one process and by several."""

    alone_s: float
    together_s: float
    wanted: Mapping[int, tuple]
    found: Mapping[int, tuple]

    @property
    def speedup(self) -> float:
        return self.alone_s / self.together_s


def compare_times(plan: Plan, number: int, processes: int, timeout_s: float, needed: float) -> Comparison:
    """In rounds, one after the other, until the speed-up is as needed and possible, or results differ: other work comes and goes."""
    alone = together = math.inf
    for _ in range(ROUNDS):
        seconds, wanted = timed_batch(plan, number, 1, timeout_s)
        alone = min(alone, seconds)
        seconds, found = timed_batch(plan, number, processes, timeout_s)
        together = min(together, seconds)
        if wanted != found or needed <= alone / together <= POSSIBLE * processes:
            break
    return Comparison(alone, together, wanted, found)


def usable_cores() -> float:
    """Processors this process may use: its affinity, and the quota of its control group where there is one."""
    cores = float(processes_of(-1))
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, int(quota) / int(period))
    return cores


def run_parallel_test(options: Options, plan: Plan) -> int:
    """The same simulations by one process and by several; 1 where results differ or too little was gained."""
    number, cores = options.test_parallel, usable_cores()
    processes = processes_of(options.n_jobs if options.n_jobs != 1 else -1)
    needed = ALLOWED_SHARE * min(processes, cores)
    print(f"PARALLEL SIMULATION TEST\n{RULER}")
    print(f"[1] {number} LHS test samples, {plan.mode} simulations, L = {plan.L}")
    print(f"[2] Testing SEQUENTIAL execution (n_jobs=1) and PARALLEL execution (n_jobs={processes})...", flush=True)
    comparison = compare_times(plan, number, processes, options.timeout, needed)
    alone, together = comparison.alone_s, comparison.together_s
    print(f"    Sequential time: {alone:.1f}s\n    Time per simulation: {alone / number:.2f}s")
    print(f"    Parallel time: {together:.1f}s\n    Time per simulation: {together / number:.2f}s")
    print(f"\nRESULTS\n{RULER}")
    print(f"Sequential time:  {alone:.1f}s\nParallel time:    {together:.1f}s ({processes} workers)")
    print(f"Speedup:          {comparison.speedup:.2f}x\nEfficiency:       {comparison.speedup / processes:.1%}\n")
    return judge_parallel(comparison, processes, cores)


def judge_parallel(comparison: Comparison, processes: int, cores: float) -> int:
    """Says what is wrong; 1 if anything is. The rule: at least ALLOWED_SHARE of min(processes, cores), processes ready."""
    code, wanted, found = 0, comparison.wanted, comparison.found
    unlike = [id for id in sorted(wanted.keys() | found.keys()) if wanted.get(id) != found.get(id)]
    if unlike:
        shown = ", ".join(f"point {id}: {wanted.get(id)} and {found.get(id)}" for id in unlike[:3])
        print(f"✗ {len(unlike)} of {len(wanted)} results differ: {shown}")
        code = 1
    needed = ALLOWED_SHARE * min(processes, cores)
    rule = f"{needed:.2f}x = {ALLOWED_SHARE} x min({processes} processes, {cores:g} cores)"
    if comparison.alone_s < SHORTEST_TEST_S:
        print(f"- {comparison.alone_s:.1f} s are too short to judge the speed-up by {rule}: give more simulations, or --accurate")
    elif comparison.speedup < needed:
        print(f"✗ the speed-up is below {rule} in each of {ROUNDS} rounds; load of this machine: {os.getloadavg()[0]:.1f}")
        code = 1
    elif comparison.speedup > POSSIBLE * processes:
        print(
            f"✗ more than {processes}x is not possible: other work disturbed the sequential run; load {os.getloadavg()[0]:.1f}, try again"
        )
        code = 1
    if not code:
        print(f"✓ Parallel processing is working! Same labels and energies; asked for: {rule}")
    return code


# =====================================================================================================================
# Benchmark
# =====================================================================================================================


@dataclass(frozen=True)
class Measurement:
    reached: str
    good: bool


@dataclass(frozen=True)
class Figure:
    """A row of the benchmark: measure(full) makes the measurement, quickly or in full."""

    what: str
    goal: str
    measure: Callable[[bool], Measurement]
    quick: bool = True  # also without `all`


def spiral_energy(j: float, h: float) -> float:
    """Energy per site of the spiral q = h b on Γ-M, D = E = F = G = 0, J3xy = j."""
    c = math.cos(2 * math.pi * h)
    return -0.5 * math.sqrt((2 * j - 1) ** 2 + 4 + j**2 + 2 * ((2 - 6 * j) * c + j * (2 * j - 1) * (2 * c * c - 1)))


def known_set(name: str) -> dict[str, float]:
    """A published fit in units of |J1xy|."""
    fit = KNOWN_FITS[name]
    return {parameter: fit[parameter] / abs(fit["J1xy"]) for parameter in PARAMETERS}


def measure_energies(full: bool) -> Measurement:
    """FM, zigzag, spirals that fit the lattice; where a modulated state is lower still, that counts as reached."""
    worst, below, sizes = 0.0, 0, (("screening", 8), ("fast", 12), ("accurate", 24))
    cases = [
        (mode, L, j)
        for mode, L in sizes[: 3 if full else 2]
        for j in ((0.1, 0.2, 0.26, 0.3, 0.35, 0.45, 0.6) if full else (0.2, 0.3, 0.45))
    ]
    for mode, L, j in cases:
        result = simulate({"J3xy": j, "J1z": 0.2, "J3z": -0.3}, L, mode)
        exact = min(-1.5 + 1.5 * j, -(1 + 3 * j) / 2, *(spiral_energy(j, m / L) for m in range(L // 2 + 1)))
        worst, below = max(worst, result.energy - exact), below + (result.energy < result.bound - 1e-9)
    return Measurement(f"{len(cases)} states: at most {max(worst, 0):.0e} above, {below} below the bound", worst < 1e-6 and not below)


def measure_boundaries(full: bool) -> Measurement:
    """Last FM and first zigzag on a grid of j."""
    found = []
    for exact, step, low, high in ((0.25, 0.01, "FM", None), ((math.sqrt(17) - 1) / 8, 0.01, None, "ZIGZAG")):
        L, j = (24, "accurate") if full else (12, "fast")
        values = exact + step * np.array([-1.5, -0.5, 0.5, 1.5])
        names = [classify(simulate({"J3xy": value, "J1z": 0.2, "J3z": -0.3}, L, j).spins, L).phase.name for value in values]
        inside = [name in (low, high) for name in names]
        found.append(inside[0] == bool(low) and inside[-1] == bool(high))
    return Measurement(f"{sum(found)} of 2, grid step 0.01", all(found))


def measure_known(name: str, best: float, full: bool) -> Measurement:
    result = simulate(known_set(name), mode="accurate" if full else "fast")
    return Measurement(f"{result.energy:.6f}, bound {result.bound:.6f}", result.bound - 1e-9 <= result.energy <= best + 5e-7)


def random_sets(number: int) -> list[dict[str, float]]:
    values = np.random.default_rng(1).uniform(-1, 1, (number, len(PARAMETERS)))
    return [dict(zip(PARAMETERS, row.tolist())) for row in values]


def measure_time(mode: str, goal_s: float, full: bool) -> Measurement:
    """Mean processor time of random sets: other programs on the machine do not count."""
    sets, started = random_sets(20 if full else 3), time.process_time()
    for parameters in sets:
        simulate(parameters, mode=mode)
    seconds = (time.process_time() - started) / len(sets)
    return Measurement(f"{seconds:.2f} s", seconds <= goal_s)


def measure_accurate(full: bool) -> Measurement:
    sets = random_sets(50 if full else 3)
    good = sum(simulate(p, mode="accurate").energy <= simulate(p, mode="fast").energy + 1e-10 for p in sets)
    return Measurement(f"{good} of {len(sets)}", good == len(sets))


LABEL_CASES = (
    ("ferromagnet", {}, "FM"),
    ("neel", {}, "AFM"),
    *(("zigzag", {"domain": k}, "ZIGZAG") for k in range(3)),
    *(("stripy", {"domain": k}, "SINGLE_Q") for k in range(3)),
    ("order_120", {}, "ORDER_120"),
    *(("spiral", {"q": (m / 12, 0)}, "INCOMM_GAMMA_M") for m in (1, 2, 3, 5)),
    *(("spiral", {"q": (m / 12, -m / 12)}, "INCOMM_GAMMA_K") for m in (1, 2, 3)),
    ("meron", {"q": (1 / 6, 0), "q2": (0, 1 / 6)}, "MERON_ANTIMERON"),
    ("triple_q", {"q": (1 / 6, 0), "q2": (0, 1 / 6), "q3": (-1 / 6, -1 / 6)}, "TRIPLE_Q"),
    ("random", {}, "DISORDERED"),
)


def transformed(spins: np.ndarray, L: int, rng: np.random.Generator) -> np.ndarray:
    """The state (N, 3) translated, turned by 60° about a hexagon, mirrored or not, and turned in spin space."""
    i, j = np.divmod(np.arange(L * L), L)
    cells = spins.reshape(L, L, 2, 3)
    cells = np.roll(cells, tuple(rng.integers(L, size=2).tolist()), axis=(0, 1))
    for _ in range(rng.integers(6)):  # (i, j, A) -> (-j, i + j, B of the cell below), (i, j, B) -> (-j - 1, i + j + 1, A)
        turned = np.empty_like(cells)
        turned[-j % L, (i + j) % L, 1] = cells[i, j, 0].reshape(-1, 3)
        turned[(-j - 1) % L, (i + j + 1) % L, 0] = cells[i, j, 1].reshape(-1, 3)
        cells = turned
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    return cells.reshape(-1, 3) @ rotation


def measure_labels(full: bool) -> Measurement:
    """Ideal and annealed states under random symmetries of lattice and spin space."""
    rng, L, good, tried = np.random.default_rng(2), 12, 0, 0
    states = [(ideal_state(name, L, rng=rng, **more), label) for name, more, label in LABEL_CASES]
    for parameters in random_sets(20 if full else 4):
        spins = simulate(parameters, L).spins
        states.append((spins, classify(spins, L).phase.name))
    for spins, label in states:
        for _ in range(20 if full else 4):
            good += classify(transformed(spins, L, rng), L).phase.name == label
            tried += 1
    return Measurement(f"{good} of {tried}", good == tried)


def plane_labels(units: np.ndarray) -> np.ndarray:
    """Luttinger-Tisza labels (n,) of unit points (n, 2): J3xy and J1z from -1 to 1, the other couplings 0, where the best q is on Γ-M."""
    j, z = 2 * units[:, 0] - 1, 2 * units[:, 1] - 1
    wave = np.exp(2j * np.pi * np.linspace(0, 0.5, 201))
    strength = np.abs(j[:, None] * (2 * wave + wave.conj()) - (2 + wave))
    k, best = strength.argmax(1), strength.max(1)
    names = np.where(k == 0, "FM", np.where(k == 200, "ZIGZAG", "INCOMM_GAMMA_M"))
    return np.where(3 * np.abs(z) > best, np.where(z > 0, "AFM", "FM_Z"), names)


def wrong_labels(surrogate: Any) -> float:
    """Share of the 40 x 40 grid where its label is wrong."""
    centres = np.stack(np.meshgrid(*[(np.arange(40) + 0.5) / 40] * 2), axis=-1).reshape(-1, 2)
    return float(np.mean(surrogate.predict(centres) != plane_labels(centres)))


def explored_plane(strategy: str, seed: int, total: int = 128, batch: int = 9) -> float:
    """Wrong labels after so many points, 20 of them a Latin hypercube, the rest chosen nine at a time."""
    explorer = Explorer(Box.of({"J3xy": (-1, 1), "J1z": (-1, 1)}), seed, strategy, "ZIGZAG")
    explorer.register(explorer.new_points(latin_hypercube(20, 2, np.random.default_rng(seed)).tolist(), "lhs"))
    while explorer.pending:
        for point in explorer.pending:
            explorer.tell(point.id, str(plane_labels(np.array([point.unit]))[0]))
        if len(explorer.points) < total:
            explorer.ask(min(batch, total - len(explorer.points)))
    return wrong_labels(explorer.surrogate())


def measure_sampling(full: bool) -> Measurement:
    """The default strategy, with a regular grid and random points of the same number beside it."""
    seeds = range(5 if full else 1)
    ours = [explored_plane("balanced", seed) for seed in seeds]
    even = np.array([((i + 0.5) / 16, (k + 0.5) / 8) for k in range(8) for i in range(16)])
    drawn = [np.random.default_rng(seed).random((128, 2)) for seed in seeds]
    gridded, random = ([wrong_labels(fit_labels(u, plane_labels(u), np.ones(len(u)))) for u in some] for some in ([even], drawn))
    return Measurement(f"{max(ours):.1%}; grid {gridded[0]:.1%}, random {np.mean(random):.1%}", max(ours) <= 0.02)


def measure_speedup(full: bool) -> Measurement:
    plan = make_plan(Options(screening=not full))
    number = 60 if full else 40
    comparison = compare_times(plan, number, 2, 300.0, 1.85)
    same = comparison.wanted == comparison.found
    good = same and 1.85 <= comparison.speedup <= 2 * POSSIBLE
    return Measurement(f"{comparison.speedup:.3f}x, results {'the same' if same else 'DIFFER'}", good)


def measure_chaos(full: bool) -> Measurement:
    """A run whose simulations raise, hang and crash, killed five times; every point must be accounted for, none mislabelled."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "run"
        command = [sys.executable, str(Path(__file__).resolve()), "--simulation", f"{Path(__file__).stem}:spoilt_simulation"]
        command += ["--parameters", '{"x": [0, 1]}', "--n-initial", "150", "--n-iterations", "5", "--n-jobs", "2", "--timeout", "1.5"]
        command += ["--lattice-size", "6", "--strategy", "random", "--quiet", "--output-dir", str(directory)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH", "")])}
        for kill_after_s in (2.0, 3.0, 4.0, 3.0, 2.5, None):
            process = subprocess.Popen(command, env=environment)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(kill_after_s)
            process.kill()
            process.wait()
        run = read_history(directory)
        right = {id: "ZIGZAG" if run.parameters(id)["x"] > 0.5 else "FM" for id in run.labelled}
        mislabelled = sum(event["phase"] != right[id] for id, event in run.labelled.items())
        fates = [zlib.crc32(repr(run.parameters(id)["x"]).encode()) % 100 < 20 for id in range(len(run.explorer.points))]
        good = len(run.told) == 200 and not mislabelled and sum(fates) == len(run.failures)
        return Measurement(f"{len(run.told)} accounted for, {len(run.failures)} failed as they should, {mislabelled} mislabelled", good)


FIGURES = (
    Figure("exact energies: FM, spiral, zigzag", "to 1e-6, none below the bound", measure_energies),
    Figure("boundaries j = 1/4 and 0.3904", "within one grid step", measure_boundaries),
    Figure("fitting_param_2, energy per site", "<= -1.127207", partial(measure_known, "fitting_param_2", -1.127207)),
    Figure("emily, energy per site", "<= -1.055194", partial(measure_known, "emily", -1.055194)),
    Figure("time of a screening simulation", "<= 0.3 s (reference 3 s)", partial(measure_time, "screening", 0.3)),
    Figure("time of a fast simulation", "<= 1.5 s (reference 15 s)", partial(measure_time, "fast", 1.5)),
    Figure("time of an accurate simulation", "<= 9 s (reference 90 s)", partial(measure_time, "accurate", 9.0)),
    Figure("accurate never above fast", "all", measure_accurate),
    Figure("labels under symmetries", "all right", measure_labels),
    Figure("wrong labels with 128 of 1600 points", "<= 2 % (anchor 5 %)", measure_sampling),
    Figure("speed-up with two processes", ">= 1.85x", measure_speedup),
    Figure("200 points, 20 % spoilt, killed 5 times", "200, none mislabelled", measure_chaos, quick=False),
)


def run_benchmark(options: Options) -> int:
    """Prints each figure as it is measured; 1 where one misses its goal."""
    full = options.benchmark == "all"
    print(f"{'figure':42}{'goal':32}{'reached':56}{'s':>6}")
    missed = 0
    for figure in FIGURES:
        if not (full or figure.quick):
            continue
        started = time.perf_counter()
        result = figure.measure(full)
        missed += not result.good
        mark = "" if result.good else "  MISSED"
        print(f"{figure.what:42}{figure.goal:32}{result.reached:56}{time.perf_counter() - started:6.1f}{mark}", flush=True)
    print(f"{'in full' if full else 'quick subset, --benchmark all for the figures in full'}; {missed} missed")
    return 1 if missed else 0


# =====================================================================================================================
# Command line
# =====================================================================================================================

PROGRAM_MODEL = "honeycomb 1"  # changes when the same parameters give other states or labels
WORKER_MB, CELL_MB = 40.0, 0.02  # resident memory of a worker, and more for each lattice cell; measured: 45, 51, 65 at L = 12, 24, 36
FILES_A_WORKER, FILES_OURS = 4, 40  # open files: two pipes and a sentinel for each worker; our own
ACTIONS = ("skip_simulation", "status", "point", "stop", "dry_run", "test_parallel", "benchmark")  # one of them at a time


def an_option(default: Any, text: str, **more: Any) -> Any:
    return field(default=default, metadata={"help": text, **more})


@dataclass(frozen=True)
class Options:
    """Every option, its default and what it does; the command line is made from this."""

    output_dir: str = an_option("exploration", "directory of the run: history, spins, pictures", metavar="DIR")
    n_jobs: int = an_option(1, "processes on this machine; -1: one for each CPU", metavar="N")
    n_initial: int = an_option(50, "points of the Latin hypercube at the start, beside the published fits", metavar="N")
    n_iterations: int = an_option(10, "iterations after that", metavar="N")
    n_per_iteration: int = an_option(10, "points chosen in each iteration", metavar="N")
    lattice_size: int | None = an_option(None, "L of L x L cells (default: the mode's; screening 8, fast 12, accurate 24)", metavar="L")
    strategy: str = an_option("balanced", f"how points are chosen: {', '.join(STRATEGIES)}")
    target_phase: str | None = an_option(
        None, "phase that the strategies balanced and target look for, such as MERON_ANTIMERON", metavar="NAME"
    )
    fast_mode: bool = an_option(False, "L = 12 (the default mode)")
    screening: bool = an_option(False, "L = 8, a third of the time")
    accurate: bool = an_option(False, "L = 24, never above fast")
    seed: int = an_option(0, "of everything random; the same seed gives the same run, whatever --n-jobs", metavar="N")
    timeout: float = an_option(300.0, "hard limit for each simulation", metavar="S")
    checkpoint_interval: int = an_option(10, "simulations between two snapshots (each simulation is in the history at once)", metavar="N")
    stop_label_change: float | None = an_option(
        None, "stop when less than this share of the predicted labels changed in each of two iterations, such as 0.01", metavar="X"
    )
    stop_entropy: float | None = an_option(None, "stop when the mean entropy of the predictions is below this, in nats", metavar="X")
    simulation: str | None = an_option(
        None, "your simulation: f(parameters) -> spins (N, 3), positions (N, 2), energy per site, N = 2 L^2", metavar="MODULE:FUNCTION"
    )
    parameters: str | None = an_option(
        None, 'parameter box, a JSON file or text: {"J3xy": [0, 1], "J1z": [-1, 1], "D": 0.1}; a single number stays fixed', metavar="FILE"
    )
    resume: bool = an_option(False, "go on with the run of the directory (as the same command does), or say that there is none")
    retry_failed: bool = an_option(False, "simulate the failed points again")
    fresh_start: bool = an_option(False, "delete the run of the directory first, its history and spins")
    skip_simulation: bool = an_option(False, "simulate nothing: summary, --plots and --report of what is there")
    plots: bool = an_option(False, "write pictures into the directory's plots/ (needs matplotlib)")
    report: str | None = an_option(None, "write one self-contained HTML page", metavar="FILE")
    map: str | None = an_option(None, "the two parameters of the phase map (default: the two that matter most)", metavar="NAME,NAME")
    at: str | None = an_option(None, "where the map cuts the other parameters (default: the middle of each)", metavar="NAME=VALUE,...")
    point: int | None = an_option(None, "show a point, its decision path and its pictures, and stop", metavar="ID")
    status: bool = an_option(False, "show how far the run of the directory is, and stop")
    dry_run: bool = an_option(False, "say what would be done, and stop; writes nothing")
    test_parallel: int | None = an_option(
        None, "run N simulations (default 20) in sequence and in parallel; fails where results differ", nargs="?", const=20, metavar="N"
    )
    benchmark: str | None = an_option(
        None, "measure the published figures, a quick subset or all of them", nargs="?", const="quick", metavar="all"
    )
    condor: bool = an_option(False, "run on an HTCondor pool; this program must be on a host that can submit jobs")
    check_interval: float = an_option(5.0, "seconds between two looks at HTCondor's queue", metavar="S")
    condor_option: tuple[str, ...] = an_option(
        (), "a further line for the submit file, such as accounting_group=x; repeatable", metavar="KEY=VALUE"
    )
    transfer_files: bool = an_option(False, "let HTCondor transfer files: the execute nodes do not see the directory")
    request_memory: int = an_option(1024, "memory for a job", metavar="MB")
    max_jobs: int = an_option(5000, "jobs in HTCondor's queue at a time", metavar="N")
    stop: bool = an_option(False, "remove the jobs that a run of --condor left in HTCondor's queue, and stop")
    verbose: bool = an_option(False, "print the decision path of each point and the traceback of each failure at the end")
    quiet: bool = an_option(False, "no progress, no summary")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="explorer.py",
        description="Explore the phase diagram of a honeycomb magnet, or of any simulation, by parallel active learning.",
        epilog="exit codes: 0 done; 1 no point could be labelled, or a check failed; 2 wrong usage; 130 interrupted",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=__version__)
    kinds = {"int": int, "float": float, "int | None": int, "float | None": float}
    for option in fields(Options):
        names = dict.fromkeys((f"--{option.name.replace('_', '-')}", f"--{option.name}"))
        more = dict(option.metadata)
        if option.type != "bool" and option.default not in (None, ()) and "default" not in more["help"]:
            more["help"] += " (default: %(default)s)"
        if option.type == "bool":
            parser.add_argument(*names, action="store_true", **more)
        elif option.type == "tuple[str, ...]":
            parser.add_argument(*names, action="append", **more)
        else:
            parser.add_argument(*names, default=option.default, type=kinds.get(option.type, str), **more)
    return parser


def parse_options(argv: Sequence[str]) -> Options:
    """Raises SystemExit(2) for usage errors."""
    values = vars(make_parser().parse_args(argv))
    return Options(**values | {"condor_option": tuple(values["condor_option"] or ())})


@dataclass(frozen=True)
class Plan:
    """What is explored, and by which simulation."""

    box: Box
    L: int
    mode: str  # for people
    model: dict[str, Any]  # what the labels depend on, beside box and L
    simulation: Callable[[Mapping[str, float]], Any]  # a module-level function, or partial of one
    seed: int


def make_plan(options: Options) -> Plan:
    """Raises InputError."""
    modes = [name for name in ("fast_mode", "screening", "accurate") if getattr(options, name)]
    if len(modes) > 1:
        raise InputError(f"{' and '.join(as_option(name) for name in modes)} contradict each other: give one of them")
    mode = modes[0] if modes and modes[0] in MODES else "fast"
    L = MODES[mode].L if options.lattice_size is None else options.lattice_size
    if L < SMALLEST_RESOLVED:
        raise InputError(f"--lattice-size {L}: too small to tell phases apart; give at least {SMALLEST_RESOLVED}")
    if options.seed < 0:
        raise InputError(f"--seed {options.seed}: give a whole number, not negative")
    box, fixed = read_box(options.parameters)
    if options.simulation is None:
        Couplings.from_parameters(dict(zip(box.names, box.low)) | fixed)
        Couplings.from_parameters(dict(zip(box.names, box.high)) | fixed)
        simulation = partial(simulate_spins, L=L, mode=mode, seed=options.seed, fixed=fixed)
        return Plan(box, L, mode, {"simulation": PROGRAM_MODEL, "mode": mode, "fixed": fixed}, simulation, options.seed)
    if options.parameters is None:
        raise InputError('--simulation needs its own --parameters: a JSON file {"name": [low, high], ...}')
    if modes:
        raise InputError(f"{as_option(modes[0])} is for the simulation of this program, not for --simulation {options.simulation}")
    function = load_function(options.simulation)
    simulation = partial(with_fixed, function=function, fixed=fixed) if fixed else function
    return Plan(box, L, options.simulation, {"simulation": options.simulation, "fixed": fixed}, simulation, options.seed)


def as_option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raises ValueError where JSON gives a name twice."""
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a name is given twice")
    return dict(pairs)


def read_box(text: str | None) -> tuple[Box, dict[str, float]]:
    """Parameter box, and the parameters that stay fixed, from a JSON file or JSON itself. Raises InputError."""
    if text is None:
        return DEFAULT_BOX, {}
    try:
        content = text if text.lstrip().startswith("{") else Path(text).read_text(encoding="utf-8-sig")
        entries = json.loads(content, object_pairs_hook=unrepeated)
        if not isinstance(entries, dict):
            raise ValueError('expected {"name": [low, high], ...}')
        fixed = {name: float(value) for name, value in entries.items() if isinstance(value, (int, float)) and not isinstance(value, bool)}
    except (OSError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"--parameters {text[:200]}: not readable as JSON of a box ({error})") from None
    if not all(math.isfinite(value) for value in fixed.values()):
        raise InputError(f"--parameters {text}: fixed values must be finite numbers")
    return Box.of({name: value for name, value in entries.items() if name not in fixed}), fixed


def load_function(text: str) -> Callable:
    """MODULE:FUNCTION, the module found from the present directory on. Raises InputError."""
    module_name, _, name = text.partition(":")
    if not name or not all(part.isidentifier() for part in (*module_name.split("."), name)):
        raise InputError(f"--simulation {text}: expected MODULE:FUNCTION, such as my_model:simulate for my_model.py here")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)  # which the workers inherit
    try:
        function = getattr(importlib.import_module(module_name), name)
    except Exception as error:
        raise InputError(f"--simulation {text}: cannot be loaded ({type(error).__name__}: {error})") from None
    if not callable(function):
        raise InputError(f"--simulation {text}: {name} is {type(function).__name__}, not a function")
    return function


def check_options(options: Options) -> None:
    """Raises InputError where options contradict each other or say nothing sensible."""
    contradictions = (("resume", "fresh_start"), ("retry_failed", "fresh_start"), ("verbose", "quiet"))
    for pair in [*contradictions, *((a, b) for k, a in enumerate(ACTIONS) for b in ACTIONS[:k])]:
        if all(getattr(options, name) not in (None, False) for name in pair):
            raise InputError(f"{as_option(pair[0])} and {as_option(pair[1])} contradict each other: give one of them")
    if options.condor and options.n_jobs != 1:
        raise InputError("--condor and --n-jobs contradict each other: give one of them")
    check_strategy(options.strategy)
    if options.strategy == "target" and options.target_phase is None:
        raise InputError("--strategy target needs --target-phase")
    names = [phase.name for phase in PhaseType if phase.name not in NO_PHASE]
    if options.target_phase is not None and options.target_phase not in names:
        raise InputError(f"--target-phase {options.target_phase}: give one of {', '.join(names)}")
    processes_of(options.n_jobs)
    for name in ("n_initial", "n_per_iteration", "checkpoint_interval", "request_memory", "max_jobs"):
        if not 1 <= getattr(options, name) < 10**7:
            raise InputError(f"{as_option(name)} {getattr(options, name)}: expected a number of at least 1")
    if options.n_iterations < 0:
        raise InputError(f"--n-iterations {options.n_iterations}: expected 0 or more")
    for name in ("timeout", "check_interval", "stop_label_change", "stop_entropy"):
        value = getattr(options, name)
        if value is not None and not 0 < value < LONGEST_TIMEOUT_S:
            raise InputError(f"{as_option(name)} {value:g}: expected a number above 0")
    if options.test_parallel is not None and options.test_parallel < 2:
        raise InputError(f"--test-parallel {options.test_parallel}: expected at least 2 simulations")
    if options.benchmark not in (None, "quick", "all"):
        raise InputError(f"--benchmark {options.benchmark}: expected nothing more, or all")
    for text in options.condor_option:
        if not text.partition("=")[1]:
            raise InputError(f"--condor-option {text!r}: expected KEY=VALUE")


def check_is_page(path: Path) -> None:
    """Raises InputError rather than let a report replace a file of another kind."""
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            if file.read(len(PAGE_BEGINS)).lower() != PAGE_BEGINS:
                raise InputError(f"--report {path}: exists and is no HTML page; choose another name")


def check_place(path: Path, what: str, is_directory: bool) -> None:
    """Raises InputError where a file or directory could not be written; creates nothing."""
    try:
        if path.exists() and not (path.is_dir() if is_directory else path.is_file()):
            raise InputError(f"{what} {path}: is not a {'directory' if is_directory else 'regular file'}")
        place = path if is_directory else path.parent
        while not place.exists():
            place = place.parent
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            raise InputError(f"{what} {path}: {place} is not a directory that can be written")
    except OSError as error:
        raise InputError(f"{what} {path}: {error.strerror}") from None


def parse_map(options: Options) -> tuple[list[str] | None, dict[str, float]]:
    """--map and --at. Raises InputError."""
    fixed = {}
    for item in options.at.split(",") if options.at is not None else ():
        name, equals, value = (part.strip() for part in item.partition("="))
        try:
            fixed[name] = float(value)
        except ValueError:
            equals = ""
        if not equals or not math.isfinite(fixed[name]):
            raise InputError(f"--at {item!r}: expected NAME=VALUE")
    return None if options.map is None else [name.strip() for name in options.map.split(",")], fixed


def say(line: str) -> None:
    """One line on stderr, whatever is in it."""
    line = " ".join(line.split())
    with contextlib.suppress(OSError):  # nobody may read stderr any more; that must not end a run
        print(f"explorer: {line if len(line) < 900 else line[:900] + ' ...'}", file=sys.stderr, flush=True)


def free_memory_mb() -> float | None:
    """What new processes may use without swapping; None where the system does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) / 1024
    return None


def advice(options: Options, plan: Plan) -> list[str]:
    """What may go wrong with so many processes, one line each."""
    import resource

    if options.condor:
        return []
    processes, lines = processes_of(options.n_jobs), []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = FILES_OURS + FILES_A_WORKER * processes
    if soft != resource.RLIM_INFINITY and needed > soft:
        limit = 4096 if hard == resource.RLIM_INFINITY else min(max(4096, needed), hard)
        lines.append(
            f"{processes} processes need about {needed} open files, the limit is {soft}: run `ulimit -n {limit}` first, or use fewer"
        )
    wanted_mb, free_mb = processes * (WORKER_MB + CELL_MB * plan.L**2), free_memory_mb()
    if free_mb is not None and wanted_mb > free_mb:
        lines.append(f"{processes} processes need about {wanted_mb:.0f} MB of memory, {free_mb:.0f} MB are free: use fewer --n-jobs")
    cores = usable_cores()
    if processes > math.ceil(cores):
        lines.append(f"{processes} processes on {cores:g} cores: more than one a core gains nothing")
    if options.n_per_iteration < processes:
        lines.append(
            f"--n-per-iteration {options.n_per_iteration} leaves some of the {processes} processes idle: give at least as many points"
        )
    return lines


def say_plan(options: Options, plan: Plan) -> str:
    """What a dry run says."""
    box = ", ".join(f"{name} {low:g} to {high:g}" for name, (low, high) in plan.box.bounds().items())
    path = Path(options.output_dir) / "history.jsonl"
    total = options.n_initial + options.n_iterations * options.n_per_iteration
    where = "an HTCondor pool" if options.condor else f"{processes_of(options.n_jobs)} processes"
    lines = [
        f"{plan.mode} simulations, L = {plan.L}, seed {plan.seed}, on {where}, each at most {options.timeout:g} s",
        f"parameters: {box}" + "".join(f", {name} = {value:g}" for name, value in plan.model["fixed"].items()),
        f"{options.n_initial} points and the published fits within the box, then {options.n_iterations} x {options.n_per_iteration} "
        f"by strategy {options.strategy}, target {options.target_phase}: {total} or a few more in all",
    ]
    if path.exists() and not options.fresh_start:
        run = read_history(Path(options.output_dir))
        lines.append(f"goes on with {path}: {len(run.told)} of {len(run.explorer.points)} points done, iteration {run.explorer.iteration}")
    else:
        lines.append(f"starts {path}" + (", deletes what is there" if path.exists() else ""))
    return "\n".join(lines)


def forget_run(directory: Path) -> None:
    """Delete history, spins and pictures of a run, and its jobs. Raises InputError where there is no run of this program, ExecutorError."""
    with claim_directory(directory) as place:
        path = place / "history.jsonl"
        if path.exists() and not path.read_bytes()[: len(FIRST_BYTES)] == FIRST_BYTES[: path.stat().st_size]:
            raise InputError(f"--fresh-start: {path} is not a history of this program; choose another output directory")
        drop_jobs(place)
        for name in ("history.jsonl", "state.json", "summary.json"):
            (place / name).unlink(missing_ok=True)
        for path in (*(place / "spins").glob("[0-9]*.npz"), *(place / "plots").glob("*.png")):
            path.unlink()


def drop_jobs(directory: Path) -> None:
    """Remove the jobs that a run has in HTCondor's queue, and their files. Raises ExecutorError."""
    if (directory / "jobs").is_dir():
        say(f"{remove_run(directory / 'jobs')} jobs removed from HTCondor's queue")
        shutil.rmtree(directory / "jobs")


def check_condor(pairs: Sequence[tuple[str, str]]) -> None:
    """Raises CondorMissing, InputError."""
    check_condor_tools()
    try:
        check_submit_options(pairs)
    except ValueError as error:
        raise InputError(f"--condor-option: {error}") from None


def make_executor(options: Options, directory: Path) -> Any:
    """Raises InputError, ExecutorError."""
    if not options.condor:
        return LocalExecutor(processes_of(options.n_jobs), timeout_s=options.timeout, retries=0, log_dir=directory / "logs")
    try:
        return CondorExecutor(
            directory / "jobs",
            check_interval_s=options.check_interval,
            timeout_s=options.timeout,
            memory_mb=options.request_memory,
            options=split_options(options.condor_option),
            transfer_files=options.transfer_files,
            max_jobs=options.max_jobs,
            say=say,
        )
    except ValueError as error:
        raise InputError(str(error)) from None


def run_exploration(options: Options) -> int:
    """Simulate, learn and choose until a stop rule holds; then what was asked for besides."""
    plan, directory = make_plan(options), Path(options.output_dir)
    check_place(directory, "--output-dir", is_directory=True)
    check_map(plan.box, *parse_map(options))
    if options.dry_run:
        print(say_plan(options, plan))
        return 0
    if options.resume and not (directory / "history.jsonl").exists():
        raise InputError(f"--resume: {directory} holds no run; leave the option out to start one")
    for line in advice(options, plan):
        say(line)
    if options.condor:
        check_condor(split_options(options.condor_option))
    if options.fresh_start and directory.exists():
        forget_run(directory)
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        where = {"parameters": plan.box, "classify": classify, "model": plan.model, "seed": plan.seed}
        run = stack.enter_context(
            ActiveLearningExplorer(directory, plan.L, target_phase=options.target_phase, strategy=options.strategy, **where)
        )
        if options.quiet:
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        if options.retry_failed:
            print(f"{run.retry_failed()} failed points are simulated again")
        executor = stack.enter_context(make_executor(options, run.output_dir))
        limits = {"change_below": options.stop_label_change, "entropy_below": options.stop_entropy}
        numbers = (options.n_initial, options.n_iterations, options.n_per_iteration)
        how = {"executor": executor, "checkpoint_interval": options.checkpoint_interval, "timeout": options.timeout}
        reason = run.run(plan.simulation, *numbers, **limits, **how)
        print(f"Stopped after {time.perf_counter() - started:.1f} s: {reason}\n")
    found = read_history(directory)
    replace_file(directory / "summary.json", json.dumps(summary_record(found) | {"stopped": reason}, indent=1).encode())
    write_outputs(found, options)
    if not found.labelled:
        say("no point could be labelled: every simulation failed, the reasons are above and in the history")
    return 0 if found.labelled else 1


def write_outputs(run: Run, options: Options) -> None:
    """Summary on stdout, pictures and report where asked for."""
    if not options.quiet:
        print(summary_text(run))
    for id in sorted(run.told) if options.verbose else ():
        print(point_text(run, id))
    if options.plots or options.report is not None:
        wanted, fixed = parse_map(options)
        pictures, missing = {}, ""
        try:
            pictures = draw_all(run, wanted, fixed)
        except PlotsMissing as error:
            missing = str(error)
            say(missing)
        if options.plots and pictures:
            write_pictures(run, pictures, options)
        if options.report is not None:
            shown = {as_option(f.name): value for f in fields(Options) if (value := getattr(options, f.name)) not in (None, False, ())}
            page = report_page(run, shown, pictures, missing)
            Path(options.report).parent.mkdir(parents=True, exist_ok=True)
            replace_file(Path(options.report), page.encode())
            if not options.quiet:
                print(f"report: {options.report}")


def write_pictures(run: Run, pictures: Mapping[str, tuple[str, bytes]], options: Options) -> None:
    place = run.directory / "plots"
    place.mkdir(exist_ok=True)
    for name, (_, png) in pictures.items():
        replace_file(place / f"{name}.png", png)
    if not options.quiet:
        print(f"pictures: {', '.join(f'{name}.png' for name in pictures)} in {place}")


def show_point(options: Options) -> int:
    run = read_history(Path(options.output_dir))
    print(point_text(run, options.point))
    if options.point in run.labelled:
        try:
            write_pictures(run, {f"point-{options.point}": ("", png_bytes(draw_point(run, options.point)))}, options)
        except PlotsMissing as error:
            say(str(error))
    return 0


def status_text(directory: Path) -> str:
    """Raises InputError where there is no run."""
    run = read_history(directory)
    host, pid = read_claim(directory)
    here = host == os.uname().nodename
    doing = "at work" if here and process_exists(pid) else "gone" if here else "perhaps at work there"
    states = ", ".join(f"{number} {state}" for state, number in run.states().items())
    return (
        f"controller  pid {pid} on {host}, {doing}\niteration   {run.explorer.iteration}\npoints      {len(run.explorer.points)}: {states}"
    )


def perform(options: Options) -> int:
    """What the options ask for. Raises ExplorerError, ExecutorError."""
    check_options(options)
    if options.report is not None:
        check_place(Path(options.report), "--report", is_directory=False)
        check_is_page(Path(options.report))
    if options.benchmark is not None:
        return run_benchmark(options)
    if options.test_parallel is not None:
        return run_parallel_test(options, make_plan(options))
    if options.point is not None:
        return show_point(options)
    if options.skip_simulation:
        write_outputs(read_history(Path(options.output_dir)), options)
        return 0
    if options.status:
        print(status_text(Path(options.output_dir)))
        return 0
    if options.stop:
        with claim_directory(options.output_dir) as directory:
            drop_jobs(directory)
        return 0
    return run_exploration(options)


def again(arguments: Sequence[str]) -> str:
    """The command that goes on with an interrupted run."""
    once = ("--fresh-start", "--fresh_start", "--retry-failed", "--retry_failed")
    return shlex.join([sys.executable, sys.argv[0], *(word for word in arguments if word not in once)])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    ensure_standard_streams()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may not know Greek letters
    arguments = sys.argv[1:] if argv is None else list(argv)
    options = parse_options(arguments)
    try:
        code = perform(options)
        sys.stdout.flush()
        return code
    except (InputError, DirectoryRefused, CondorMissing) as error:
        say(str(error))
        return 2
    except (ExplorerError, ExecutorError) as error:
        say(str(error))
        return 1
    except OSError as error:
        if isinstance(error, BrokenPipeError):  # nobody reads on; Python would complain once more when it flushes at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        say(str(error))
        return 1
    except KeyboardInterrupt:
        jobs = shlex.join([sys.executable, sys.argv[0], "--output-dir", options.output_dir, "--stop"])
        tail = f"; jobs stay in the queue, remove them with: {jobs} -- or" if options.condor else "; what is done is saved,"
        say(f"interrupted{tail} go on with: {again(arguments)}")
        return 130


if __name__ == "__main__":
    sys.exit(main())
