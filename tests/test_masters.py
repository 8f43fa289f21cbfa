"""Masters: how many there are, and others that somebody prefers."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import P31, combine, point_of
from support_oracles import FAMILIES, MASTERS, NONZERO, OTHER_PRIMES, PREFERRED, SHIPPED, needs_stored_rules

from ibp.errors import InputError
from ibp.families import BUILT_IN_FAMILIES
from ibp.identities import derive_identities, evaluate_identities, generic_point
from ibp.master_search import find_masters
from ibp.masters import change_basis
from ibp.sectors import find_nonzero_sectors, sector_of
from ibp.store import Store

QUICK = {"trianglebox", "sunrise", "box", "bubble"}


def masters_of(family, point, sectors=None):
    """Masters by sector, searched for at this point without any stored knowledge."""
    equations = evaluate_identities(derive_identities(family), point)
    nonzero = find_nonzero_sectors(equations, family.lines)
    return {bits: find_masters(nonzero, equations, bits).masters for bits in nonzero if sectors is None or bits in sectors}


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES])
def test_masters_found_from_scratch(name):
    family = BUILT_IN_FAMILIES[name]
    found = masters_of(family, generic_point(family))
    assert all(sector_of(master) == bits for bits, masters in found.items() for master in masters)
    masters = {master for masters in found.values() for master in masters}
    assert len(masters) == MASTERS[name]
    if name == "trianglebox":
        assert masters == set(family.paper_masters)
    if name == "box":  # the textbook basis: two bubbles and the box
        assert masters == {(1, 0, 1, 0), (0, 1, 0, 1), (1, 1, 1, 1)}


def test_masters_of_low_sectors_of_ladder3():
    """The massless three-loop banana has one master, and so has each product of bubbles; one line more on the banana gives none."""
    family = BUILT_IN_FAMILIES["ladder3"]
    banana, bubbles = 0b11100001, 0b00111111
    found = masters_of(family, generic_point(family), {banana, bubbles, banana | 0b10, banana | 0b1000})
    assert found == {
        banana: ((1, 0, 0, 0, 0, 1, 1, 1, 0),),
        bubbles: ((1, 1, 1, 1, 1, 1, 0, 0, 0),),
        banana | 0b10: (),
        banana | 0b1000: (),
    }


@needs_stored_rules
@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"trianglebox"}))
def test_masters_in_the_shipped_rules(name):
    family = BUILT_IN_FAMILIES[name]
    knowledge = Store(SHIPPED, read_only=True).load(family)
    assert knowledge.nonzero is not None and len(knowledge.nonzero) == NONZERO[name]
    masters = [master for bits in knowledge.nonzero for master in knowledge.sectors[bits].masters]
    assert len(set(masters)) == len(masters) == MASTERS[name]


@pytest.mark.parametrize("name", ["bubble", "box", "sunrise"])
@pytest.mark.parametrize("prime", OTHER_PRIMES)
def test_masters_do_not_depend_on_point_and_prime(name, prime):
    family = BUILT_IN_FAMILIES[name]
    invariants = {symbol: Fraction(10007 + 31 * i, 89) for i, (symbol, _) in enumerate(family.point)}
    assert masters_of(family, point_of(family, prime, d="377/19", **invariants)) == masters_of(family, generic_point(family))


@pytest.mark.parametrize(("name", "target", "preferred"), PREFERRED, ids=[case[0] for case in PREFERRED])
def test_preferred_masters(reduce_at, name, target, preferred):
    """Re-expanding the preferred integrals gives the standard reduction; they are in use, and each replaces one standard master."""
    standard = reduce_at(name, [target, *preferred], paper_masters_only=True)
    outcome = reduce_at(name, [target], paper_masters_only=True, preferred_masters=tuple(preferred))
    rewritten = outcome.reductions[target]
    assert set(rewritten) & set(preferred) and set(rewritten) <= set(outcome.masters)
    assert combine(*((value, standard.reductions.get(term, {term: 1})) for term, value in rewritten.items())) == standard.reductions[target]
    kept = set(outcome.masters) - set(preferred)
    assert kept <= set(standard.masters) and len(kept & set(standard.masters)) <= len(standard.masters) - len(
        set(preferred) - set(standard.masters)
    )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 5), st.integers(0, 4), st.sampled_from([101, P31]), st.randoms(use_true_random=False))
def test_change_basis_is_invertible(size, chosen, p, draw):
    """Random reductions: rewritten ones, with the preferred integrals expanded again, are the given ones."""
    import sympy

    masters = [(1, -i) for i in range(size)]
    preferred = [(2, -i) for i in range(min(chosen, size))]
    integrals = [*masters, *preferred, (3, 0), (3, -1)]
    reductions = {a: {m: v for m in masters if (v := draw.choice([0, 1, draw.randrange(p)]))} for a in integrals[size:]}
    reductions |= {m: {m: 1} for m in masters}
    rank_rows = sympy.Matrix([[reductions[a].get(m, 0) for m in masters] for a in preferred]) if preferred else None
    independent = not preferred or sympy.polys.matrices.DomainMatrix.from_Matrix(rank_rows).convert_to(sympy.GF(p)).rank() == len(preferred)
    if not independent:
        with pytest.raises(InputError):
            change_basis(reductions, preferred, p)
        return
    rewritten = change_basis(reductions, preferred, p)
    used = {term for expression in rewritten.values() for term in expression}
    assert len(used) <= size and all(rewritten[a] == {a: 1} for a in preferred)
    for integral, expression in rewritten.items():
        assert combine(*((value, reductions[term]) for term, value in expression.items()), p=p) == reductions[integral]
