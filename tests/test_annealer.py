"""The annealer: exact ground states, distributions of its moves, the same result whatever the threads."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
from support import HERE
from support_explorer import FULL, drawn, random_spins

from phases.annealer import MODES, TORQUE, align, heat_bath, over_relax, relax, simulate
from phases.benchmark import spiral_energy
from phases.clusters import Cell, Clusters, magnetic_cells
from phases.errors import ExplorerError, InputError
from phases.model import PUBLISHED_FITS, Couplings, energy, grid, local_fields

BEST = {"fitting_param_2": -1.125530, "emily": -1.055194}  # the best that another annealer found


@pytest.mark.parametrize("mode", ["screening", "fast", pytest.param("accurate", marks=pytest.mark.slow)])
@pytest.mark.parametrize("j", [0.1, 0.249, 0.25, 0.26, 0.30, 0.35, 0.3903, 0.3905, 0.6])
def test_exact_truths(mode, j):
    """FM, spirals at the wave vectors that the lattice has, zigzag, and both boundaries."""
    result, L = simulate({"J3xy": j, "J1z": 0.2, "J3z": -0.3}, mode=mode), MODES[mode].L
    best = min(-1.5 + 1.5 * j, -(1 + 3 * j) / 2, *(spiral_energy(j, m / L) for m in range(L // 2 + 1)))
    assert result.energy <= best + 1e-9  # a modulation of another kind may gain on a finite lattice
    if j <= 0.25 or j >= 0.3904:
        assert result.energy == pytest.approx(best, abs=1e-6)
        assert result.energy == pytest.approx(result.bound, abs=1e-6)
    assert result.converged and result.torque <= TORQUE
    assert result.energy >= result.bound - 1e-9


@pytest.mark.parametrize("mode", ["screening", "fast", pytest.param("accurate", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", list(BEST))
def test_published_sets_reach_the_best_known_energies(name, mode):
    couplings = Couplings.from_parameters(PUBLISHED_FITS[name])
    result = simulate(couplings, mode=mode)
    assert result.energy <= BEST[name] + 5e-7  # the table has six digits
    assert result.bound < result.energy
    assert result.energy == pytest.approx(float(energy(result.spins, couplings)), abs=1e-12)
    assert np.allclose(np.linalg.norm(result.spins, axis=1), 1, atol=1e-12)
    torque = np.cross(result.spins, local_fields(result.spins, couplings))
    assert np.linalg.norm(torque, axis=1).max() == pytest.approx(result.torque, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_accurate_is_never_above_fast(seed):
    p = drawn(seed)
    fast, accurate = simulate(p, mode="fast", seed=seed), simulate(p, mode="accurate", seed=seed)
    assert accurate.energy <= fast.energy + 1e-10
    assert accurate.energy >= accurate.bound - 1e-9


@pytest.mark.parametrize("beta", [0.05, 1.0, 20.0, 2000.0])
@pytest.mark.parametrize("direction", [(0, 0, 1), (0, 0, -1), (0.6, -0.3, 0.2)])
def test_heat_bath_is_the_boltzmann_distribution(beta, direction):
    """Mean and second moment of cos to -H against Langevin's function, the azimuth uniform: each within 5 standard errors of n draws."""
    n, H = 40_000, np.array(direction, np.float32)
    draws = heat_bath(np.tile(H[:, None, None], (1, n, 1)), beta, np.random.default_rng(4))[:, :, 0].astype(float)
    assert np.allclose((draws**2).sum(0), 1, atol=1e-5)
    size = float(np.linalg.norm(H))
    x, axis = beta * size, -H.astype(float) / size
    cosine, langevin = axis @ draws, 1 / math.tanh(x) - 1 / x
    second = 1 - 2 * langevin / x
    assert abs((1 - cosine).mean() - (1 - langevin)) < 5 * math.sqrt((second - langevin**2) / n) + 1e-6
    assert abs((cosine**2).mean() - second) < 5 * (cosine**2).std() / math.sqrt(n) + 1e-5
    across = draws - axis[:, None] * cosine
    spreads = np.linalg.eigvalsh(across @ across.T / n)  # 0 along H, equal in both other directions
    expected = (1 - second) / 2
    assert spreads[0] < 1e-6 and abs(spreads[1:] - expected).max() < 10 * expected / math.sqrt(n) + 1e-6
    assert abs(across.mean(1)).max() < 5 * math.sqrt(2 * expected / n)


def test_over_relaxation_and_alignment_never_raise_the_energy():
    couplings = Couplings.from_parameters(FULL)
    clusters = Clusters.of([Cell(6, 0, 6)], couplings)
    spins = random_spins(np.random.default_rng(5), 4, 72).transpose(2, 1, 0).copy()
    start = clusters.energies(spins)
    for g, sites in enumerate(clusters.groups):
        over_relax(spins[:, sites], clusters.local_fields(spins, g))
    assert np.allclose(clusters.energies(spins), start, atol=1e-12)
    assert np.allclose((spins**2).sum(0), 1, atol=1e-12)
    for g, sites in enumerate(clusters.groups):
        align(spins[:, sites], clusters.local_fields(spins, g))
    lower = clusters.energies(spins)
    assert (lower < start).all()
    relaxed, energies, torque = relax(clusters, spins, 2000)
    assert (energies < lower).all() and torque.max() <= TORQUE
    again = relax(clusters, relaxed, 10)[1]
    assert np.allclose(again, energies, atol=1e-13)


def test_magnetic_cells_are_all_the_sublattices():
    assert len(magnetic_cells(12, 144)) == 90  # subgroups of Z12 x Z12: 15 of Z4 x Z4 times 6 of Z3 x Z3
    for cell in magnetic_cells(6, 36):
        i, j = grid(12, 12)
        member = cell.member(i, j).reshape(12, 12)
        assert np.array_equal(member, np.roll(member, 6, 0)) and np.array_equal(member, np.roll(member, 6, 1))
        assert (np.bincount(member.ravel()) == 144 // cell.size).all()


@pytest.mark.parametrize("L", [4, 5, 7, 9])
def test_other_sizes_second_neighbours_and_field(L):
    p = {"J3xy": 0.3, "J2xy": 0.3, "J2z": 0.2, "D": 0.1, "hz": 0.4, "hx": 0.2}
    result = simulate(p, L=L, mode="screening")
    assert result.converged and result.bound <= result.energy
    polarised = np.tile(np.array([0.2, 0, 0.4]) / math.hypot(0.2, 0.4), (2 * L * L, 1))
    assert result.energy <= energy(polarised, Couplings.from_parameters(p))


def test_all_couplings_zero_and_a_field_alone():
    free = simulate(Couplings(J1xy=0.0), mode="screening")
    assert free.energy == 0 and free.bound == 0 and free.converged
    assert np.allclose(np.linalg.norm(free.spins, axis=1), 1)
    field = simulate(Couplings(J1xy=0.0, hx=0.3, hz=-0.4), mode="screening")
    assert np.allclose(field.spins, [0.6, 0, -0.8], atol=1e-6) and field.energy == pytest.approx(-0.5)


DIGEST = """
import sys; sys.path.insert(0, {path!r})
import hashlib
from phases.annealer import simulate
runs = [simulate(dict(J3xy=0.31, D=0.1, F=0.2, J2xy=j2), mode="fast", seed=3) for j2 in (0.0, 0.1)]
print(hashlib.sha256(b"".join(r.spins.tobytes() for r in runs)).hexdigest())
"""


def test_same_seed_gives_the_same_spins_whatever_the_threads():
    code = DIGEST.format(path=str(HERE))
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    runs = [
        subprocess.run([sys.executable, "-c", code], env=os.environ | dict.fromkeys(names, n), capture_output=True, text=True, check=True)
        for n in ("1", "1", "4")
    ]
    assert len({r.stdout for r in runs}) == 1


def test_seeds_differ_and_the_result_unpacks():
    spins, positions, value = simulate({"J3xy": 0.2}, mode="screening", seed=1)
    other, _, same = simulate({"J3xy": 0.2}, mode="screening", seed=2)
    assert spins.shape == (128, 3) and positions.shape == (128, 2) and not np.allclose(spins, other)
    assert value == pytest.approx(same, abs=1e-9) and value == pytest.approx(-1.2, abs=1e-9)


@pytest.mark.parametrize(
    "parameters, options, says",
    [
        ({"J9": 1.0}, {}, "unknown coupling 'J9'"),
        ({"D": float("nan")}, {}, "coupling D = nan"),
        ({"D": float("inf")}, {}, "coupling D = inf"),
        ({"D": "0.1"}, {}, "coupling D = '0.1'"),
        ({"D": None}, {}, "coupling D = None"),
        ({"D": 1e9}, {}, "coupling D = 1000000000.0: give a number up to 1000"),
        ({}, {"L": 3}, "L = 3: give a whole number, at least 4"),
        ({}, {"L": 12.0}, "L = 12.0"),
        ({}, {"mode": "quick"}, "unknown mode 'quick': use screening, fast, accurate"),
        ({}, {"seed": -1}, "seed -1"),
    ],
)
def test_bad_input_is_one_line(parameters, options, says):
    with pytest.raises(InputError) as refusal:
        simulate(parameters, **options)
    assert says in str(refusal.value) and "\n" not in str(refusal.value) and isinstance(refusal.value, ExplorerError)
