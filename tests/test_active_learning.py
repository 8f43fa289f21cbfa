"""The class that a script uses: batches whose simulations fail in every way, points, answers."""

import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from support_explorer import hostile, make_run, run_toy, toy_simulation

from phases.box import DEFAULT_BOX, Box
from phases.errors import InputError


def test_hostile_simulations_cost_their_points_only(tmp_path, capsys):
    box = Box.of({"x": (0, 10), "y": (0, 5)})
    with make_run(tmp_path / "run", parameters=box) as run:
        run.add_points([{"x": kind, "y": k} for k in (1, 2) for kind in (0, 1, 2, 3, 4, 5, 6, 7, 8)][:14])
        started = time.monotonic()
        assert run.classify_pending_points(hostile, n_jobs=2, timeout=1.5) == (3, 11)
        assert time.monotonic() - started < 20
        told = [event for event in map(json.loads, (tmp_path / "run/history.jsonl").read_text().splitlines()) if event["event"] == "told"]
        reasons = {event["id"]: (event["failure"], event["error"], event["message"]) for event in told if "failure" in event}
        assert len(told) == 14
        assert reasons[1][:2] == ("FAILED", "ValueError") and reasons[2][1] == "TaskDied" and "SIGSEGV" in reasons[2][2]
        assert reasons[3][:2] == ("TIMEOUT", "TaskTimeout") and "expected (N, 3)" in reasons[4][2] and "NaN" in reasons[5][2]
        assert "unit spins" in reasons[6][2] and "tuple" in reasons[7][2]
        assert "no such state" in next(event["traceback"] for event in told if event["id"] == 1)
        assert not list(Path(tempfile.gettempdir()).glob(f"spin_solver_pid{os.getpid()}_*"))
        assert not (tmp_path / "run/scratch.json").exists()
        assert run.result.states()["FAILED"] == 9 and run.retry_failed() == 11 and len(run.explorer.pending) == 11
    printed = capsys.readouterr().out
    assert "Checkpoint saved (10/14 completed)" in printed and "conf=0.90" in printed and "success_rate: 21.4%" in printed


def test_simulation_in_this_process(tmp_path):
    seen = []

    def closure(params):
        seen.append(os.getcwd())
        if len(seen) == 2:
            time.sleep(30)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return toy_simulation(params)

    here = os.getcwd()
    with make_run(tmp_path) as run:
        run.add_lhs_samples(6, seed=1)
        assert run.add_lhs_samples(6, seed=1) == []
        with pytest.raises(InputError, match="module-level"):
            run.classify_pending_points(closure, n_jobs=2)
        with pytest.raises(KeyboardInterrupt):
            run.classify_pending_points(closure, timeout=0.2)
        assert len(run.explorer.answers) == 3 and [p.id for p in run.explorer.failed] == [1] and os.getcwd() == here
        assert run.classify_pending_points(closure) == (3, 0)
        with pytest.raises(InputError, match="n_jobs"):
            run.classify_pending_points(closure, n_jobs=0)
    assert len(set(seen)) == 7 and not any(map(os.path.exists, seen))


def test_answers_of_the_guides_api(tmp_path, capsys):
    with make_run(tmp_path / "known", parameters=DEFAULT_BOX) as run:
        assert len(run.add_known_seeds()) == 4 and run.add_known_seeds() == []
    run_toy(tmp_path / "run", n_jobs=1)
    with make_run(tmp_path / "run", seed=7) as run:
        phase, p = run.predict_phase({"x": 0.0, "y": 4.8})
        assert phase == "HIGH" and abs(sum(p.values()) - 1) < 1e-12
        found = run.get_phase_boundaries("x", "y", n_grid=41)
        assert found["phases"].shape == (41, 41) and len(found["boundaries"]) > 40
        upper = [y for x, y, *pair in found["boundaries"] if set(pair) == {"MIDDLE", "HIGH"}]
        assert abs(np.median(upper) - 4.0) < 0.5
        shares = run.get_feature_importances()
        assert shares["y"] > shares["x"] > 0.05 and abs(sum(shares.values()) - 1) < 1e-12
        run.print_summary()
        assert "4 iterations" in capsys.readouterr().out
        with pytest.raises(InputError):
            run.get_phase_boundaries("x", "z")
        assert len(run.select_next_points(3, "boundary")) == 3 == run.result.states()["pending"]
