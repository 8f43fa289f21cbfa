"""Periodic clusters of spins: all magnetic unit cells of a lattice, side by side in one array.

Annealing many small cells finds ordered states that a whole lattice, a glass to an annealer, does not. `Clusters` holds the tables by which
energies and local fields of all of them are computed at once, colour by colour; `magnetic_cells` lists the cells that tile a lattice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from phases.model import BONDS, Couplings, exchange, grid

GEMM_WORK = 1 << 18  # OpenBLAS uses threads for larger products only; kept below, no result depends on their number


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
