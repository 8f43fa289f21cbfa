"""The benchmark: its table, and the symmetries that it applies."""

import numpy as np
import pytest
from support import patch_rooms

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
