"""One sector as a task."""

import numpy as np
from support import P31, TRIANGLEBOX, point_of, with_cpus

from ibp.identities import derive_identities, evaluate_identities, generic_point
from ibp.sector_reduction import reduce_sector
from ibp.sector_tasks import SectorTask
from ibp.sectors import Sector, find_nonzero_sectors, layout_for


def task_of(integrals, coefficients):
    """Integrals of sector 61 of trianglebox, without any rules; coefficients(N) [N, K]."""
    equations, generic = (
        evaluate_identities(derive_identities(TRIANGLEBOX), point) for point in (point_of(TRIANGLEBOX), generic_point(TRIANGLEBOX))
    )
    layout = layout_for(integrals, 7)
    keys = Sector(layout, 61).encode(np.array(integrals))
    own = {"stops": ((1, 0, 1, 1, 1, 1, 0),), "keys": keys, "coefficients": coefficients(len(keys))}
    return SectorTask(layout, 61, find_nonzero_sectors(equations, TRIANGLEBOX.lines), equations, generic, **own)


def test_reduction_of_a_sector_is_linear():
    """Columns x, y and 3x + 5y of coefficients: so are the columns of all that comes out, masters, unreduced and subsectors."""

    def columns(count):
        x, y = np.random.default_rng(1).integers(0, P31, (2, count))
        return np.column_stack([x, y, (3 * x + 5 * y) % P31])

    integrals = [(1, 0, 1, 1, 1, 1, -2), (2, 0, 1, 1, 1, 1, 0), (1, -1, 1, 1, 2, 1, 0), (1, -2, 1, 1, 1, 1, -1)]
    result = reduce_sector(task_of(integrals, columns))
    lines = [*result.masters.values(), *result.unreduced.values(), *(line for _, part in result.below.values() for line in part.tolist())]
    assert len(lines) > 10 and all((3 * a + 5 * b - c) % P31 == 0 for a, b, c in lines)


def test_more_processors_give_the_same_sector():
    task = task_of([(1, 0, 1, 1, 1, 1, -2)], lambda count: np.ones((count, 1), np.int64))
    one, three = (with_cpus(cpus, reduce_sector, task) for cpus in (1, 3))
    assert one.learned.rules and (one.masters, one.unreduced, one.learned) == (three.masters, three.unreduced, three.learned)
    below = [{bits: (keys.tolist(), lines.tolist()) for bits, (keys, lines) in result.below.items()} for result in (one, three)]
    assert below[0] == below[1] != {}
