"""Problems whose coefficients are rational numbers or functions."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ibp.identities import Column, show_values, unit_column
from ibp.problems import ExactOutcome, Problem, result_record, run_name
from ibp.targets import expression_lines, show_targets


@dataclass(frozen=True)
class ExactProblem:
    """A problem with rational numbers for what is given, and functions of the symbols; the prime of the problem's point plays no role."""

    problem: Problem
    symbols: tuple[str, ...] = ()

    @property
    def given(self) -> dict[str, Fraction]:
        """d and the invariants that have numbers."""
        point = self.problem.point
        return {name: value for name, value in (("d", point.d), *point.invariants) if name not in self.symbols}

    def columns(self) -> tuple[Column, ...]:
        """What is to be expressed through masters. Raises InputError for undefined symbols and divisions by zero in combinations."""
        problem = self.problem
        units = (unit_column(target, len(problem.family.symbols)) for target in problem.targets)
        return (*units, *(combination.exact(problem.family, self.given) for combination in problem.combinations))

    @property
    def label(self) -> str:
        """What is done, for people."""
        kind = f"as functions of {', '.join(self.symbols)}" if self.symbols else "in rational numbers"
        return f"{show_targets(self.problem.keys)} of {self.problem.family.name} {kind}"

    @property
    def heading(self) -> str:
        """Of a summary."""
        given = show_values(self.given.items())
        return f"{self.problem.family.name} {f'at {given}, ' if given else ''}exact"

    def record(self, outcome: ExactOutcome) -> dict[str, Any]:
        """What the pickle holds."""
        return result_record(self.problem, outcome, self.symbols)

    def lines(self, outcome: ExactOutcome) -> list[str]:
        """The result for a person, cut short."""
        (target, expression), *others = outcome.reductions.items()
        more = [f"and {len(others)} more {'targets' if self.problem.combinations else 'integrals'}"] if others else []
        return [self.heading, *expression_lines(target, expression), *more]

    @property
    def name(self) -> str:
        return run_name(self.label, *self._parts)

    @property
    def _parts(self) -> tuple:
        return self.problem.parts(tuple(self.given.items()), self.symbols)
