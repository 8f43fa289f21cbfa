"""Discovery: the identities of a neighbourhood, and the elimination that finds a rule in them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support_learning import guide_ground
from support_oracles import few_examples

from ibp.elimination import eliminate_heavier, is_reducible


def test_a_system_has_the_entries_of_the_identities_in_the_sector():
    finder = guide_ground("box")
    equations, sector, p = finder.structure, finder.sector, finder.structure.prime
    for target in ((1, 1, 1, 1), (2, 1, 3, 1), (2, 2, 2, 2)):
        space = finder.space(2, np.array(target))
        rows = space.rows_inside(sector, np.array(target))
        system = space.system(sector, equations, np.array(target), rows)
        found = {(r, tuple(space.columns[c].tolist())): v for r, c, v in zip(*(part.tolist() for part in system))}
        kept, expected = {r for r, _ in found}, {}
        for r in kept:
            seed = np.array(target) + space.seeds[r // space.operators]
            for term in np.flatnonzero(equations.operator == r % space.operators):
                value = int(equations.coefficient[term, 0] + (equations.coefficient[term, 1:] * seed).sum()) % p
                column = seed + equations.shift[term] - np.array(target)
                if value and sector.contains(np.array(target) + column) and column @ sector.weights >= 0:
                    expected[r, tuple(column.tolist())] = value
        assert found == expected != {}
        some = set(zip(*(part.tolist() for part in space.system(sector, equations, np.array(target), rows[::2])[:2])))
        assert some <= set(zip(*(part.tolist() for part in system[:2])))


@few_examples
@given(st.integers(0, 10**6))
def test_failure_is_seen_without_combinations(seed):
    rng = np.random.default_rng(seed)
    for _ in range(60):
        count, columns = rng.integers(1, 14), rng.integers(1, 14)
        matrix = {}
        for row in range(count):
            places = rng.choice(columns + 1, rng.integers(1, min(columns + 1, 5) + 1), replace=False)
            matrix[row] = {int(c): int(rng.integers(1, 5)) for c in places}
        before = {row: dict(line) for row, line in matrix.items()}
        combinations = eliminate_heavier(matrix, int(columns), 5)
        assert is_reducible(matrix, int(columns), 5) == bool(combinations)
        assert matrix == before
