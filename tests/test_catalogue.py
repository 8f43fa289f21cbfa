"""Families as a person reads them."""

import pytest

from ibp.catalogue import describe_families, list_families
from ibp.families import BUILT_IN_FAMILIES
from ibp.shipped import shipped
from ibp.store import Store


def test_every_built_in_family_has_a_line():
    head, *lines = list_families().splitlines()
    assert head.split()[:3] == ["name", "loops", "legs"] and [line.split()[0] for line in lines] == list(BUILT_IN_FAMILIES)
    assert "k1 [m], k1+p [m]" in next(line for line in lines if line.startswith("bubble "))


@pytest.mark.parametrize(("name", "masters"), [("box", "3 known"), ("trianglebox", "16 published"), ("bubble", "3 known")])
def test_a_family_is_described(name, masters):
    family = BUILT_IN_FAMILIES[name]
    text = describe_families([family], [0], [Store(shipped("rules.shelf"), read_only=True)])
    assert f"masters    {masters}: I[" in text and f"{name}: " in text
    for number, (momentum, _) in enumerate(family.propagators, 1):
        assert f"{number:4}  {momentum}" in text
    assert text.count("irreducible scalar product") == family.isps


def test_without_a_store_masters_are_not_guessed():
    assert "masters    not looked for yet" in describe_families([BUILT_IN_FAMILIES["bubble"]], [0], [])
