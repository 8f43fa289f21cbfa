"""One point in a worker: what its record says, sites in any order."""

import time

import numpy as np
from support_explorer import toy_simulation

from phases.model import A1, A2, Lattice
from phases.simulations import _run_simulation_safe, site_order


def test_record_is_honest():
    ok = _run_simulation_safe({"x": 0.0, "y": 1.0}, toy_simulation, 5)
    assert ok["ok"] and ok["sites"] == 8 and all(type(value) in (bool, bytes, int, float, str, dict) for value in ok.values())
    late = _run_simulation_safe({}, lambda params: time.sleep(9), 0.1)
    assert not late["ok"] and late["error"] == "SimulationTimeout" and "0.1 s" in late["message"] and "sleep" in late["traceback"]
    assert _run_simulation_safe({}, lambda params: params["q"])["error"] == "KeyError"


def test_sites_in_any_order_are_put_in_order():
    rng = np.random.default_rng(3)
    for L in (6, 7):
        positions = Lattice.of(L).positions
        shuffled = rng.permutation(len(positions))
        order = site_order(positions[shuffled], L)
        moved = positions[shuffled][order] - positions
        steps = (moved - moved[0]) @ np.linalg.inv(np.array([A1, A2])) / L
        assert np.allclose(steps, np.round(steps))  # every site where it belongs, up to periods of the lattice
        assert sorted(order) == list(range(len(positions)))
        assert np.array_equal(site_order(positions, L), np.arange(len(positions)))
        assert site_order(1.1 * positions, L) is None and site_order(positions[:-2], L) is None
