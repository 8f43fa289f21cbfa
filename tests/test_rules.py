"""Rules: the neighbourhoods they come from, against all vectors there are; a replay, against the identities written out."""

import itertools

import numpy as np
import pytest
from support import P31, bits_of, combine
from support_oracles import SEARCHED, equations_of, moved, raw_identity, sector_for

from ibp.discovery import RuleFinder
from ibp.rules import LAST_NEIGHBOURHOOD, NEIGHBOURHOODS, CompiledRule, border_pattern, level_of
from ibp.sectors import Layout, Sector
from ibp.training_data import local_rule


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


@pytest.mark.parametrize(("name", "target"), SEARCHED)
def test_replay_is_the_combination_of_identities_that_the_multipliers_say(name, target):
    sector, equations, rng = sector_for(name, target), equations_of(name), np.random.default_rng(0)
    rule = local_rule(RuleFinder(sector, equations), np.array(target))
    compiled = CompiledRule(sector, equations, rule)
    raised = np.where(sector.positive, 1, -1) * rng.integers(0, 3, (20, sector.n))
    targets = np.concatenate([[target], np.array(target) + raised])
    targets = targets[((targets >= compiled.low) & (targets <= compiled.high)).all(1)]
    ones = np.column_stack([np.ones(len(targets)), targets])
    values, factors = compiled.replay(ones, P31), compiled.multipliers(ones, P31)
    heavier = compiled.offset[: compiled.heavier][values[0, : compiled.heavier] != 0]
    assert compiled.valid and len(targets) > 1 and values[0, compiled.heavier] and not sector.contains(target + heavier).any()
    for indices, value, factor in zip(targets.tolist(), values, factors):
        if not value[compiled.heavier]:
            continue  # does not reduce this one
        identities = (raw_identity(name, *moved(indices, row)) for row in rule.rows)
        expected = combine(*zip(factor.tolist(), identities))
        scale = pow(int(value[compiled.heavier]), -1, P31)
        found = {tuple((indices + offset).tolist()): int(v) * scale % P31 for offset, v in zip(compiled.offset, value) if v}
        assert {term: v for term, v in found.items() if bits_of(term) == bits_of(target)} == {
            term: v for term, v in expected.items() if bits_of(term) == bits_of(target)
        }
        assert found[tuple(indices)] == 1
