"""A run from its problem to its outcome, whatever scheme distributes its work.

What is known is loaded and completed; masters, and with symmetries relations between them, are found; targets are carried to masters by the
scheme; relations and preferred masters are put in; what was learned is stored.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ibp.console import Reporter
from ibp.errors import InputError
from ibp.families import Expression, Index
from ibp.geometry import SectorMap
from ibp.identities import generic_point, identities_digest
from ibp.master_search import find_relations
from ibp.masters import MasterRelation, change_basis, use_relations
from ibp.problems import Outcome, Problem
from ibp.run_state import Ground, Prepared, RunState, prepare
from ibp.sector_scheme import Scheme, SectorScheme
from ibp.sector_tasks import Multipliers
from ibp.sectors import corner, layout_for, sector_of, weight
from ibp.store import Store
from ibp.symmetries import own_maps
from ibp.targets import Target, integrals_in, target_name

ROWS_WORTH_A_GUIDE = 100_000  # built in searches; below it nobody misses the guide


class Controller:
    """Runs a problem: once, by run().

    executor: where tasks run; shelves: stores to learn from, the last of which also receives what is found; certify: keep the proof, which
    the scheme for whole sectors can do. After the run `ground` and `together`, all targets that were reduced, tell what was done.
    """

    ground: Ground

    def __init__(
        self,
        problem: Problem,
        executor: Any,
        shelves: Sequence[Store],
        reporter: Reporter,
        certify: bool = False,
        scheme: Scheme | None = None,
    ):
        self.problem, self.certify = problem, certify
        self.scheme = SectorScheme(certify) if scheme is None else scheme
        self.state = RunState(problem, executor, shelves, reporter)
        self.wanted: tuple[Target, ...] = (*dict.fromkeys(problem.targets + problem.preferred_masters), *problem.combinations)
        self.together = self.wanted
        self.relations: list[MasterRelation] = []

    def run(self) -> Outcome:
        """Raises ReductionError where the problem cannot be set up; what was learned is stored unless the input is refused."""
        started, state = time.perf_counter(), self.state
        try:
            reductions, basis, unreduced = self._reduce()
        except InputError:
            raise
        except BaseException:
            if trouble := state.known.flush():  # must not take the place of what ended the run
                state.reporter.say(trouble)
            raise
        trouble = state.known.flush()  # the result is there all the same
        state.finish()
        equations = self.ground.prepared.equations
        return Outcome(
            {key: reductions[key] for key in self.problem.keys},
            basis,
            unreduced,
            state.statistics,
            time.perf_counter() - started,
            sum(state.memory.values()),
            trouble,
            state.paths,
            whole_proof(self.problem, self.wanted, state.proof, reductions) if self.certify else None,
            identities_digest(zip(equations.operator, equations.shift, equations.coefficient)) if self.certify else "",
            tuple(self.relations),
        )

    def _reduce(self) -> tuple[dict[Any, Expression], list[Index], list[Index]]:
        """Reductions, basis of masters, and what is not reduced."""
        problem, state, p = self.problem, self.state, self.problem.point.prime
        state.start()
        prepared = prepare(problem, state.known)
        self.scheme.resume(state)
        masters = self._find_masters(prepared)
        self.relations = self._find_relations(prepared, masters)
        self.together = (*self.wanted, *self.relations)
        self.ground = Ground(prepared, masters, layout_for(integrals_in(self.together), problem.family.n))
        rows = {target_name(target): row for target, row in self.scheme.reduce(state, self.ground, self.together).items()}
        reductions = use_relations(rows, self.relations, p)
        known = {master for some in masters.values() for master in some}.difference(r.solved for r in self.relations)
        unreduced = sorted({term for expression in reductions.values() for term in expression} - known, key=weight)
        searched = state.statistics["rows"] > ROWS_WORTH_A_GUIDE and problem.used_beam is None and not problem.corners_stay
        if searched and problem.why_no_guide:
            state.reporter.say(problem.why_no_guide)
        if problem.preferred_masters and not unreduced:
            reductions = change_basis(reductions, problem.preferred_masters, p)
            known = {term for expression in reductions.values() for term in expression}.union(problem.preferred_masters)
        return reductions, sorted(known, key=weight), unreduced

    def _find_masters(self, prepared: Prepared) -> dict[int, tuple[Index, ...]]:
        """The integrals to stop at, by sector: published or found; without paper_masters_only also corners of sectors without any."""
        problem, known, n = self.problem, self.state.known, self.problem.family.n
        below = prepared.sectors_below(integrals_in(self.wanted))
        if problem.family.paper_masters and not problem.symmetries:
            masters = {bits: tuple(m for m in problem.family.paper_masters if sector_of(m) == bits) for bits in below}
            return {bits: found or (corner(bits, n),) for bits, found in masters.items()} if problem.corners_stay else masters
        reduced = [bits for bits in below if bits not in prepared.numeric_maps]
        self.scheme.search_masters(self.state, prepared, [bits for bits in reduced if known.sector(bits).masters is None])
        return {bits: (known.sector(bits).masters if bits in reduced else ()) or () for bits in below}

    def _find_relations(self, prepared: Prepared, masters: dict[int, tuple[Index, ...]]) -> list[MasterRelation]:
        """What symmetries say about the masters, lightest sectors first."""
        found: list[tuple[SectorMap, Index, Index]] = []
        family, known = self.problem.family, self.state.known
        for bits in prepared.sectors_below(integrals_in(self.wanted)) if self.problem.symmetries else ():
            if bits in prepared.sector_maps:
                found += [(prepared.sector_maps[bits], master, master) for master in masters[bits]]
            elif any(master != corner(bits, family.n) for master in masters[bits]):  # a corner goes to itself
                own = own_maps(prepared.geometry, bits)
                more, learned = find_relations(own, generic_point(family), prepared.generic, bits, known.sector(bits))
                found += more
                if learned:
                    self.state.learn(bits, learned)
        return [MasterRelation.by(*relation, prepared.geometry.functions) for relation in found]


def whole_proof(problem: Problem, wanted: Sequence[Target], parts: Sequence[Multipliers], reductions: dict[Any, Expression]) -> Multipliers:
    """Of the problem's keys alone: a preferred master in a reduction brings in its own reduction, times minus its coefficient."""
    p, nothing = problem.point.prime, Multipliers.nothing(problem.family.n)
    whole = Multipliers.join([nothing, *parts]).merged(p)
    first = np.searchsorted(whole.column, np.arange(len(wanted) + 1)).tolist()
    lines = {target_name(target): whole.lines(slice(*first[k : k + 2])) for k, target in enumerate(wanted)}
    used = []
    for number, key in enumerate(problem.keys):
        preferred = [(m, p - reductions[key][m]) for m in problem.preferred_masters if m in reductions[key]]
        for name, factor in ((key, 1), *preferred):
            own = lines[name]
            used.append(replace(own, column=np.full_like(own.column, number), value=own.value * factor % p))
    return Multipliers.join([nothing, *used]).merged(p)
