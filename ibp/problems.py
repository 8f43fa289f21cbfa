"""What is to be reduced where, and what came out: `Problem` and `Outcome`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from executors import __version__
from ibp.beam import Beam
from ibp.errors import InputError
from ibp.families import Expression, Family, Index
from ibp.identities import Column, Point
from ibp.masters import MasterRelation
from ibp.positions import StepPath
from ibp.sector_tasks import Multipliers
from ibp.sectors import sector_of, weight
from ibp.targets import Combination, integrals_in, show_targets


def run_name(label: str, *parts: Any) -> str:
    """What tells a run from others, for people and for a journal."""
    return f"{label} ({hashlib.sha256(repr((__version__, *parts)).encode()).hexdigest()[:8]})"


@dataclass(frozen=True)
class Problem:
    """What to reduce: integrals of a family, and combinations of them, at a point, to which masters.

    map_integrals: with symmetries, whether integrals are mapped to equivalent sectors, where that is light, or masters alone.
    guide: changes the time that a search takes, never a result. why_no_guide: what to say where one would be of use, but is missing.
    """

    family: Family
    point: Point
    targets: tuple[Index, ...]
    paper_masters_only: bool = False
    preferred_masters: tuple[Index, ...] = ()
    beam: Beam | None = None
    guide: bytes | None = field(default=None, repr=False)
    why_no_guide: str = ""
    combinations: tuple[Combination | Column, ...] = ()
    symmetries: bool = False
    cut: int = 0  # bit mask of lines: integrals without them are dropped
    map_integrals: bool = True

    def __post_init__(self) -> None:
        """Raises InputError."""
        if self.symmetries and self.paper_masters_only:
            raise InputError("published masters and symmetries contradict each other: the published masters are those without symmetries")

    def on_cut(self, cut: int) -> Problem:
        """The same on a cut, where preferred masters without its lines are zero."""
        return replace(self, cut=cut, preferred_masters=tuple(m for m in self.preferred_masters if cut & sector_of(m) == cut))

    @property
    def corners_stay(self) -> bool:
        """Whether corners of sectors without published masters are masters, too; then results would depend on the path, and must not."""
        return bool(self.family.paper_masters) and not self.paper_masters_only and not self.symmetries

    @property
    def used_beam(self) -> Beam | None:
        """Where corners stay a result must not depend on which paths were found before."""
        return replace(self.beam, reuse=False) if self.beam is not None and self.corners_stay else self.beam

    @property
    def keys(self) -> tuple[Index | str, ...]:
        """What the result has reductions of: integrals, and names of combinations."""
        return (*self.targets, *(combination.name for combination in self.combinations))

    @property
    def integrals(self) -> tuple[Index, ...]:
        """All that take part in the targets."""
        return integrals_in(self.targets + self.combinations)

    @property
    def name(self) -> str:
        parts = self.parts(self.point.prime, self.point.residues(), self.beam)
        return run_name(f"{show_targets(self.keys)} of {self.family.name} modulo {self.point.prime}", *parts)

    def parts(self, *at: Any) -> tuple:
        """What decides the result, at a point."""
        return (
            self.family.identifier,
            *at,
            self.targets,
            self.paper_masters_only,
            self.preferred_masters,
            self.family.paper_masters,
            self.symmetries,
            self.cut,
            *((combination.name, combination.terms) for combination in self.combinations),
        )


@dataclass
class Outcome:
    """reductions: every target, combinations by name, through masters (and through unreduced integrals, where some are left).

    store_trouble: why what was learned could not be stored, if so. paths: of what was searched for by a beam. proof: where the run was
    to be certified, target - reduction as a combination of identities, the number of the target as column; identities: digest of all
    identities at the point. relations: between the masters, that were used.
    """

    reductions: dict[Index | str, Expression]
    masters: list[Index]
    unreduced: list[Index]
    statistics: dict[str, int]
    seconds: float
    peak_memory_kb: int
    store_trouble: str = ""
    paths: dict[Index, StepPath] = field(default_factory=dict)
    proof: Multipliers | None = None
    identities: str = ""
    relations: tuple[MasterRelation, ...] = ()


def joined_outcome(outcomes: Sequence[Outcome], reductions: dict, masters: Iterable[Index], unreduced: Iterable[Index]) -> Outcome:
    """What several runs came to, which took the sum of their times."""
    return Outcome(
        reductions,
        sorted(masters, key=weight),
        sorted(unreduced, key=weight),
        {name: sum(outcome.statistics[name] for outcome in outcomes) for name in outcomes[0].statistics},
        sum(outcome.seconds for outcome in outcomes),
        max(outcome.peak_memory_kb for outcome in outcomes),
        next((outcome.store_trouble for outcome in outcomes if outcome.store_trouble), ""),
    )
