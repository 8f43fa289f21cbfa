"""Requests out of a person's words."""

from fractions import Fraction

import pytest
from support import TRIANGLEBOX

from ibp.errors import InputError
from ibp.families import BUILT_IN_FAMILIES
from ibp.requests import Asked, parse_point, read_corners, read_requests


def test_what_is_asked_for():
    """Without a word the published integral; with symmetries a family of which nothing is wanted takes part, too."""
    (request,) = read_requests(Asked())
    assert (request.family, request.targets) == (TRIANGLEBOX, ((3, 2, 1, 3, 2, 2, -6),))
    words = {"families": "doublebox,nonplanar-doublebox", "integral": "doublebox[1,1,1,1,1,1,1,-1,0]"}
    assert [request.family.name for request in read_requests(Asked(**words))] == ["doublebox"]
    assert [len(request.targets) for request in read_requests(Asked(**words, symmetries=True))] == [1, 0]
    assert read_corners(Asked("sunrise")).targets == ((1, 1, 1, 0, 0),)


@pytest.mark.parametrize(
    "words", [{"families": "box"}, {"families": "box,bubble", "integral": "box[1,1,1,1]"}, {"integral": "1", "integrals": "f"}]
)
def test_what_cannot_be_asked_for(words):
    with pytest.raises(InputError):
        read_requests(Asked(**words))


def test_point_of_words():
    box = BUILT_IN_FAMILIES["box"]
    assert parse_point(box, []).residues() == (41, 3, 7) and parse_point(box, []).prime == 1009
    point = parse_point(box, [(5, 1, 1, 1)], "7/2", " t = -1/3", 101)
    assert (point.d, dict(point.invariants), point.prime) == (Fraction(7, 2), {"s": 3, "t": Fraction(-1, 3)}, 101)
