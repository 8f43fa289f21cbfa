"""Rules: the neighbourhoods they come from, against all vectors there are."""

import itertools

import numpy as np
import pytest

from ibp.rules import LAST_NEIGHBOURHOOD, NEIGHBOURHOODS, border_pattern, level_of
from ibp.sectors import Layout, Sector


@pytest.mark.parametrize("level", range(LAST_NEIGHBOURHOOD + 1))
def test_seeds_of_a_neighbourhood_are_all_that_are_near_enough(level):
    region, sector = NEIGHBOURHOODS[level], Sector(Layout(4, 30, 30), 0b1011)
    expected = set()
    for seed in itertools.product(range(-region.reach, region.reach + 1), repeat=4):
        dr, ds = seed[0] + seed[1] + seed[3], -seed[2]
        if sum(map(abs, seed)) <= region.norm and region.dr[0] <= dr <= region.dr[1] and region.ds[0] <= ds <= region.ds[1]:
            expected.add(seed)
    seeds = region.seeds(sector)
    assert set(map(tuple, seeds.tolist())) == expected and len(seeds) == len(expected)
    assert (np.diff(np.abs(seeds).sum(1)) >= 0).all()
    assert level_of(sector, seeds) == level
    assert level_of(sector, np.array([[9, 0, 0, 0]])) == LAST_NEIGHBOURHOOD
    assert not region.holds(sector, np.concatenate([seeds, [[9, 0, 0, 0]]]))


@pytest.mark.parametrize("level", range(len(NEIGHBOURHOODS)))
def test_integrals_of_a_pattern_have_the_same_seeds_in_the_sector(level):
    """As far as a level notices; its seeds change an index by no more than its reach."""
    reach = getattr(NEIGHBOURHOODS[level], "reach", 9)
    sector = Sector(Layout(3, 30, 30), 0b011)
    targets = np.array([target for target in itertools.product((1, 2, 3, 7), (1, 2, 5), (0, -1, -4)) if sum(target) < 9])
    changes = np.array(list(itertools.product(range(-reach, reach + 1), repeat=3)))
    seen = {}
    for target, pattern in zip(targets, border_pattern(targets, sector.positive, level)):
        inside = sector.contains(target + changes).tobytes()
        assert seen.setdefault(pattern, inside) == inside
    assert len(seen) > 1
