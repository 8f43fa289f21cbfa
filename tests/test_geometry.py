"""Equivalent sectors, against all permutations of the Feynman parameters."""

import pytest
from support_oracles import FAMILIES, SYMMETRIC, FeynmanParameters, symmetries_of

from ibp.families import BUILT_IN_FAMILIES
from ibp.sectors import sector_order


@pytest.mark.parametrize("name", FAMILIES)
def test_equivalent_sectors_are_those_with_the_same_u_and_f(name):
    """All permutations of the Feynman parameters, at random numbers; up to six lines."""
    _, nonzero, found = symmetries_of(name)
    parameters = FeynmanParameters(BUILT_IN_FAMILIES[name])
    representative, classes = {}, {}
    for bits in sorted((bits for bits in nonzero if bits.bit_count() <= (5 if name == "pentabox" else 6)), key=sector_order):
        representative[bits] = classes.setdefault((bits.bit_count(), min(parameters.ways(bits))), bits)
    assert {bits: found.maps[bits].target if bits in found.maps else bits for bits in representative} == representative
    assert not found.unshifted
    assert len(nonzero) - len(found.maps) == SYMMETRIC[name][0]
