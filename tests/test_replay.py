"""Replay: a rule on many integrals at once is the same combination of identities, written out."""

import numpy as np
import pytest
from support import P31, bits_of, combine
from support_oracles import SEARCHED, equations_of, moved, raw_identity, sector_for

from ibp.discovery import RuleFinder
from ibp.examples import local_rule
from ibp.replay import CompiledRule


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
