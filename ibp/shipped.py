"""What comes with the program: rules, weights, published figures, families; each a real file on disk.

They stand in data/ at the top of a checkout, and in ibp/data of an installed package. A program that is one zip file (ibp/bundle.py) has
them in its ibp/data, which SQLite cannot read: what is asked for is extracted into a directory of this process alone, removed at its end.
`shipped` gives the path of a file, `shipped_names` what a folder of them holds, `program` what Python runs.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from executors.files import replace_file

ROOM = Path(__file__).resolve().parent
MEMBERS = "ibp/data/"  # where a zip file that holds the program has them


def shipped(name: str) -> Path:
    """The file 'rules.shelf' or 'families/box.json'. Where it was not copied along, nothing is at that path. Raises OSError."""
    return _extracted(name) if in_archive() else _folder() / name


def shipped_names(folder: str = "") -> list[str]:
    """The files of a folder, sorted: 'box.json' for `shipped('families/box.json')`. Of no folder: all files of all, 'families/box.json'.

    Raises OSError.
    """
    if in_archive():
        inside = f"{MEMBERS}{folder}/" if folder else MEMBERS
        with _opened() as archive:
            names = [name.removeprefix(inside) for name in archive.namelist() if name.startswith(inside)]
        return sorted(name for name in names if not (folder and "/" in name))
    place = _folder() / folder
    return sorted(path.relative_to(place).as_posix() for path in place.glob("*" if folder else "**/*") if path.is_file())


def in_archive() -> bool:
    """Whether this program runs from a zip file."""
    return ROOM.parent.is_file()


def program() -> Path:
    """What `python PROGRAM` runs: ibp_reduce.py, or the zip file."""
    return ROOM.parent if in_archive() else ROOM.parent / "ibp_reduce.py"


def _folder() -> Path:
    installed = ROOM / "data"
    return installed if installed.is_dir() else ROOM.parent / "data"


def _opened() -> Any:
    import zipfile

    return zipfile.ZipFile(ROOM.parent)


@cache
def _scratch() -> Any:
    """A directory that only this user may enter; it goes with this object, at the end of the process."""
    import tempfile

    return tempfile.TemporaryDirectory(prefix="ibp-reduce-")


def _extracted(name: str) -> Path:
    path = Path(_scratch().name, name)
    if not path.exists():
        with _opened() as archive:
            if MEMBERS + name in archive.NameToInfo:
                path.parent.mkdir(parents=True, exist_ok=True)
                replace_file(path, archive.read(MEMBERS + name))
    return path
