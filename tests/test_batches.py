"""How many integrals make a task."""

from hypothesis import given
from hypothesis import strategies as st
from support import laws

from ibp.batches import FIRST_JOBS, BatchPlan
from ibp.steps import LARGEST_BATCH


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
