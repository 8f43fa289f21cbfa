"""Reductions on cuts, which keep only integrals with the cut lines, and their union; a cut is the bit mask of its lines."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from ibp.errors import InputError, ReductionError
from ibp.families import Expression, Family, Index, cut_lines
from ibp.problems import Outcome, Problem, joined_outcome
from ibp.sectors import sector_of, show, weight
from ibp.targets import show_target


def merge_cuts(cuts: Sequence[int], outcomes: Sequence[Outcome]) -> Outcome:
    """One result from those of several cuts: the coefficient of an integral is that of every cut whose lines it has.

    It is the whole reduction if every sector with a master contains a cut. Raises ReductionError where two cuts contradict each other.
    """
    reductions: dict[Index, Expression] = {}
    for target in outcomes[0].reductions:
        merged: Expression = {}
        for integral in sorted({term for outcome in outcomes for term in outcome.reductions[target]}, key=weight, reverse=True):
            bits = sector_of(integral)
            values = {outcome.reductions[target].get(integral, 0) for cut, outcome in zip(cuts, outcomes) if cut & bits == cut}
            if len(values) > 1:
                raise ReductionError(
                    f"cuts give different coefficients of {show(integral)} in {show_target(target)}; take another prime or point"
                )
            merged[integral] = values.pop()
        reductions[target] = merged
    masters, unreduced = ({x for outcome in outcomes for x in getattr(outcome, name)} for name in ("masters", "unreduced"))
    return joined_outcome(outcomes, reductions, masters, unreduced)


def describe_cuts(cuts: Sequence[int], lowest: Sequence[int]) -> str:
    """Whether a result is the whole reduction. lowest: sectors without non-zero subsectors, all of which have masters."""
    shown = " | ".join(",".join(map(str, cut_lines(cut))) for cut in cuts)
    unseen = [bits for bits in lowest if not any(cut & bits == cut for cut in cuts)]
    if not unseen:
        return f"cuts {shown}: they span all sectors, so this is the whole reduction"
    lines = " | ".join(",".join(map(str, cut_lines(bits))) for bits in unseen)
    return f"cuts {shown}: masters without these lines are left out, such as those of the lines {lines}"


def parse_cut(text: str, family: Family) -> int:
    """Bit mask of the lines in '1,2'. Raises InputError."""
    parts = [part.strip() for part in text.split(",")]
    sound = all(re.fullmatch(r"[0-9]{1,3}", part) and 1 <= int(part) <= family.n for part in parts)
    if not sound or len(set(map(int, parts))) < len(parts):
        raise InputError(f"--cut {text!r}: expected different lines from 1 to {family.lines}, such as 1,2, or 'spanning'")
    for part in parts:
        if int(part) > family.lines:
            raise InputError(f"--cut {text}: propagator {part} of {family.name} is an irreducible scalar product, which cannot be cut")
    return sum(1 << int(part) - 1 for part in parts)


def lowest_sectors(nonzero: Sequence[int], tops: Sequence[int]) -> list[int]:
    """The non-zero sectors below these that have no non-zero subsectors; every other one contains one of them."""
    below = [bits for bits in nonzero if any(bits & top == bits for top in tops)]
    return [bits for bits in below if not any(other != bits and other & bits == other for other in below)]


def read_cuts(problem: Problem, texts: Sequence[str], nonzero: Callable[[], Sequence[int]]) -> tuple[int, ...]:
    """Bit masks of the lines of each cut of '1,2' or 'spanning'; the problem's own cut, if it has one; () where nothing is cut.

    nonzero: finds the non-zero sectors. Raises InputError.
    """
    if "spanning" in texts and len(texts) > 1:
        raise InputError("--cut spanning stands for all cuts that are needed: give it alone")
    spanning = tuple(texts) == ("spanning",)
    given = () if spanning else tuple(dict.fromkeys(parse_cut(text, problem.family) for text in texts))
    if problem.cut:
        if texts and given != (problem.cut,):
            lines = ", ".join(map(str, cut_lines(problem.cut)))
            raise InputError(f"--cut {' --cut '.join(texts)}: {problem.family.name} has cut_propagators [{lines}]; leave --cut out")
        return (problem.cut,)
    tops = [sector_of(target) for target in problem.integrals]
    if spanning:
        return tuple(lowest_sectors(nonzero(), tops))
    for cut in given:
        if not any(cut & top == cut for top in tops):
            missing = next(line for line in cut_lines(cut) if not tops[0] >> line - 1 & 1)
            raise InputError(
                f"--cut {','.join(map(str, cut_lines(cut)))}: line {missing} has no positive index in {show(problem.integrals[0])}, "
                "so nothing would be left"
            )
    for target, top in zip(problem.integrals, tops):
        if given and not any(cut & top == cut for cut in given):
            raise InputError(
                f"--cut: {show(target)} has the lines of none of the cuts, so nothing of it would be left; reduce it by itself"
            )
    return given
