"""Coefficients carried down, against substitution one integral at a time."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support import P31, laws

from ibp.carrying import carry_sector
from ibp.sector_tasks import Terms


@laws
@given(
    st.integers(2, 10),
    st.integers(1, 3),
    st.sampled_from([3, 1009, P31]),
    st.sampled_from([np.int64, object]),
    st.randoms(use_true_random=False),
)
def test_carry_sector_equals_substitution(count, columns, p, dtype, draw):
    """Integrals 0 … count-1 of sector 7, of which the lightest are stops; one-step results lead down, also to sectors 3 and 1.

    Parallel edges occur, and integrals without any.
    """
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
