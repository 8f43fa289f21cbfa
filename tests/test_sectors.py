"""Sectors: their keys, and which of them vanish."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import bits_of, laws, patch_rooms
from support_oracles import FAMILIES, NONZERO, any_kinematics, oracle_weight

from ibp.families import BUILT_IN_FAMILIES
from ibp.identities import derive_identities, evaluate_identities, generic_point
from ibp.sectors import Layout, Sector, find_nonzero_sectors, layout_for, sector_of, weight


@st.composite
def layout_and_integrals(draw):
    n = draw(st.integers(1, 11))
    r_max, s_max = draw(st.integers(n, n + 12)), draw(st.integers(0, 14))
    bits = draw(st.integers(1, 2**n - 1))

    def integral():
        left = {True: r_max - bits.bit_count(), False: s_max}
        indices = [0] * n
        for i in draw(st.permutations(range(n))):
            inside = bool(bits >> i & 1)
            size = draw(st.integers(0, left[inside]))
            left[inside] -= size
            indices[i] = 1 + size if inside else -size
        return tuple(indices)

    return Layout(n, r_max, s_max), bits, [integral() for _ in range(draw(st.integers(1, 12)))]


@laws
@given(layout_and_integrals(), st.sampled_from([62, 10]))
def test_keys(case, key_bits):
    """decode(encode(a)) = a, and keys have the order of the weight; the corner has key 0; also for keys of unlimited size."""
    layout, bits, integrals = case
    with pytest.MonkeyPatch.context() as patch:
        patch_rooms(patch, "ibp", "KEY_BITS", key_bits)
        sector = Sector(layout, bits)
        keys = sector.encode(np.array(integrals))
        assert [tuple(row) for row in sector.decode(keys).tolist()] == integrals
        assert sector.encode(np.array([[bits >> i & 1 for i in range(layout.n)]]))[0] == 0
    assert sorted(integrals, key=oracle_weight) == [a for _, a in sorted(zip(keys.tolist(), integrals))]
    assert sorted(integrals, key=weight) == sorted(integrals, key=oracle_weight)
    assert all(sector_of(a) == bits_of(a) == bits for a in integrals)


@pytest.mark.parametrize("target", [(100, 50, 1, 1, 1, 1, 1), (50,) * 6, (100, 50, 1, 1, 1, 1, 0), (100, 90, 1, 1, 1, 1, 1, -9)])
def test_keys_of_the_largest_targets_fit(target):
    """A sector of all propagators has no numerators: with a place for them its keys would be a radix larger than the layout allows for."""
    layout = layout_for([target], len(target))
    assert layout.dtype is np.int64
    sector = Sector(layout, bits_of(target))
    heavier = [tuple(a + (i == k) for k, a in enumerate(target)) for i, a in enumerate(target) if a > 0]
    keys = sector.encode(np.array([target, *heavier]))
    assert sector.decode(keys).tolist() == [list(integral) for integral in (target, *heavier)] and (keys[0] < keys[1:]).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_nonzero_sectors_are_those_with_a_scale(name):
    """The identities at corners agree with the polynomials U and F; the numbers are those of a Laporta run (box and bubble: by hand)."""
    family = BUILT_IN_FAMILIES[name]
    found = find_nonzero_sectors(evaluate_identities(derive_identities(family), generic_point(family)), family.lines)
    assert sorted(found) == any_kinematics(family).nonzero_sectors()
    assert len(found) == NONZERO[name]
    if name == "trianglebox":  # arXiv:2502.05121
        assert sorted(found) == [14, 15, 21, 23, 27, 28, 29, 30, 31, 37, 39, 43, 45, 46, 47, 53, 55, 57, 59, 60, 61, 62, 63]
