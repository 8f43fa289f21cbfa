"""Identities, against explicit differentiation."""

import pytest
from support_oracles import FAMILIES, check_identities, small_family

from ibp.families import BUILT_IN_FAMILIES
from ibp.identities import derive_identities, mass_dimension
from ibp.targets import Combination, parse_combination


@pytest.mark.parametrize("name", FAMILIES)
def test_identities_equal_explicit_differentiation(name):
    """At the family's point and at one with fractions."""
    family = BUILT_IN_FAMILIES[name]
    check_identities(family, "41")
    check_identities(family, "-7/3", **{symbol: f"{29 + 4 * i}/{3 + i}" for i, (symbol, _) in enumerate(family.point)})


def test_scaling():
    for family in BUILT_IN_FAMILIES.values():
        assert None not in map(mass_dimension, derive_identities(family))
    for square, mass in (("1+s", "0"), ("s", "m**2"), ("s", "1")):
        propagators, point = (("k1", mass), ("k1+p", "0")), (("s", "7"), ("m", "3"))
        family = small_family("no-scaling", "k1", "p", propagators, 0, (("p*p", square),), point)
        assert None in map(mass_dimension, derive_identities(family))
    family = BUILT_IN_FAMILIES["sunrise"]
    for text, expected in (("s*I[2,1,1,0,0]-I[1,1,1,0,0]*d", -3), ("I[2,1,1,0,-1]/(s-9*m)", -4), ("I[2,1,1,0,0]-I[1,1,1,0,0]", None),
                           ("(s+1)*I[1,1,1,0,0]", None), ("0*I[1,1,1,0,0]", 0)):  # fmt: skip
        name, terms = parse_combination(f"x: {text}", [family], "here")
        combination = Combination(name, tuple((integral, factor) for _, integral, factor in terms), "here")
        assert mass_dimension(combination.exact(family, {}).terms) == expected
