"""What is known of a family at any point, and of its one-step results at one: `Knowledge`, by sector `SectorKnowledge`.

`pack_sector` and `unpack_sector` turn the latter into builtin types and back, for stores, journals and tasks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ibp.families import Expression, Family, Index
from ibp.identities import Operator
from ibp.rules import Rule


@dataclass
class SectorKnowledge:
    """What is known about one sector of a family, at any point: its masters (None: not yet searched), rules, and hopeless searches.

    hopeless: (level, border pattern) of integrals that no rule of that level reduces. searched_rows: rows built in the search for masters
    that this comes from.
    """

    masters: tuple[Index, ...] | None = None
    rules: tuple[Rule, ...] = ()
    hopeless: frozenset[tuple[int, bytes]] = frozenset()
    searched_rows: int = 0

    def update(self, other: SectorKnowledge) -> None:
        self.masters = other.masters if self.masters is None else self.masters
        self.rules = tuple(dict.fromkeys(self.rules + other.rules))
        self.hopeless |= other.hopeless

    def __bool__(self) -> bool:
        return bool(self.masters is not None or self.rules or self.hopeless)


@dataclass
class Knowledge:
    """What a store holds about one family. steps: one-step results at one point, by sector."""

    operators: tuple[Operator, ...] | None = None
    nonzero: tuple[int, ...] | None = None
    sectors: dict[int, SectorKnowledge] = field(default_factory=dict)
    steps: dict[int, dict[Index, Expression]] = field(default_factory=dict)

    def update(self, other: Knowledge) -> None:
        """Take over what the other one knows: nothing is lost, rules that are there already are not repeated."""
        self.operators = self.operators or other.operators
        self.nonzero = self.nonzero or other.nonzero
        for bits, theirs in other.sectors.items():
            self.sectors.setdefault(bits, SectorKnowledge()).update(theirs)
        for bits, steps in other.steps.items():
            self.steps[bits] = self.steps.get(bits, {}) | steps

    def __bool__(self) -> bool:
        return bool(self.operators or self.nonzero or self.sectors or any(self.steps.values()))


def pack_sector(knowledge: SectorKnowledge, n: int) -> dict[str, Any]:
    """Rules as one table of int8: operator, seed - target, pivot column - target (zeros in the last row of a rule)."""
    rows = [(operator, *seed, *pivot) for rule in knowledge.rules for (operator, seed), pivot in zip(rule.rows, (*rule.pivots, (0,) * n))]
    return {
        "masters": knowledge.masters,
        "rules": tuple((len(rule.rows), rule.level) for rule in knowledge.rules),
        "rows": np.array(rows, np.int8).tobytes(),
        "hopeless": tuple(sorted(knowledge.hopeless)),
    }


def unpack_sector(value: dict[str, Any], family: Family) -> SectorKnowledge:
    """Raises one of UNREADABLE where it is not what `pack_sector` made, of this family."""
    n = family.n
    table = np.frombuffer(value["rows"], np.int8).reshape(-1, 2 * n + 1).tolist()
    if len(table) != sum(length for length, _ in value["rules"]) or any(length < 1 for length, _ in value["rules"]):
        raise ValueError("rules of another shape")
    if any(not 0 <= row[0] < family.operators for row in table):
        raise ValueError("rules of another family")
    if any(len(master) != n or not all(isinstance(a, int) for a in master) for master in value["masters"] or ()):
        raise ValueError("masters of another family")
    rules, begin = [], 0
    for length, level in value["rules"]:
        part = table[begin : begin + length]
        begin += length
        rows, pivots = ((row[0], tuple(row[1 : n + 1])) for row in part), (tuple(row[n + 1 :]) for row in part[:-1])
        rules.append(Rule(tuple(rows), tuple(pivots), level))
    hopeless = frozenset((level, bytes(pattern)) for level, pattern in value["hopeless"])
    return SectorKnowledge(value["masters"], tuple(rules), hopeless, int(value.get("searched_rows", 0)))
