#!/usr/bin/env python3
"""What a job runs: `condor_worker.py DIRECTORY TASK CPUS` performs DIRECTORY/TASK.call and leaves its outcome as TASK.out there.

It starts nothing by itself and knows nothing of HTCondor or of the task but the call file, so that a person can run it too, to see what
a job does. The folder executors/ has to stand beside it; a zip file of the program runs it as `program.pyz condor-worker …`.
"""

from __future__ import annotations

import faulthandler
import importlib.util
import os
import pickle
import sys
import time
from pathlib import Path

from executors.calls import MAIN_COPY, OUTCOME_FORMAT, foreign_type, read_call
from executors.errors import ExecutorError
from executors.files import load_builtins, peak_memory_kb, replace_file
from executors.tasks import PICKLE_PROTOCOL, THREAD_VARIABLES, digest_of, dump_error, perform

DISK_PAUSES_S = (1, 5, 20)  # a job whose outcome cannot be written waits so long between its attempts


def main(argv=None) -> int:
    """Exit codes: 0 done, also where the function raised; 2 the call cannot be read; 3 the outcome cannot be written."""
    arguments = sys.argv[1:] if argv is None else argv
    try:
        directory, name, cpus = Path(arguments[0]).absolute(), arguments[1], int(arguments[2])
        call = read_call(directory / f"{name}.call", name)
    except (IndexError, ValueError):
        print("usage: condor_worker.py DIRECTORY TASK CPUS", file=sys.stderr)
        return 2
    except ExecutorError as error:
        print(error, file=sys.stderr)
        return 2
    faulthandler.enable()  # a crash in compiled code names the Python line
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))  # HTCondor sets them to the number of CPUs; our processes share those
    started = time.monotonic()
    outcome = _builtin_outcome(_run_call(call, cpus))
    content = {
        "format": OUTCOME_FORMAT,
        "task": name,
        "call": call["digest"],
        "digest": digest_of(outcome),
        "outcome": outcome,
        "host": os.uname().nodename,
        "python": sys.version.split()[0],
        "seconds": time.monotonic() - started,
        "peak_memory_kb": peak_memory_kb(with_children=True),
        "cpus": cpus,
    }
    return _write_outcome(directory / f"{name}.out", pickle.dumps(content, PICKLE_PROTOCOL))


def _run_call(call, cpus):
    """The outcome of a call file's call, in a process that looks to it like a child of the submitter."""
    own = sys.path[:1] if call["transferred"] else []  # the program that came with the call goes before one that stands here, too
    sys.path[:] = dict.fromkeys([*map(os.path.abspath, own + call["sys_path"]), *sys.path])
    try:
        if call["main"] is not None:
            _load_main(os.path.abspath(MAIN_COPY) if call["transferred"] else call["main"])
    except BaseException as error:
        return dump_error(error)
    return perform(call["call"], cpus=cpus)


def _load_main(path):
    """Make what the submitter's main program defines loadable, as multiprocessing does for a spawned process.

    As an import, because that is compiled once and then read from __pycache__; a job may be shorter than the compilation.
    """
    spec = importlib.util.spec_from_file_location("__mp_main__", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module
    spec.loader.exec_module(module)
    module.__spec__ = None  # or a process that a task starts would look for a module of that name instead of this file


def _builtin_outcome(outcome):
    """An outcome of `perform` without what is not of a builtin type: an error says so in the place of such a value."""
    try:
        kind, *fields = load_builtins(outcome)
    except Exception:  # whatever a foreign __reduce__ leads to
        name = foreign_type(pickle.loads(outcome)[1])
        fields = [None, "NotPicklable", f"the result holds {name}; from a cluster only builtin types come back", ""]
        kind = "error"
    return outcome if kind == "ok" else pickle.dumps(("error", *fields[1:]), PICKLE_PROTOCOL)


def _write_outcome(path, content):
    """Exit code of the job: 0, or 3 where the disk stays full."""
    for pause_s in (*DISK_PAUSES_S, None):
        try:
            replace_file(path, content, sync=True)
            return 0
        except OSError as error:
            if pause_s is None:
                print(f"the outcome {path} cannot be written: {error}", file=sys.stderr)
                return 3
            time.sleep(pause_s)


if __name__ == "__main__":
    sys.exit(main())
