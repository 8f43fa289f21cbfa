"""What a Kira project wants: jobs.yaml, its lists and ranges, for the families of `kira_families`.

`read_kira_project` reads the families, `read_kira_requests` what is wanted of them.
"""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ibp.errors import InputError
from ibp.families import LARGEST_INDEX, Family, Index, cut_lines
from ibp.identities import Algebra
from ibp.kira_families import (
    KiraFamily,
    check_keys,
    expect,
    expect_number,
    expect_texts,
    read_kinematics,
    read_kira_families,
    read_sector,
    read_yaml,
)
from ibp.sectors import corner, integrals_near_corner, sector_of, sector_order, show
from ibp.targets import Asked, Request, integrals_in, only_one, read_targets

LARGEST_SELECTION = 20_000  # integrals that select_mandatory_recursively may stand for
LARGEST_SECTOR = 18  # lines of a sector whose subsectors are listed for it
# what is only named, as it says how Kira goes about it, and what would change the result
JOB_NAMED = (
    *("reduce", "identities", "sector_selection", "reduce_automatic", "generate_input", "lorenz_invariance", "symbols_2_nums"),
    *("truncate_sp", "truncate_more", "truncate_more_dots", "integral_ordering", "iterative_reduction", "check_masters", "conditional"),
    *("run_initiate", "run_triangular", "run_back_substitution", "run_firefly", "factor_scan", "pyred_database"),
    *("algebraic_reconstruction", "alt_dir", "data_file", "write_numerical_system", "create_denominator_database"),
)
JOB_REFUSED = (
    *("extra_relations", "select_masters_reduction", "set_zero_sectors", "amplitude_translate", "insert_prefactors", "input_system"),
    *("weight_notation", "numerical_points"),
)
EXPORT_JOBS = ("kira2math", "kira2form", "kira2file", "kira2formfill")


@dataclass(frozen=True)
class KiraProject:
    """known: all its families; chosen: those that are asked for, in that order."""

    known: dict[str, KiraFamily]
    chosen: list[Family]
    config: Path
    jobs: Path

    @property
    def cuts(self) -> list[int]:
        """Of the chosen families, as bit masks of lines."""
        return [self.known[family.name].cut for family in self.chosen]

    def complete(self, asked: Asked, requests: Sequence[Request], preferred: Sequence[Request] = ()) -> list[Request]:
        """With preferred masters and cuts. Raises InputError for what is below no top-level sector, and where propagators are no basis."""
        requests = asked.complete(requests, self.chosen, preferred)
        for request in requests:
            self._check_tops(request)
            Algebra(request.family, f"{self.config}: family {request.family.name}: propagators")
        return [replace(request, cut=self.known[request.family.name].cut) for request in requests]

    def _check_tops(self, request: Request) -> None:
        name, tops = request.family.name, self.known[request.family.name].tops
        for integral in request.integrals:
            if not any(sector_of(integral) & top == sector_of(integral) for top in tops):
                raise InputError(
                    f"{self.config}: {name}{show(integral)[1:]} is in sector {sector_of(integral)}, "
                    f"not below top_level_sectors [{', '.join(map(str, tops))}]"
                )

    def say_cuts(self, requests: Iterable[Request], say: Callable[[str], None]) -> None:
        """What has not all of the cut lines is zero."""
        for request in requests:
            if cut := request.cut:
                integrals = integrals_in((*request.targets, *request.combinations))
                zero = sum(cut & sector_of(integral) != cut for integral in integrals)
                more = f"; zero, as without these lines: {zero} of {len(integrals)} integrals" if zero else ""
                say(f"{self.config}: family {request.family.name}: cut_propagators {cut_lines(cut)}: taken as --cut{more}")


@dataclass(frozen=True)
class KiraSelection:
    """What jobs.yaml selects: files of integrals (of a family, or None: each line says), integrals by range, preferred masters.

    named: options that are there and not followed; symmetries: whether they are to be used.
    """

    lists: tuple[tuple[str | None, Path], ...] = ()
    ranges: tuple[tuple[str, Index], ...] = ()
    preferred: tuple[Path, ...] = ()
    named: tuple[str, ...] = ()
    symmetries: bool = False


def read_kira_project(directory: Path, families: str | None = None, written: Iterable[Path] = ()) -> KiraProject:
    """The families of a project, or only 'A,B,…' of them. Raises InputError.

    written: what a run will write, which must not be a file of the project.
    """
    if not directory.is_dir():
        raise InputError(f"--kira-config {directory}: no such directory")
    config, kinematics = directory / "config" / "integralfamilies.yaml", directory / "config" / "kinematics.yaml"
    known = read_kira_families(config, read_kinematics(kinematics))
    names = list(known) if families is None else [name.strip() for name in families.split(",")]
    if not set(names) <= set(known) or len(set(names)) < len(names):
        raise InputError(f"--family {families}: {config} has {', '.join(known)}")
    jobs = directory / "jobs.yaml"
    _check_not_written(written, [config, kinematics, jobs])
    return KiraProject(known, [known[name].family for name in names], config, jobs)


def _check_not_written(written: Iterable[Path], files: Sequence[Path]) -> None:
    for path in written:
        if os.path.realpath(path) in map(os.path.realpath, files):
            raise InputError(f"{path} is a file of the Kira project; choose another to write")


def read_kira_requests(
    asked: Asked, project: KiraProject, say: Callable[[str], None], written: Sequence[Path] = (), certified: bool = False
) -> list[Request]:
    """What is asked for, else what jobs.yaml wants, of the families of a project. Raises InputError.

    written: as for `read_kira_project`. certified: whether there is to be a certificate, which knows no symmetries.
    """
    listed = not asked.names_integrals
    if listed and not project.jobs.exists():
        raise InputError(f"{project.jobs}: no such file; give --integral or --integrals")
    selection = read_jobs(project.jobs, project.known) if listed else KiraSelection()
    _check_not_written(written, [*(path for _, path in selection.lists), *selection.preferred])
    requests = _selected(selection, project) if listed else asked.given(project.chosen)
    everyone = [entry.family for entry in project.known.values()]
    lists = selection.preferred if asked.masters is None else ()
    preferred = [part for path in lists for part in read_targets(path, everyone, "preferred masters", combinations=False)]
    asked = replace(asked, symmetries=asked.symmetries or (selection.symmetries and not certified))
    requests = project.complete(asked, requests, preferred)
    named = dict.fromkeys(key for request in requests for key in project.known[request.family.name].named)
    for path, keys in ((project.config, named), (project.jobs, selection.named)):
        if keys:
            say(f"{path}: not followed, as this program has its own ways: {', '.join(keys)}")
    if selection.symmetries:
        taken = "taken as --symmetries" if asked.symmetries else "not followed, as --certificate knows no symmetries"
        say(f"{project.jobs}: run_symmetries is true: {taken}")
    project.say_cuts(requests, say)
    return requests


def read_kira_corners(asked: Asked, project: KiraProject, say: Callable[[str], None]) -> Request:
    """The corners of the top-level sectors of the only family that have the cut lines. Raises InputError."""
    known = [project.known[family.name] for family in project.chosen]
    requests = [Request(own.family, tuple(corner(top, own.family.n) for top in own.tops if own.cut & top == own.cut)) for own in known]
    request = only_one(project.complete(asked, requests))
    project.say_cuts([request], say)
    return request


def _selected(selection: KiraSelection, project: KiraProject) -> list[Request]:
    """The lists and ranges of jobs.yaml, of the chosen families."""
    known, families, jobs = project.known, project.chosen, project.jobs
    everyone = [entry.family for entry in known.values()]
    parts: list[Request] = []
    for name, path in selection.lists:
        own = everyone if name is None else [known[name].family]
        parts += read_targets(path, own, f"{jobs}: list")
    targets = {family.name: dict.fromkeys(t for part in parts if part.family is family for t in part.targets) for family in families}
    for name, integral in selection.ranges:
        if name in targets:
            targets[name][integral] = None
    combinations = {
        family.name: dict.fromkeys(c for part in parts if part.family is family for c in part.combinations) for family in families
    }
    origin: dict[str, str] = {}
    for family, combination in ((part.family, c) for part in parts for c in part.combinations):
        if origin.setdefault(combination.name, combination.where) != combination.where:
            raise InputError(f"{jobs}: two lists have a combination {combination.name!r}: {origin[combination.name]}; {combination.where}")
        if family not in families and any(combination.name == c.name for some in combinations.values() for c in some):
            raise InputError(f"{combination.where}: {combination.name} has integrals of {family.name}, too; leave out --family")
    requests = [Request(family, tuple(targets[family.name]), tuple(combinations[family.name])) for family in families]
    requests = [request for request in requests if request.integrals]
    if not requests:
        raise InputError(f"{jobs}: selects no integrals of {', '.join(f.name for f in families)}; give --integral or --integrals")
    return requests


def read_jobs(path: Path, families: dict[str, KiraFamily]) -> KiraSelection:
    """What jobs.yaml wants. Raises InputError for what would change the result and is not supported."""
    parts = []
    for number, job in enumerate(expect(read_yaml(path, "jobs"), list, f"{path}: jobs"), 1):
        if not isinstance(job, dict) or len(job) != 1:
            raise InputError(f"{path}: job {number}: expected one mapping such as reduce_sectors: ...")
        ((kind, data),) = job.items()
        where = f"{path}: {kind}"
        if kind in EXPORT_JOBS:
            parts.append(KiraSelection(named=(kind,)))
        elif kind == "reduce_user_defined_system":
            raise InputError(f"{where}: give its equations to the command 'solve'")
        elif kind == "reduce_sectors":
            parts.append(_kira_job(expect(data, dict, where), path.parent, families, where))
        else:
            raise InputError(f"{path}: unknown job {reprlib.repr(kind)}; known: reduce_sectors, {', '.join(EXPORT_JOBS)}")
    listed = (f.name for f in fields(KiraSelection) if f.name != "symmetries")
    return KiraSelection(
        *(tuple(dict.fromkeys(item for part in parts for item in getattr(part, name))) for name in listed),
        symmetries=any(part.symmetries for part in parts),
    )


def _kira_job(data: dict, directory: Path, families: dict[str, KiraFamily], where: str) -> KiraSelection:
    selects = expect(data.get("select_integrals", ""), dict, f"{where}: select_integrals")
    masters = ("preferred_masters", "select_masters")
    for key in (*data, *selects):
        if key in JOB_REFUSED:
            raise InputError(f"{where}: {key} is not supported; remove it")
    check_keys(data, ("select_integrals", *masters, "run_symmetries", *JOB_NAMED), where)
    known = ("select_mandatory_list", "select_mandatory_recursively", "check_masters", *masters)
    optional = ("select_optional_list", "select_optional_recursively")
    check_keys(selects, (*known, *optional), f"{where}: select_integrals")
    lists, ranges = [], []
    for entry in expect(selects.get(known[0], ""), list, f"{where}: {known[0]}"):
        names = expect_texts(entry, f"{where}: {known[0]}")
        if len(names) not in (1, 2) or (len(names) == 2 and names[0] not in families):
            raise InputError(f"{where}: {known[0]}: expected [family, file] with a family out of {', '.join(families)}, or [file]")
        lists.append((names[0] if len(names) == 2 else None, directory / names[-1]))
    for entry in expect(selects.get(known[1], ""), list, f"{where}: {known[1]}"):
        ranges += _kira_range(entry, families, f"{where}: {known[1]}")
    preferred = [directory / expect(part[key], str, f"{where}: {key}") for part in (data, selects) for key in masters if key in part]
    named = [key for key in (*data, *selects) if key in (*JOB_NAMED, *optional)]
    switch = expect(data.get("run_symmetries", "false"), str, f"{where}: run_symmetries").strip().lower()
    if switch not in ("true", "false"):
        raise InputError(f"{where}: run_symmetries: expected true or false, not {reprlib.repr(switch)}")
    return KiraSelection(tuple(lists), tuple(ranges), tuple(preferred), tuple(named), switch == "true")


def _kira_range(entry: Any, families: dict[str, KiraFamily], where: str) -> list[tuple[str, Index]]:
    """All integrals with at most this r, s and number of dots in these sectors and below."""
    if not isinstance(entry, dict):
        raise InputError(f"{where}: expected {{topologies: [...], sectors: [...], r: , s: , d: }}, not {reprlib.repr(entry)}")
    check_keys(entry, ("topologies", "sectors", "r", "s", "d"), where)
    names = expect_texts(entry.get("topologies", list(families)), f"{where}: topologies")
    r, s = (expect_number(entry.get(key), f"{where}: {key}") for key in ("r", "s"))
    if max(r, s) > LARGEST_INDEX:
        raise InputError(f"{where}: r = {r}, s = {s}; at most {LARGEST_INDEX} is taken")
    found: list[tuple[str, Index]] = []
    for name in names:
        if name not in families:
            raise InputError(f"{where}: topologies: {name!r} is none of the families {', '.join(families)}")
        n = families[name].family.n
        texts = expect_texts(entry["sectors"], f"{where}: sectors") if "sectors" in entry else tuple(map(str, families[name].tops))
        tops = [read_sector(text, n, f"{where}: sectors") for text in texts]
        if any(top.bit_count() > LARGEST_SECTOR for top in tops):
            raise InputError(f"{where}: a sector of more than {LARGEST_SECTOR} lines; list the integrals that are wanted in a file")
        below = sorted({bits for top in tops for bits in subsectors(top)}, key=sector_order)
        sizes = []
        for bits in below:
            dots = min(r - bits.bit_count(), expect_number(entry["d"], f"{where}: d") if "d" in entry else r)
            if dots >= 0:
                sizes.append((bits, dots))
        count = sum(math.comb(bits.bit_count() + dots, dots) * math.comb(n - bits.bit_count() + s, s) for bits, dots in sizes)
        if len(found) + count > LARGEST_SELECTION:
            raise InputError(f"{where}: more than {LARGEST_SELECTION:,} integrals; list those that are wanted in a file")
        found += [(name, integral) for bits, dots in sizes for integral in integrals_near_corner(bits, n, dots, s)]
    return found


def subsectors(top: int) -> Iterator[int]:
    """Every sector but 0 whose lines are lines of this one."""
    bits = top
    while bits:
        yield bits
        bits = (bits - 1) & top
