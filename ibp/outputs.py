"""What a run writes: its result, and what was asked for beside it.

`Outputs` says what goes where, checks that the names in a result can be written so, and writes it; `convert_result` does the same for a
result that is there.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ibp.certificates import make_certificate, pack_certificate
from ibp.coefficients import expand_result, parse_expansion, symbols_of
from ibp.console import write_output
from ibp.errors import InputError
from ibp.exports import check_export_names, export_path, targets_with_names, write_exports
from ibp.families import cut_lines
from ibp.paths import write_paths
from ibp.problems import Outcome, Problem
from ibp.records import result_record, write_pickle
from ibp.verification import read_result


@dataclass(frozen=True)
class Outputs:
    """result: the pickle; formats: names of exports; epsilon: what d is, where coefficients are to be expanded, through this order."""

    result: Path
    formats: tuple[str, ...] = ()
    epsilon: str | None = None
    order: int = 0
    certificate: Path | None = None
    paths: Path | None = None

    def beside(self) -> dict[str, Path]:
        """Exports and certificate, by the option that asks for each."""
        files = {} if self.certificate is None else {"--certificate": self.certificate}
        for name in self.formats:
            files[f"--export {name}"] = export_path(self.result, name)
            if self.epsilon is not None:
                files[f"--epsilon and --export {name}"] = export_path(self.result, name, expanded=True)
        return files

    def check_names(self, family: str, symbols: Collection[str], combinations: Sequence[str] = (), derivatives: bool = False) -> None:
        """Raises InputError where a format cannot hold a result with these names."""
        for name in self.formats:
            check_export_names(name, family, symbols, combinations, derivatives)

    def write_record(self, record: dict[str, Any], pickled: bool = True) -> list[Path]:
        """The record, which is expanded first if asked for, and its exports: what was written. Raises InputError, ReductionError."""
        if self.epsilon is not None:
            record["epsilon"] = expand_result(record, parse_expansion(self.epsilon, self.order, symbols_of(record)))
        if pickled:
            write_pickle(record, self.result)
        return [self.result] * pickled + write_exports(record, self.result, self.formats)

    def write(self, problem: Problem, outcome: Outcome, cuts: Sequence[int] = ()) -> None:
        """The result modulo a prime and all that was asked for beside it. Raises ReductionError."""
        record = result_record(problem, outcome)
        if cuts:
            record["cuts"] = [cut_lines(cut) for cut in cuts]
        self.write_record(record)
        if self.paths is not None:
            write_paths(problem, outcome.paths, self.paths)
        if self.certificate is not None:
            content = pack_certificate(make_certificate(problem, outcome))
            write_output(self.certificate, content, "certificate", f"the result is in {self.result}")


def convert_result(source: Path, outputs: Outputs, pickled: bool) -> tuple[dict[str, Any], list[Path]]:
    """A result that is there, expanded if asked for, and the files it was written to. pickled: whether outputs.result is one of them.

    Raises InputError, ReductionError.
    """
    record = read_result(source)
    for what, path in (({"--output": outputs.result} if pickled else {}) | outputs.beside()).items():
        if os.path.realpath(path) == os.path.realpath(source):
            raise InputError(f"{what} {path}: is the result to be converted; give another --output")
    outputs.check_names(record["family"], symbols_of(record), targets_with_names(record))
    return record, outputs.write_record(record, pickled)
