"""Laws of ask and tell."""

import numpy as np
import pytest
from support_explorer import SMALL_BOX, explored, toy_label

from phases.box import Box
from phases.errors import InputError
from phases.learner import Explorer
from phases.surrogate import squared_distances


# ---- laws of the core
def test_order_of_telling_scale_and_repetition_do_not_matter():
    plain = explored()
    assert explored(order=lambda points: points[::-1]).points == plain.points
    assert explored(box=Box.of({"a": (3, 3.001), "b": (-1e6, 2e6)})).points == plain.points
    again = explored(rounds=2)
    for point in again.points[::-1]:
        again.tell(point.id, toy_label(point.unit))
    assert again.ask(9) == plain.points[18:]
    assert explored(strategy="uncertainty").points != plain.points


def test_relabelling_permutes():
    swap = {"LOW": "z", "MIDDLE": "m", "HIGH": "a"}
    plain, other = explored().surrogate(), explored(rename=swap.get).surrogate()
    u = np.random.default_rng(0).random((50, 2))
    columns = [other.labels.index(swap[label]) for label in plain.labels]
    np.testing.assert_allclose(other.probabilities(u)[:, columns], plain.probabilities(u), atol=1e-3)


def test_pending_points_are_avoided_and_failures_are_not_learnt():
    explorer = explored(rounds=2)
    first, second = explorer.ask(5), explorer.ask(5)
    assert not {p.unit for p in first} & {p.unit for p in second} and len(explorer.pending) == 10
    explorer.no_phase = frozenset({"UNKNOWN"})
    before = explorer.surrogate().coefficients
    explorer.tell(first[0].id, failure="TIMEOUT")
    explorer.tell(first[1].id, "UNKNOWN", 0.0)
    assert np.array_equal(explorer.surrogate().coefficients, before)
    assert explorer.failed == [first[0]] and first[0] not in explorer.pending
    explorer.retry([first[0].id, first[1].id, 0])
    assert first[0] in explorer.pending and first[1] not in explorer.pending
    explorer.tell(first[0].id, "LOW")
    with pytest.raises(InputError, match="contradicts"):
        explorer.tell(first[0].id, "HIGH")
    with pytest.raises(InputError, match="never asked"):
        explorer.tell(99, "LOW")


def test_bad_input_of_the_core():
    for bounds in ({"x": (1, -1)}, {"x": (0, 0)}, {"x": (0, float("nan"))}, {"x": "ab"}, {"x": (1,)}, {}):
        with pytest.raises(InputError):
            Box.of(bounds)
    with pytest.raises(InputError, match="balanced, uncertainty"):
        Explorer(SMALL_BOX, strategy="greedy")
    with pytest.raises(InputError, match="bounds"):
        SMALL_BOX.to_unit({"x": 2, "y": 1})
    with pytest.raises(InputError, match="no point has a label"):
        Explorer(SMALL_BOX).surrogate()
    with pytest.raises(InputError):
        Explorer(SMALL_BOX).ask(0)


def test_one_phase_and_stop_rules():
    explorer = Explorer(SMALL_BOX, target="B")
    for _ in range(5):
        for point in explorer.ask(6):
            explorer.tell(point.id, "A")
        explorer.iterations.append(explorer.summarise())
    u = np.array([point.unit for point in explorer.points])
    probes = explorer.probes()
    assert np.sqrt(squared_distances(probes, u, 1.0).min(1)).max() < 0.3  # an even cover
    assert explorer.should_stop() == "" and "changed" in explorer.should_stop(change_below=0.01)
    assert "entropy" in explorer.should_stop(entropy_below=0.01) and explorer.should_stop(entropy_below=-1.0) == ""
