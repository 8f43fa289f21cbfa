"""The benchmark: its table, and the symmetries that it applies; the test of parallel running fails where it must."""

import numpy as np
import pytest
from support import patch_rooms
from support_explorer import explore

import explorer as ex
from phases.benchmark import FIGURES, Figure, Measurement, transformed
from phases.ideal_states import ideal_state
from phases.model import Couplings, energy


def test_benchmark_prints_goal_and_reached(monkeypatch, capsys):
    rows = tuple(figure for figure in FIGURES if figure.what == "wrong labels with 128 of 1600 points")
    missing = Figure("a figure out of reach", "1", lambda full: Measurement("0", False))
    left_out = Figure("a long one", "1", lambda full: 1 / 0, quick=False)
    patch_rooms(monkeypatch, "phases", "FIGURES", (*rows, missing, left_out))
    assert ex.main(["benchmark"]) == 1
    printed = capsys.readouterr().out
    assert printed.count("MISSED") == 1 and "grid" in printed and "quick subset" in printed


def test_symmetries_of_the_benchmark_are_symmetries():
    rng, L = np.random.default_rng(0), 7
    spins = ideal_state("random", L, rng=rng)
    couplings = Couplings(J1z=-1.0, J3xy=0.4, J3z=0.4)
    before = energy(spins, couplings)
    for _ in range(10):
        assert energy(transformed(spins, L, rng), couplings) == pytest.approx(before, abs=1e-12)


@pytest.mark.slow
def test_a_spoilt_run_that_is_killed_five_times():
    chaos = next(figure for figure in FIGURES if not figure.quick)
    assert chaos.measure(False).good


@pytest.mark.parametrize(
    "times, label, code, says",
    [
        ((10.0, 5.4), "FM", 0, "✓"),
        ((10.0, 5.4), "ZIGZAG", 1, "1 of 2 results differ: point 1"),
        ((10.0, 9.0), "FM", 1, "below 1.40x = 0.7 x min(2 processes, 2 cores)"),
        ((10.0, 1.0), "FM", 1, "more than 2x is not possible"),
        ((1.0, 0.9), "FM", 0, "too short"),
    ],
)
def test_parallel_test_fails_where_it_must(times, label, code, says, monkeypatch, capsys):
    def timed_batch(plan, number, processes, timeout_s):
        return times[processes - 1], {0: ("FM", -1.0), 1: (label if processes > 1 else "FM", -1.0)}

    patch_rooms(monkeypatch, "phases", "timed_batch", timed_batch)
    patch_rooms(monkeypatch, "phases", "usable_cores", lambda: 2.0)
    assert ex.main(["test-parallel", "2", "--n-jobs", "2"]) == code
    printed = capsys.readouterr().out
    assert says in printed and "Efficiency:" in printed


def test_parallel_test_for_real(tmp_path):
    done = explore("test-parallel", "4", "--n-jobs", "2", "--screening", "--lattice-size", "6", cwd=tmp_path)
    assert done.returncode == 0 and "Same labels and energies" in done.stdout and not list(tmp_path.iterdir()), done.stdout
