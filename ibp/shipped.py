"""The files that come with the program: data/ beside the package.

`shipped` is the path of one of them, `shipped_names` lists a folder.
"""

from __future__ import annotations

from pathlib import Path

_DATA = Path(__file__).resolve().parent.parent / "data"


def shipped(name: str) -> Path:
    """The path of a file of data/, which need not be there."""
    return _DATA / name


def shipped_names(folder: str) -> list[str]:
    """Names of the files in a folder of data/, sorted; none where the folder is not there."""
    path = _DATA / folder
    return sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
