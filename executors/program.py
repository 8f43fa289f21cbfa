"""What a job runs: a script of the shared file system, or one file that travels with the job.

`HOME` is the folder or the zip file that this program runs from; a zip file's first word says which of its programs is meant.
`worker_command` is for jobs that see HOME; `packed` makes a zip file of what others need, `modules_of` tells what that is for a call.
`add_member` writes into a zip file of a program, where beside a source stands what this version of Python has compiled of it, as Python
keeps none of that for a zip file (0.4 s at each start); another version takes the source.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import marshal
import pickle
import sys
import sysconfig
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
WORD = "condor-worker"  # of a zip file
MAIN = "import sys\n\nimport condor_worker\n\nsys.exit(condor_worker.main(sys.argv[2:]))\n"
STANDARD_LIBRARY = Path(sysconfig.get_path("stdlib")).resolve()
OLDEST = (1980, 1, 1, 0, 0, 0)  # time that a zip file can tell
# References within bytecode depend on what else the process holds; version 2 has none, but cannot hold all constants of Python 3.14.
MARSHAL = 2 if marshal.version < 5 else marshal.version


def worker_command() -> list[str]:
    """What Python is to run, before DIRECTORY TASK CPUS."""
    return [str(HOME), WORD] if HOME.is_file() else [str(HOME / "condor_worker.py")]


def packed(modules: Iterable[str]) -> bytes:
    """A zip file that runs like the program's own, with these modules and packages beside it; of the same files always the same bytes."""
    content = io.BytesIO()
    if HOME.is_file():
        content.write(HOME.read_bytes())
    with zipfile.ZipFile(content, "a", zipfile.ZIP_DEFLATED) as archive:
        present = set(archive.namelist())
        if not present:
            add_member(archive, "__main__.py", MAIN.encode())
            add_member(archive, "condor_worker.py", (HOME / "condor_worker.py").read_bytes())
        for name in sorted({"executors", *modules}):
            if f"{name}/__init__.py" not in present and f"{name}.py" not in present:
                for member, path in _sources(name):
                    add_member(archive, member, path.read_bytes())
    return content.getvalue()


def add_member(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    """Write a file, and if it is a source what is compiled of it: of the same content always the same bytes."""
    members = {name: content}
    if name.endswith(".py"):
        with contextlib.suppress(SyntaxError, ValueError):  # nothing imports it then
            code = marshal.dumps(compile(content, name, "exec", dont_inherit=True), MARSHAL)
            taken_unseen = (1).to_bytes(4, "little")  # without a look at the source (PEP 552)
            members[f"{name}c"] = importlib.util.MAGIC_NUMBER + taken_unseen + importlib.util.source_hash(content) + code
    for member_name, member_content in members.items():
        member = zipfile.ZipInfo(member_name, OLDEST)
        member.external_attr = 0o644 << 16
        archive.writestr(member, member_content, archive.compression, archive.compresslevel)


def _sources(name: str) -> Iterator[tuple[str, Path]]:
    """The files of a top-level module or package, none of one that is installed with Python: every host has it that has this Python."""
    module = sys.modules.get(name)
    folders = [Path(folder).resolve() for folder in getattr(module, "__path__", ())]
    for folder in folders:
        if not _is_installed(folder) or _is_ours(name):
            yield from ((f"{name}/{path.relative_to(folder).as_posix()}", path) for path in sorted(folder.rglob("*.py")))
    if not folders and (file := getattr(module, "__file__", None)):
        path = Path(file).resolve()
        if path.suffix == ".py" and path.is_file() and not _is_installed(path):
            yield f"{name}.py", path


def _is_installed(path: Path) -> bool:
    return bool({"site-packages", "dist-packages"}.intersection(path.parts)) or path.is_relative_to(STANDARD_LIBRARY)


def _is_ours(name: str) -> bool:
    """Whether a package that is installed came with this program: Python on other hosts may have everything but that."""
    from importlib.metadata import packages_distributions

    known = packages_distributions()
    return name == "executors" or not set(known.get(name, ())).isdisjoint(known.get("executors", ()))


def modules_of(call: bytes) -> frozenset[str]:
    """Top-level names of the modules that a pickled call of ours names, other than the main program."""
    finder = _ModuleFinder(io.BytesIO(call))
    with contextlib.suppress(Exception):  # what does not load here does not load there: its job will say so
        finder.load()
    return frozenset(finder.found - {"__main__"})


class _ModuleFinder(pickle.Unpickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.found: set[str] = set()

    def find_class(self, module_name: str, global_name: str) -> object:
        self.found.add(module_name.partition(".")[0])
        return super().find_class(module_name, global_name)
