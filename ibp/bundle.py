"""The whole program as one file that runs: a zip archive with the programs, their rooms and data, behind a line for the shell.

    python ibp_reduce.pyz --local 8            # ibp_reduce.py
    python ibp_reduce.pyz explore --help       # explorer.py
    python ibp_reduce.pyz condor-worker …      # condor_worker.py, as jobs run it

`write_bundle` makes it, of the same files always the same bytes.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

from executors.program import WORD, add_member
from ibp.console import write_output
from ibp.errors import InputError
from ibp.shipped import MEMBERS, ROOM, in_archive, program, shipped, shipped_names

PROGRAMS = ("condor_worker.py", "explorer.py", "ibp_reduce.py", "LICENSE")
PACKAGES = ("executors", "ibp", "phases")
FIRST_LINE = b"#!/usr/bin/env python3\n"
MAIN = """\
import importlib
import os
import sys

sys.path[0] = os.path.abspath(sys.path[0])  # tasks may change the directory
OTHERS = {"WORD": "condor_worker", "explore": "explorer"}


def main():
    other = OTHERS.get("".join(sys.argv[1:2]))
    return importlib.import_module(other or "ibp_reduce").main(sys.argv[2 if other else 1 :])


if __name__ == "__main__":
    sys.exit(main())
"""


def write_bundle(path: Path) -> None:
    """Write the program, wherever it runs from, as one file. Raises InputError for a file of another kind, ReductionError."""
    if path.is_file() and not zipfile.is_zipfile(path):
        raise InputError(f"bundle {path}: there is such a file already, and it is no bundle; give another name")
    write_output(path, program().read_bytes() if in_archive() else _bundle(), "bundle", "give another name")
    mode = path.stat().st_mode
    path.chmod(mode | (mode & 0o444) >> 2)  # whoever may read it may run it


def _bundle() -> bytes:
    buffer = io.BytesIO(FIRST_LINE)
    buffer.seek(len(FIRST_LINE))
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in _members():
            add_member(archive, name, content)
    return buffer.getvalue()


def _members() -> Iterator[tuple[str, bytes]]:
    top = ROOM.parent
    yield "__main__.py", MAIN.replace("WORD", WORD).encode()
    for path in (*map(top.joinpath, PROGRAMS), *(path for package in PACKAGES for path in sorted((top / package).glob("*.py")))):
        if path.exists():  # the licence does not stand beside installed programs
            yield path.relative_to(top).as_posix(), path.read_bytes()
    for name in shipped_names():
        yield MEMBERS + name, shipped(name).read_bytes()
