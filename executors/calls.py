"""Call and outcome files: what a job reads, and what it leaves.

Both are a pickled dict of builtin types, in which the pickle of the call or outcome proper is bytes. A call is trusted: it lies in a
directory of ours. An outcome comes from elsewhere and is read by load_builtins only: `read_outcome` executes nothing that a job wrote.
"""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

from executors.errors import ExecutorError, NoOutcome
from executors.files import load_builtins
from executors.tasks import PICKLE_PROTOCOL, digest_of, remote_error

CALL_FORMAT, OUTCOME_FORMAT = 2, 1
MAIN_COPY = "submitter_main.py"  # the main program, where HTCondor transfers files


def foreign_type(value):
    """The name of a type in a value that is not builtin, or ''."""
    stack, seen, plain = [value], set(), (str, bytes, bytearray, int, float, complex, bool, type(None))
    while stack:
        item = stack.pop()
        if type(item) in plain or id(item) in seen:
            continue
        seen.add(id(item))
        if type(item) is dict:
            stack += [*item.keys(), *item.values()]
        elif type(item) in (tuple, list, set, frozenset):
            stack += item
        else:
            return f"{type(item).__module__}.{type(item).__qualname__}"
    return ""


def main_program(call):
    """The file of the main program, if a call names something that is defined there, else None."""
    main = getattr(sys.modules["__main__"], "__file__", None)
    return os.path.abspath(main) if main and b"__main__" in call and os.path.isfile(main) else None


def call_file(name, call, transferred):
    """(content, digest of the call) of a call file: the call, and what the job must know to load it."""
    digest = digest_of(call)
    header = {
        "format": CALL_FORMAT,
        "task": name,
        "transferred": transferred,
        "sys_path": [os.path.abspath(entry) for entry in sys.path],
        "main": main_program(call),
        "digest": digest,
        "call": call,
    }
    return pickle.dumps(header, PICKLE_PROTOCOL), digest


def read_call(path, name):
    """The content of a call file. Raises ExecutorError."""
    try:
        header = load_builtins(Path(path).read_bytes())
        sound = header["format"] == CALL_FORMAT and header["task"] == name and header["digest"] == digest_of(header["call"])
    except Exception as error:  # whatever a damaged pickle raises
        raise ExecutorError(f"the call {path} cannot be read ({type(error).__name__}: {error})") from error
    if not sound:
        raise ExecutorError(f"the call {path} is damaged or of another version")
    return header


def read_outcome(path, name, call_digest):
    """(value, None, report) or (None, exception, report) from an outcome file. Raises NoOutcome, saying why."""
    try:
        content = load_builtins(Path(path).read_bytes())
        outcome, report = content["outcome"], {"host": str(content["host"]), "seconds": float(content["seconds"])}
        report |= {key: int(content[key]) for key in ("peak_memory_kb", "cpus")}
        if (content["format"], content["task"], content["digest"]) != (OUTCOME_FORMAT, name, digest_of(outcome)):
            raise NoOutcome("its outcome is not that of this task")
        if content.get("call", call_digest) != call_digest:
            raise NoOutcome("its outcome is that of another call")
        kind, *fields = load_builtins(outcome)
        value, error = (fields[0], None) if kind == "ok" else (None, remote_error(*fields))
    except FileNotFoundError:
        raise NoOutcome("it left no outcome") from None
    except NoOutcome:
        raise
    except Exception as error:  # whatever a damaged or foreign file raises
        raise NoOutcome(f"its outcome cannot be read ({type(error).__name__}: {error})") from error
    return value, error, report
