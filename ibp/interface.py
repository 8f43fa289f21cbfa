"""What scripts import: `from ibp_reduce import reduce, Family, …`; every name here is public and stays.

A reduction in a script takes values where the command line takes text: integrals are tuples of indices, points are dictionaries. What
comes back is a `Result`, which has the keys of the result pickle.
"""

from __future__ import annotations

import pickle
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from executors.choose import Local
from ibp.certificates import check_certificate
from ibp.coefficients import expressions_of
from ibp.console import Progress, Reporter
from ibp.controller import Controller
from ibp.cuts import read_cuts
from ibp.differential import DifferentialProblem, parse_variables
from ibp.errors import CertificateError, InputError
from ibp.errors import ReductionError as ReductionError
from ibp.exact import parse_symbols
from ibp.exports import read_export as read_export
from ibp.families import BUILT_IN_FAMILIES, Family, Index, load_family, load_one_family
from ibp.functions import poly_text
from ibp.geometry import Geometry, SectorMap
from ibp.identities import Operator, derive_identities
from ibp.kira import KiraProject
from ibp.paths import replay_paths
from ibp.problems import Outcome, Problem
from ibp.records import expression_lines, system_record, write_pickle
from ibp.reductions import Outputs, pose_exact, pose_problem, reduce_exactly, reduce_modulo
from ibp.residues import MAX_PRIME
from ibp.run_state import known_nonzero_sectors
from ibp.runs import Running, make_executor
from ibp.sampler import reduce_at_points
from ibp.sectors import corner
from ibp.store import Store, open_stores
from ibp.symmetries import find_symmetries
from ibp.systems import parse_system_values, pose_system, solve_modulo
from ibp.targets import Request, check_prime, parse_integral, parse_point, show_target
from ibp.verification import read_result as read_record
from ibp.verification import verify_result


class Result(Mapping[str, Any]):
    """A result: the keys and values of the result pickle, read only; it shows itself in a notebook.

    >>> result = reduce((1, 1, 1, 1, 1, 1, -3), paper_masters_only=True)
    >>> len(result["final_expr"]), result["prime"], result["unreduced"]
    (16, 1009, [])
    """

    def __init__(self, record: Mapping[str, Any]):
        self._record = dict(record)

    def __getitem__(self, key: str) -> Any:
        return self._record[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._record)

    def __len__(self) -> int:
        return len(self._record)

    def save(self, path: str | Path) -> None:
        """Write the result pickle, atomically. Raises ReductionError."""
        write_pickle(self._record, Path(path))

    def __repr__(self) -> str:
        return f"<Result of {self['family']}: {len(self['reductions'])} targets, {len(self['masters'])} masters>"

    def __str__(self) -> str:
        return "\n".join(line for _, target, row in expressions_of(self._record) for line in expression_lines(target, row))

    def _repr_latex_(self) -> str | None:
        """For notebooks: each target as a sum over masters; None where integrals are names."""
        from ibp.exports import export_text

        if any(isinstance(master, str) for master in self["masters"]):
            return None
        return "\n\n".join(f"$\\displaystyle {line}$" for line in export_text(self._record, "latex").splitlines()[1:])

    def _repr_html_(self) -> str:
        """For notebooks: a table of targets, masters and coefficients."""
        from html import escape

        cells = [
            (_shown(variable, target), show_target(master), f"<code>{escape(str(value))}</code>")
            for variable, target, row in expressions_of(self._record)
            for master, value in row.items()
        ]
        rows = (f"<tr><td>{escape(target)}</td><td>{escape(master)}</td><td>{value}</td></tr>" for target, master, value in cells)
        return f"<table><tr><th>target</th><th>master</th><th>coefficient</th></tr>{''.join(rows)}</table>"


def families() -> tuple[str, ...]:
    """Names of the built-in families; each, or a path of a family file, is what `family` may be below.

    >>> "doublebox" in families()
    True
    """
    return tuple(BUILT_IN_FAMILIES)


def identities(family: str | Family) -> list[dict[Index, str]]:
    """The IBP and LI identities of a family, exact in d and the invariants.

    Each is a dictionary: the sum of coefficient * I[a + shift] over its items vanishes for any indices a1, …, an. Raises InputError.

    >>> identities("bubble")[0][0, 0]
    'd - 2*a1 - a2'
    """
    family = _family(family)
    return [_operator_text(operator, family.symbols) for operator in derive_identities(family)]


def masters(family: str | Family, symmetries: bool = False) -> list[Index]:
    """The master integrals of a family, from simple to complicated: published ones, where there are such, or found by reduction.

    symmetries: with relations between sectors, which leave fewer. Raises InputError, ReductionError.

    >>> masters("box")
    [(1, 0, 1, 0), (0, 1, 0, 1), (1, 1, 1, 1)]
    """
    family = _family(family)
    return reduce(
        corner((1 << family.lines) - 1, family.n),
        family,
        paper_masters_only=bool(family.paper_masters) and not symmetries,
        symmetries=symmetries,
    )["masters"]


def symmetries(family: str | Family) -> dict[int, SectorMap]:
    """Which sectors are equivalent to lighter ones: for each of them (bit mask of lines) the shift that shows it, proved by substitution.

    Raises InputError, ReductionError.

    >>> sorted(symmetries("box"))
    [13, 14]
    >>> symmetries("doublebox")[41].target
    28
    """
    family = _family(family)
    shelves, _ = open_stores(Path("no store"), False, lambda line: None)
    return find_symmetries(Geometry(family), known_nonzero_sectors(family, shelves)).maps


def reduce(
    targets: Index | Sequence[Index],
    family: str | Family = "trianglebox",
    *,
    d: Any = None,
    kinematics: Mapping[str, Any] | None = None,
    prime: int | None = None,
    exact: bool = False,
    symbols: Sequence[str] = (),
    masters: Sequence[Index] = (),
    paper_masters_only: bool = False,
    symmetries: bool = False,
    cut: Sequence[int] = (),
    local: int = 1,
    work_dir: str | Path | None = None,
    progress: bool = False,
) -> Result:
    """Express integrals through master integrals.

    targets: the n indices of an integral, or several such. d, kinematics: numbers (int, Fraction, or text such as '7/3') for what is not
    to be the family's default. Coefficients are integers modulo `prime` (default 1009), rational numbers (exact=True), or functions of
    `symbols` as text that sympy parses. masters: preferred ones. cut: lines, from 1, that kept integrals must have. local: processes.
    work_dir: where rules and unfinished work are kept for the next call; without it nothing is kept. progress: show a bar on a terminal.
    What nothing reduces is in result['unreduced']. Raises InputError for input that means nothing, ReductionError where all fails.

    >>> result = reduce((2, 1), "bubble", prime=2147483647)
    >>> sorted(result["final_expr"])
    [(0, 1), (1, 0), (1, 1)]
    >>> print(reduce((1, 2, 1, 1), "box", symbols=["d"]))  # doctest: +ELLIPSIS
    I[1,2,1,1] = sum of ...
    """
    family = _family(family)
    request = Request(family, _indices(targets, family), preferred=_indices(masters, family), symmetries=symmetries)
    functional = exact or bool(symbols)
    if functional and prime is not None:
        raise InputError("prime: an exact reduction takes primes of its own; leave it out")
    point = _point(request, d, kinematics, MAX_PRIME if functional else prime)
    problem = pose_problem(request, point, paper_masters_only)
    cuts = read_cuts(problem, [",".join(map(str, cut))] if cut else (), tuple)
    with _Place(work_dir, local, progress) as (running, shelves, outputs, reporter):
        if functional:
            names = parse_symbols(",".join(symbols) or None, family, _numbers(d, kinematics))
            reduce_exactly(pose_exact(problem, cuts, names), running, "cpu", shelves, outputs, reporter, not progress)
        else:
            nonzero = partial(known_nonzero_sectors, shelves=shelves)
            outcome, _ = reduce_modulo(problem, cuts, running, False, shelves, outputs, reporter, nonzero)
            if outcome.store_trouble:  # the result is there all the same
                warnings.warn(f"what was learned is not stored: {outcome.store_trouble}", stacklevel=2)
        return read_result(outputs.result)


def differentiate(
    variables: str | Sequence[str],
    family: str | Family,
    *,
    d: Any = None,
    kinematics: Mapping[str, Any] | None = None,
    masters: Sequence[Index] = (),
    symmetries: bool = False,
    local: int = 1,
    work_dir: str | Path | None = None,
    progress: bool = False,
) -> Result:
    """Derivatives of the masters of a family through the masters: result['differential_equation'] has 'masters' and 'matrices'.

    variables: invariants, 'all' of them, or 'd' for M(d - 2) through M(d). What d and kinematics do not give stays a symbol; the rest as
    in `reduce`. Raises InputError, ReductionError.

    >>> equation = differentiate("s", "bubble")["differential_equation"]
    >>> equation["matrices"]["s"][1, 1][1, 1]
    '(d*s - 4*s + 4*m)/(2*s*(s - 4*m))'
    """
    family = _family(family)
    top = corner((1 << family.lines) - 1, family.n)
    request = Request(family, (top,), preferred=_indices(masters, family), symmetries=symmetries)
    numbers = _numbers(d, kinematics)
    text = variables if isinstance(variables, str) else ",".join(variables)
    names, symbols = parse_variables(text, family, numbers)
    problem = pose_problem(request, _point(request, d, kinematics, MAX_PRIME), False)
    equations = DifferentialProblem.below(pose_exact(problem, (), symbols), names)
    with _Place(work_dir, local, progress) as (running, shelves, outputs, reporter):
        reduce_exactly(equations, running, "cpu", shelves, outputs, reporter, not progress)
        return read_result(outputs.result)


def solve(
    path: str | Path,
    *,
    prime: int | None = None,
    exact: bool = False,
    symbols: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
    local: int = 1,
    progress: bool = False,
) -> Result:
    """Solve the homogeneous linear system of a file: result['reductions'] has every unknown through the independent ones.

    A line of the file is 'unknown: coefficient', an empty line ends an equation. values: numbers for symbols in the coefficients; prime,
    exact, symbols, local as in `reduce`. Raises InputError, ReductionError.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "equations.txt").write_text("x: 1\\ny: -s\\n")
    ...     solve(Path(folder, "equations.txt"), symbols=["s"])["reductions"]["x"]
    {'y': 's'}
    """
    numbers, names = parse_system_values(_assignments(values), None, ",".join(symbols) or None)
    functional = exact or bool(names)
    modulus = MAX_PRIME if functional else check_prime(prime)
    problem = pose_system(str(path), numbers, names, modulus)
    records: list[dict[str, Any]] = []

    def save(outcome: Any) -> None:
        records.append(system_record(Path(path).name, numbers, names, None if functional else modulus, outcome))

    if functional:
        with _Place(None, local, progress) as (running, _, _, reporter):
            reduce_at_points(problem, running, "cpu", (), reporter, save, not progress)
    else:
        save(solve_modulo(problem, modulus))
    return Result(records[0])


def read_result(path: str | Path) -> Result:
    """A result of one family from its pickle, in which nothing is executed. Raises InputError.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     reduce((2, 1), "bubble").save(Path(folder, "r.pkl"))
    ...     read_result(Path(folder, "r.pkl"))["original_integral"]
    (2, 1)
    """
    return Result(read_record(path))


def verify(path: str | Path, family: str | None = None) -> str:
    """Check a certificate, a result, or a file of paths; returns what was found right, in words.

    family: that of a result or of paths, if it is not built in: a family file. A result is reduced anew, at random points if it is exact,
    and the proofs of that are checked. Raises InputError for what cannot be read, CertificateError (a ReductionError) for what is wrong.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     reduce((2, 1), "bubble").save(Path(folder, "r.pkl"))
    ...     verify(Path(folder, "r.pkl"))
    'I[2,1] of bubble at d=41, s=7, m=3 modulo 1009, by 5 identities'
    """
    with _Place(None, 1, False) as (running, shelves, _, reporter):
        return check_file(Path(path), family, None, running, shelves, reporter)


def check_file(
    path: Path, family: str | None, project: KiraProject | None, running: Running, shelves: Sequence[Store], reporter: Reporter
) -> str:
    """What was found right in a certificate, a result or a file of paths, in words. project: of Kira, whose families are known as well.

    Raises InputError, CertificateError, ReductionError, ExecutorError.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    try:
        if content[:1] == pickle.PROTO:
            return _check_result(path, family, project, running, shelves, reporter)
        if content[:1] == b"{":
            paths, count = replay_paths(path, load_one_family(family or "trianglebox"))
            return f"{paths:,} paths of {count:,} identities, each of which gives its expression"
        return check_certificate(content)
    except CertificateError as error:
        raise CertificateError(f"{path}: {error}") from None


def _check_result(
    path: Path, family: str | None, project: KiraProject | None, running: Running, shelves: Sequence[Store], reporter: Reporter
) -> str:
    record = read_record(path)

    def reduce_anew(problem: Problem) -> Outcome:
        with make_executor(running.where, running.work_dir, reporter.say) as executor:
            return Controller(problem, executor, shelves, reporter, certify=True).run()

    try:
        return verify_result(record, _family_of(record["family"], path, family, project), reduce_anew)
    finally:
        reporter.close()


def _family_of(name: str, path: Path, given: str | None, project: KiraProject | None) -> Family:
    if project is not None:
        if name not in project.known:
            raise InputError(f"{path}: its family {name} is none of {', '.join(project.known)} of {project.config}")
        return project.known[name].family
    family = BUILT_IN_FAMILIES.get(name) or load_one_family(given or "trianglebox")
    if family.name != name:
        raise InputError(f"{path}: its family {name} is not built in; give --family FILE or --kira-config DIR with its definition")
    return family


class _Place(ExitStack):
    """Where a call of a script works: how to run, stores, outputs, and a reporter; a directory that goes away unless one is given."""

    def __init__(self, work_dir: str | Path | None, local: int, progress: bool):
        super().__init__()
        self.given = work_dir, local, progress

    def __enter__(self) -> tuple[Running, Sequence[Store], Outputs, Reporter]:
        super().__enter__()
        work_dir, local, progress = self.given
        scratch = Path(self.enter_context(tempfile.TemporaryDirectory(prefix="ibp-reduce-")))
        work = scratch / "work" if work_dir is None else Path(work_dir)
        reporter = Progress() if progress else Reporter()
        _, shelves = open_stores(work / "store.shelf", False, reporter.say)
        return Running(work, Local(None if local == 1 else local)), shelves, Outputs(scratch / "result.pkl"), reporter


def _shown(variable: str, target: Any) -> str:
    """A target, or a derivative of a master."""
    shown = show_target(target)
    return f"{shown} at d-2" if variable == "d" else f"d/d{variable} {shown}" if variable else shown


def _family(family: str | Family) -> Family:
    return family if isinstance(family, Family) else load_family(str(family))


def _indices(integrals: Any, family: Family) -> tuple[Index, ...]:
    """One integral or several, checked."""
    several = [integrals] if integrals and not isinstance(next(iter(integrals)), Sequence) else integrals
    return tuple(dict.fromkeys(parse_integral(",".join(map(str, indices)), family, "an integral") for indices in several))


def _assignments(values: Mapping[str, Any] | None) -> str | None:
    return ",".join(f"{name}={value}" for name, value in values.items()) if values else None


def _numbers(d: Any, kinematics: Mapping[str, Any] | None) -> set[str]:
    return {*(kinematics or ()), *(["d"] if d is not None else [])}


def _point(request: Request, d: Any, kinematics: Mapping[str, Any] | None, prime: int | None) -> Any:
    return parse_point(request.family, request.integrals, None if d is None else str(d), _assignments(kinematics), prime)


def _operator_text(operator: Operator, symbols: Sequence[str]) -> dict[Index, str]:
    """Coefficients of I[a + shift] as text in d, the invariants and a1, …, an."""

    def factor(number: int, above: tuple, below: tuple) -> str:
        text, under = poly_text(dict(above), symbols), poly_text(dict(below), symbols)
        index = f"a{number}" if number else ""
        text = f"({text})" if len(above) > 1 and (index or under != "1") else text
        text = {"1": index, "-1": f"-{index}"}.get(text, f"{text}*{index}") if index else text
        return text if under == "1" else f"{text}/({under})"

    return {shift: " + ".join(factor(*part) for part in parts).replace("+ -", "- ") for shift, parts in operator}
