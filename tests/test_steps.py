"""What a closure under one-step reduction has met, against sets; how many integrals make a task."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support import laws

from ibp.sectors import Sector, layout_for
from ibp.steps import FIRST_JOBS, LARGEST_BATCH, BatchPlan, Frontier

LAYOUT = layout_for([(3, 3, 3)], 3)
STOPS = {7: ((1, 1, 1), (2, 1, 1)), 3: (), 1: ((1, 0, 0),)}
STOP_KEYS = {bits: set(Sector(LAYOUT, bits).encode(np.array(some)).tolist()) if some else set() for bits, some in STOPS.items()}
some_keys = st.tuples(st.sampled_from(sorted(STOPS)), st.lists(st.integers(0, 12), max_size=6))


def state(table):
    return {bits: keys.tolist() for bits, keys in table.items() if len(keys)}


@laws
@given(st.lists(st.tuples(st.sampled_from(["meet", "note", "take"]), some_keys, st.integers(1, 4)), max_size=15))
def test_frontier_equals_one_of_sets(actions):
    """Also: met only grows, what waits is met, stops never are, and the heaviest are taken."""
    frontier, met, waiting = Frontier(LAYOUT, STOPS), {}, {}
    for action, (bits, keys), count in actions:
        keys = np.array(keys, np.int64)
        new = set(keys.tolist()) - met.get(bits, set()) - STOP_KEYS[bits]
        if action == "take":
            if bits in frontier.waiting:
                heaviest = sorted(waiting[bits])[-count:]
                assert frontier.take(bits, count).tolist() == heaviest
                waiting[bits] -= set(heaviest)
        else:
            met[bits] = met.get(bits, set()) | new
            if action == "meet":
                frontier.meet(bits, keys)
                waiting[bits] = waiting.get(bits, set()) | new
            else:
                assert frontier.note(bits, keys).tolist() == sorted(new)
        assert state(frontier.met) == {bits: sorted(some) for bits, some in met.items() if some}
        assert state(frontier.waiting) == {bits: sorted(some) for bits, some in waiting.items() if some}
        assert set(frontier.waiting) == set(state(frontier.waiting))  # a sector in which nothing waits is not there


@laws
@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 10**6), st.floats(0, 1e4)), max_size=12),
    st.floats(1e-6, 1e4),
    st.floats(1, 100),
    st.integers(1, 3),
)
def test_batch_plan(notes, job_seconds, factor, bits):
    plan, longer, fixed = BatchPlan(None, job_seconds), BatchPlan(None, factor * job_seconds), BatchPlan(5, job_seconds)
    for used in plan, longer, fixed:
        for note in notes:
            used.note(*note)
    assert fixed.size(bits) == 5
    assert 0 < plan.exploring_seconds <= job_seconds and (plan.exploring_seconds < job_seconds) == (len(notes) < FIRST_JOBS)
    own = [note for note in notes if note[0] == bits] or notes
    integrals, seconds = sum(note[1] for note in own), sum(note[2] for note in own)
    if not integrals:
        assert plan.size(bits) is None
        return
    assert 1 <= plan.size(bits) <= longer.size(bits) <= LARGEST_BATCH
    size = job_seconds * integrals / max(seconds, 1e-3)  # what takes the wanted time, if it is a possible number
    assert abs(plan.size(bits) - min(max(size, 1), LARGEST_BATCH)) <= 1
