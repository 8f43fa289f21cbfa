"""Strategies: every one in the table is tried; the measured ones keep their figure."""

import numpy as np
import pytest
from support_explorer import SMALL_BOX, explored

from phases.acquisition import STRATEGIES
from phases.benchmark import explored_plane, plane_labels, wrong_labels
from phases.learner import Explorer
from phases.surrogate import fit_labels, squared_distances


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_point_is_asked_twice_and_batches_are_diverse(strategy):
    explorer = explored(strategy=strategy, rounds=8)
    u = np.array([point.unit for point in explorer.points])
    assert len({point.unit for point in explorer.points}) == 72 and (u >= 0).all() and (u <= 1).all()
    d = np.sqrt(squared_distances(u, u, 1.0)) + np.eye(72)
    assert d.min() > (2e-3 if STRATEGIES[strategy] else 1e-4)
    assert explorer.new_points([explorer.points[5].unit], "user") == []


def test_a_strategy_is_a_line_in_the_table(monkeypatch):
    monkeypatch.setitem(STRATEGIES, "first_phase", (lambda p, target: p[:, 0],))
    explorer = explored(strategy="first_phase", rounds=2)
    likely = explorer.surrogate().probabilities(np.array([point.unit for point in explorer.ask(9)]))[:, 0]
    assert np.median(likely) > 0.5 and Explorer(SMALL_BOX, strategy="first_phase").ask(1)[0].origin == "first_phase"


def test_sampling_figure():
    """The default strategy is measured by the benchmark."""
    assert explored_plane("uncertainty", 1) < 0.01  # 128 of 1600; measured 0.003 to 0.006


@pytest.mark.slow
def test_sampling_figure_in_full():
    def wrong(u):
        return wrong_labels(fit_labels(u, plane_labels(u), np.ones(len(u))))

    even = np.array([((i + 0.5) / 16, (k + 0.5) / 8) for k in range(8) for i in range(16)])
    others = [wrong(even), *(wrong(np.random.default_rng(s).random((128, 2))) for s in range(5))]
    balanced, uncertainty = (max(explored_plane(strategy, s) for s in range(5)) for strategy in ("balanced", "uncertainty"))
    assert balanced < 0.02 and uncertainty < 0.01 and uncertainty < min(others)
