"""Energies against a double loop, symmetries, bounds against closed forms."""

import math

import numpy as np
import pytest
from support_explorer import FULL, drawn, random_spins

import phases.model as model
from phases.benchmark import spiral_energy
from phases.clusters import Cell, Clusters
from phases.model import A1, A2, B_OFFSET, BONDS, PUBLISHED_FITS, Couplings, Lattice, energy, grid, local_fields, luttinger_tisza


def brute_force_energy(spins, p, L):
    """Double loop over cells."""
    c, s = -0.5, math.sqrt(3) / 2
    u = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
    z = np.array([[-1 + p["D"], p["E"], p["F"]], [p["E"], -1 - p["D"], p["G"]], [p["F"], p["G"], p["J1z"]]])
    j3, j2 = np.diag([p["J3xy"]] * 2 + [p["J3z"]]), np.diag([p["J2xy"]] * 2 + [p["J2z"]])
    total = 0.0
    for i in range(L):
        for j in range(L):
            at = lambda n, m, t, i=i, j=j: spins[((i + n) % L * L + (j + m) % L) * 2 + t]  # noqa: E731
            for step, matrix in (((0, 0), z), ((0, -1), u @ z @ u.T), ((1, -1), u.T @ z @ u)):
                total += at(0, 0, 0) @ matrix @ at(*step, 1)
            for step in ((1, 0), (-1, 0), (1, -2)):
                total += at(0, 0, 0) @ j3 @ at(*step, 1)
            for t in (0, 1):
                total += sum(at(0, 0, t) @ j2 @ at(*step, t) for step in ((1, 0), (0, 1), (1, -1)))
                total -= at(0, 0, t) @ (p["hx"], p["hy"], p["hz"])
    return total / (2 * L * L)


@pytest.mark.parametrize("L", [4, 5, 6])
def test_energy_is_the_double_loop_and_the_engine_agrees(L):
    couplings, spins = Couplings.from_parameters(FULL), random_spins(np.random.default_rng(L), 3, 2 * L * L)
    expected = [brute_force_energy(s, FULL, L) for s in spins]
    assert np.allclose(energy(spins, couplings), expected, atol=1e-13)
    for cells in ([Cell(L, 0, L)], [Cell(1, 2, L), Cell(L, 0, L)]):
        clusters = Clusters.of(cells, couplings)
        array = np.zeros((3, len(clusters.order), 3))
        array[:, clusters.order[-2 * L * L :]] = spins.transpose(2, 1, 0)
        assert np.allclose(clusters.energies(array)[-1], expected, atol=1e-13)
        tiled = np.stack([clusters.tiled(L, array, len(cells) - 1, k).T for k in range(3)])
        assert np.array_equal(tiled, spins)
        for group, sites in enumerate(clusters.groups):  # no site of a colour is coupled to its colour
            near = clusters.gather[group]
            assert not ((near >= sites.start) & (near < sites.stop)).any()


def test_ordered_states_have_their_closed_form_energies():
    j, L = 0.37, 4
    i, k = grid(L, L)
    axis = np.array([1.0, 0, 0])
    orders = {
        "FM": (np.ones(16), np.ones(16), -1.5 + 1.5 * j),
        "Neel": (np.ones(16), -np.ones(16), 1.5 - 1.5 * j),
        "zigzag": ((-1.0) ** k, -((-1.0) ** k), -(1 + 3 * j) / 2),
        "stripy": ((-1.0) ** k, (-1.0) ** k, (1 + 3 * j) / 2),
        "double zigzag": (1 - 2.0 * (k // 2 % 2), 1 - 2.0 * ((k + 1) // 2 % 2), -1),
    }
    for name, (a, b, value) in orders.items():
        spins = np.stack([a, b], 1).reshape(-1, 1) * axis
        assert energy(spins, Couplings(J3xy=j)) == pytest.approx(value, abs=1e-12), name


def test_local_fields_are_the_derivative_of_the_energy():
    couplings, rng = Couplings.from_parameters(FULL), np.random.default_rng(1)
    spins, change = rng.standard_normal((2, 50, 3))
    slope = 50 * (energy(spins + 1e-6 * change, couplings) - energy(spins - 1e-6 * change, couplings)) / 2e-6
    assert np.isclose(slope, (local_fields(spins, couplings) * change).sum(), atol=1e-6)


def test_lattice_neighbours_are_at_the_right_distances():
    box, lattice = np.array([A1, A2]) * 6, Lattice.of(6)
    distances, pairs = {"J2": 1.0, "J3": 2 / math.sqrt(3)}, set()
    for (kind, *_), bond in zip(BONDS, lattice.bonds):
        apart = (lattice.positions[bond[:, 1]] - lattice.positions[bond[:, 0]]) @ np.linalg.inv(box)
        assert np.allclose(np.linalg.norm((apart - np.round(apart)) @ box, axis=-1), distances.get(kind, 1 / math.sqrt(3)))
        pairs |= {frozenset(pair) for pair in bond.tolist()}
    assert len(pairs) == len(BONDS) * 36  # no bond twice


@pytest.mark.parametrize("name", ["translation", "rotation", "inversion"])
def test_hamiltonian_has_the_symmetries_of_the_lattice(name):
    """Translations; C3 about an A site together with a spin rotation by 120 degrees; inversion about a bond centre (swaps A and B)."""
    L, rng = 6, np.random.default_rng(2)
    couplings = Couplings.from_parameters(FULL | {"hx": 0, "hy": 0})
    positions, turn = Lattice.of(L).positions, np.eye(3)
    if name == "translation":
        moved = positions + np.array(A1) + 2 * np.array(A2)
    elif name == "inversion":
        moved = np.array(B_OFFSET) - positions
    else:
        c, s = -0.5, math.sqrt(3) / 2
        turn = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])  # U: the spins turn against the lattice
        moved = positions @ turn[:2, :2]
    box = np.array([A1, A2]) * L
    apart = (moved[:, None] - positions) @ np.linalg.inv(box)
    distance = np.linalg.norm((apart - np.round(apart)) @ box, axis=-1)
    target = distance.argmin(1)
    assert distance.min(1).max() < 1e-9
    spins = random_spins(rng, 4, 2 * L * L)
    images = np.empty_like(spins)
    images[:, target] = spins @ turn.T
    assert np.allclose(energy(images, couplings), energy(spins, couplings), atol=1e-13)
    if name == "rotation":
        images[:, target] = spins
        assert not np.allclose(energy(images, couplings), energy(spins, couplings), atol=1e-3)


def test_fourier_form_gives_the_energy():
    L, couplings = 6, Couplings.from_parameters(FULL | {"hx": 0, "hy": 0, "hz": 0})
    spins = random_spins(np.random.default_rng(3), 2 * L * L).reshape(L, L, 6)
    modes = np.fft.fft2(spins, axes=(0, 1)) / L
    q = np.stack(np.meshgrid(np.arange(L), np.arange(L), indexing="ij"), -1) / L
    J = model.exchange_fourier(couplings, q)
    assert np.allclose(J, J.conj().swapaxes(-1, -2))
    total = np.einsum("mni,mnij,mnj", modes.conj(), J, modes).real / 2
    assert np.isclose(total / (2 * L * L), energy(spins.reshape(-1, 3), couplings), atol=1e-13)


def test_bound_reproduces_published_values_and_lies_below_random_states():
    assert luttinger_tisza(Couplings.from_parameters(PUBLISHED_FITS["fitting_param_2"]))[0] == pytest.approx(-1.144036, abs=1e-6)
    assert luttinger_tisza(Couplings.from_parameters(PUBLISHED_FITS["emily"]))[0] == pytest.approx(-1.060748, abs=1e-6)
    for seed in range(5):
        couplings = Couplings.from_parameters(drawn(seed, frustrated=False) | {"hz": 0.2 * seed})
        bound, _ = luttinger_tisza(couplings)
        assert bound <= luttinger_tisza(couplings, 12)[0] + 1e-9
        assert bound < energy(random_spins(np.random.default_rng(seed), 20, 72), couplings).min()


@pytest.mark.parametrize("j, h, value", [(0.26, 0.0783, None), (0.30, 0.1816, -1.069268), (0.35, 0.2883, -1.054314)])
def test_bound_of_the_spiral_region_is_the_spiral(j, h, value):
    bound, q = luttinger_tisza(Couplings(J3xy=j))
    exact = math.acos((1 - 3 * j) / (2 * j * (1 - 2 * j))) / (2 * math.pi)
    assert exact == pytest.approx(h, abs=1e-4)
    assert bound == pytest.approx(spiral_energy(j, exact), abs=1e-9)
    assert value is None or bound == pytest.approx(value, abs=1e-6)
