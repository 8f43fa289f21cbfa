"""Files that are seen whole or not at all, pickles of builtin types, standard streams and what else of the system any program needs."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import resource
import sys
import threading
from pathlib import Path

from executors.errors import ForeignType


def ensure_standard_streams():
    """For a program started with some of them closed (cron, >&-): else the next file that is opened would take their place."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number that is free, also in processes it starts
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))


def say_line(program: str, line: str) -> None:
    """One line on stderr, whatever is in it, behind the name of the program that says it."""
    line = " ".join(line.split())
    with contextlib.suppress(OSError):  # nobody may read stderr any more; that must not end a run
        print(f"{program}: {line if len(line) < 900 else line[:900] + ' ...'}", file=sys.stderr, flush=True)


def replace_file(path, content, sync=False):
    """Write a file that is seen whole or not at all."""
    temporary = Path(f"{path}.{os.uname().nodename}.{os.getpid()}.{threading.get_ident()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class BuiltinsUnpickler(pickle.Unpickler):
    """For what comes from elsewhere: builtin types only."""

    def find_class(self, module, name):
        """Raises ForeignType for all but one of them, which is pickled by name."""
        if (module, name) == ("builtins", "complex"):
            return complex
        raise ForeignType(f"names {module}.{name}; only builtin types are accepted")


def load_builtins(pickled):
    """The value of a pickle of builtin types; nothing in it is executed. Raises ForeignType, and whatever damage raises."""
    return BuiltinsUnpickler(io.BytesIO(pickled)).load()


def peak_memory_kb(with_children=False):
    """Largest resident memory of this process so far, with_children: plus that of its largest child."""
    unit = 1024 if sys.platform == "darwin" else 1
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)[: 1 + with_children]
    return sum(resource.getrusage(who).ru_maxrss for who in whose) // unit


def why_not_writable(path: Path, is_directory: bool = False) -> str:
    """Why a file or directory could not be written, "" if it could be; creates nothing."""
    try:
        if path.exists() and not (path.is_dir() if is_directory else path.is_file()):
            return f"is not a {'directory' if is_directory else 'regular file'}"
        place = path if is_directory else path.parent
        while not place.exists():
            place = place.parent
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            return f"{place} is not a directory that can be written"
    except OSError as error:
        return error.strerror or str(error)
    return ""
