"""Identities, against explicit differentiation."""

import pytest
from support import point_of, residue
from support_oracles import FAMILIES, Kinematics

from ibp.families import BUILT_IN_FAMILIES
from ibp.identities import derive_identities, evaluate_identities


@pytest.mark.parametrize("name", FAMILIES)
def test_identities_equal_explicit_differentiation(name):
    """Every IBP and LI operator, term by term, at the family's point and at one with fractions."""
    family = BUILT_IN_FAMILIES[name]
    for d, invariants in (("41", {}), ("-7/3", {symbol: f"{29 + 4 * i}/{3 + i}" for i, (symbol, _) in enumerate(family.point)})):
        expected = [
            {shift: [residue(value) for value in row] for shift, row in terms.items()}
            for terms in Kinematics(family, **invariants).identities(d)
        ]
        equations = evaluate_identities(derive_identities(family), point_of(family, d=d, **invariants))
        found = [{} for _ in range(equations.count)]
        for operator, shift, row in zip(equations.operator.tolist(), equations.shift.tolist(), equations.coefficient.tolist()):
            found[operator][tuple(shift)] = row
        assert found == expected
