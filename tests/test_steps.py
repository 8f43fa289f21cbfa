"""steps."""

import pickle

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import P31

from executors.files import load_builtins
from ibp.batches import FIRST_JOBS, BatchPlan
from ibp.carrying import carry_sector
from ibp.sector_tasks import Terms
from ibp.sectors import Sector, layout_for
from ibp.steps import LARGEST_BATCH, Frontier
from ibp.tables import merge, pack_keys, unpack_keys

LAYOUT = layout_for([(3, 3, 3)], 3)
STOPS = {7: ((1, 1, 1), (2, 1, 1)), 3: (), 1: ((1, 0, 0),)}
STOP_KEYS = {bits: set(Sector(LAYOUT, bits).encode(np.array(some)).tolist()) if some else set() for bits, some in STOPS.items()}
some_keys = st.tuples(st.sampled_from(sorted(STOPS)), st.lists(st.integers(0, 12), max_size=6))
laws = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


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
@given(st.lists(some_keys, max_size=6), st.randoms(use_true_random=False))
def test_order_of_meeting_does_not_matter(meetings, draw):
    first, second = Frontier(LAYOUT, STOPS), Frontier(LAYOUT, STOPS)
    for frontier, order in (first, meetings), (second, draw.sample(meetings * 2, 2 * len(meetings))):
        for bits, keys in order:
            frontier.meet(bits, np.array(keys, np.int64))
    assert state(first.met) == state(second.met) == state(first.waiting) == state(second.waiting)


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


int64 = st.integers(-(2**63), 2**63 - 1)


@laws
@given(st.lists(int64, unique=True), st.lists(int64, unique=True), st.integers(0, 2**200))
def test_packed_keys_come_back_and_merged_keys_are_sorted(a, b, large):
    for dtype, more in (np.int64, []), (object, [large]):
        keys = np.array([*a, *more], dtype)
        packed = pickle.loads(pickle.dumps(pack_keys(keys)))
        back = unpack_keys(packed)
        assert back.tolist() == keys.tolist() and back.dtype == dtype and load_builtins(pickle.dumps(packed)) == packed
        one, other = np.array(sorted(a), dtype), np.array(sorted({*b, *more} - set(a)), dtype)
        assert merge(one, other).tolist() == sorted({*a, *one.tolist(), *other.tolist()})


@laws
@given(
    st.integers(2, 10),
    st.integers(1, 3),
    st.sampled_from([3, 1009, P31]),
    st.sampled_from([np.int64, object]),
    st.randoms(use_true_random=False),
)
def test_carry_sector_equals_substitution(count, columns, p, dtype, draw):
    """Integrals 0 … count-1 of sector 7, of which the lightest are stops; one-step results lead down, also to sectors 3 and 1."""
    scale = 2**80 if dtype is object else 1
    stops = range(draw.randint(0, count // 2))
    steps = {
        key: [((7, draw.randrange(key)) if key and draw.random() < 0.6 else (draw.choice([3, 1]), draw.randrange(4)), draw.randrange(1, p))
              for _ in range(draw.randint(0, 4))]
        for key in range(len(stops), count)
    }  # fmt: skip
    arriving = [(draw.randrange(count), [draw.randrange(p) for _ in range(columns)]) for _ in range(draw.randint(1, 5))]
    carried = {}
    for key, line in arriving:
        carried[7, key] = [(a + b) % p for a, b in zip(carried.get((7, key), [0] * columns), line)]
    for key in reversed(range(len(stops), count)):
        line = carried.pop((7, key), [0] * columns)
        for term, value in steps[key]:
            carried[term] = [(a + value * b) % p for a, b in zip(carried.get(term, [0] * columns), line)]
    terms = [(scale * key, scale * term, bits, value) for key, some in steps.items() for (bits, term), value in some]
    draw.shuffle(terms)
    source, key, sector, value = (list(column) for column in zip(*terms)) if terms else ([], [], [], [])
    tables = {"source": (source, dtype), "key": (key, dtype), "sector": (sector, np.int64), "value": (value, np.int64)}
    given_terms = Terms(**{name: np.array(*table) for name, table in tables.items()})
    keys, coefficients = np.array([scale * key for key, _ in arriving], dtype), np.array([line for _, line in arriving], np.int64)
    lines, below = carry_sector(7, given_terms, keys, coefficients, np.array([scale * key for key in stops], dtype), p)
    found = {(7, key): line.tolist() for key, line in lines.items()}
    found |= {(bits, key): line for bits, (some, block) in below.items() for key, line in zip(some.tolist(), block.tolist())}
    assert found == {(bits, scale * key): line for (bits, key), line in carried.items() if any(line)}
