"""Files that are seen whole or not at all, pickles of builtin types, and what else of the system any program needs."""

from __future__ import annotations

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
    """For what comes from elsewhere: builtin types only. Raises ForeignType."""

    def find_class(self, module, name):
        if (module, name) == ("builtins", "complex"):  # which alone among them is pickled by name
            return complex
        raise ForeignType(f"names {module}.{name}; only builtin types are accepted")


def load_builtins(pickled):
    """The value of a pickle of builtin types; nothing in it is executed. Raises ForeignType, and whatever damage raises."""
    return BuiltinsUnpickler(io.BytesIO(pickled)).load()


def peak_memory_kb():
    """Peak of this process plus that of its largest child."""
    unit = 1024 if sys.platform == "darwin" else 1
    return sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) // unit
