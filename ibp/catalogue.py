"""Families as a person reads them: the list of what is built in, and one family with its sectors, masters and symmetries."""

from __future__ import annotations

from collections.abc import Sequence

from ibp.families import BUILT_IN_FAMILIES, Family
from ibp.geometry import Geometry
from ibp.run_state import known_nonzero_sectors
from ibp.sectors import show, weight
from ibp.store import Store
from ibp.symmetries import describe_symmetries

MOST_MASTERS_SHOWN = 100


def list_families() -> str:
    """The built-in ones, one a line. Raises InputError."""
    lines = [f"{'name':22}{'loops':>6}{'legs':>6}{'lines':>6}{'ISPs':>6}  invariants (default point)    propagators"]
    for family in BUILT_IN_FAMILIES.values():
        point = " ".join(f"{name}={value}" for name, value in family.point)
        legs = len(family.external_momenta) + 1
        propagators = ", ".join(_propagators(family))
        lines.append(f"{family.name:22}{len(family.loop_momenta):6}{legs:6}{family.lines:6}{family.isps:6}  {point:29} {propagators}")
    return "\n".join(lines)


def _propagators(family: Family) -> list[str]:
    return [text if mass == "0" else f"{text} [{mass}]" for text, mass in family.propagators]


def describe_families(families: Sequence[Family], cuts: Sequence[int], shelves: Sequence[Store]) -> str:
    """Definitions, what is known of masters, then the symmetries of each family and those between them, on cuts (bit masks of lines).

    shelves: stores to look things up in. Raises InputError, ReductionError.
    """
    geometries = [Geometry(family, cut) for family, cut in zip(families, cuts)]
    nonzero = [[bits for bits in known_nonzero_sectors(family, shelves) if bits & cut == cut] for family, cut in zip(families, cuts)]
    parts = [_definition(family, shelves) for family in families]
    return "\n\n".join([*parts, describe_symmetries(geometries, nonzero)])


def _definition(family: Family, shelves: Sequence[Store]) -> str:
    lines = [f"{number:4}  {text}" for number, text in enumerate(_propagators(family), 1)]
    lines = [line + ("  (irreducible scalar product)" if number >= family.lines else "") for number, line in enumerate(lines)]
    heading = f"{family.name}: loop momenta {', '.join(family.loop_momenta)}; external {', '.join(family.external_momenta) or 'none'}"
    products = f"products   {', '.join(f'{pair} = {value}' for pair, value in family.kinematics) or 'none'}"
    point = f"point      d = {family.d}{''.join(f', {name} = {value}' for name, value in family.point)}"
    return "\n".join([heading, *lines, products, point, _masters_line(family, shelves)])


def _masters_line(family: Family, shelves: Sequence[Store]) -> str:
    """Of sectors whose masters were looked for by now."""
    if family.paper_masters:
        return f"masters    {len(family.paper_masters)} published: {' '.join(map(show, family.paper_masters))}"
    masters = {m for shelf in shelves for known in shelf.load(family).sectors.values() for m in known.masters or ()}
    shown = " ".join(map(show, sorted(masters, key=weight)[:MOST_MASTERS_SHOWN]))
    return f"masters    {len(masters)} known: {shown}" if masters else "masters    not looked for yet: a reduction does"
