#!/usr/bin/env python3
"""How tasks run, knowing no physics.

    with LocalExecutor(8, timeout_s=600) as executor:
        futures = [executor.submit(work, item) for item in items]
        for future in concurrent.futures.as_completed(futures):
            print(future.result())

Every executor is a `concurrent.futures.Executor` with the same behaviour. Calls and outcomes travel as pickles, even
inline, so what works inline works everywhere: `fn` is a module-level function, arguments and results pickle. An
exception of `fn` is raised again by `future.result()`; its `__cause__` shows the traceback from where it happened.

    with CondorExecutor("work/condor", stragglers=TimeLimits(1800), straggler_cpus=8) as executor: ...

runs the same tasks as jobs of HTCondor, and finds them again after its own death. From there only builtin types come
back: nothing that a job writes is ever executed here.
POSIX (Linux, macOS); standard library, and filelock for claim_directory.

Sections: constants, errors, tasks, job protocol, executors in common, inline executor, local executor, directories,
call and outcome files, HTCondor's tools, condor executor, job side
"""

from __future__ import annotations

import faulthandler
import importlib.util
import os
import pickle
import sys
import time
from pathlib import Path

from executors.calls import OUTCOME_FORMAT, foreign_type, read_call
from executors.condor import MAIN_COPY
from executors.errors import ExecutorError
from executors.files import load_builtins, peak_memory_kb, replace_file
from executors.local import THREAD_VARIABLES
from executors.tasks import PICKLE_PROTOCOL, digest_of, dump_error, perform

DISK_PAUSES_S = (1, 5, 20)  # a job whose outcome cannot be written waits so long between its attempts


def main(argv=None) -> int:
    """What a job runs: condor_worker.py DIRECTORY TASK CPUS performs DIRECTORY/TASK.call and leaves TASK.out there.

    Exit codes: 0 done, also where the function raised; 2 the call cannot be read; 3 the outcome cannot be written.
    """
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
    outcome = builtin_outcome(run_call(call, cpus))
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
    return write_outcome(directory / f"{name}.out", pickle.dumps(content, PICKLE_PROTOCOL))


def run_call(call, cpus):
    """The outcome of a call file's call, in a process that looks to it like a child of the submitter."""
    sys.path[:] = dict.fromkeys([*map(os.path.abspath, call["sys_path"]), *sys.path])
    try:
        if call["main"] is not None:
            load_main(call["main"] if os.path.exists(call["main"]) else MAIN_COPY)
    except BaseException as error:
        return dump_error(error)
    return perform(call["call"], cpus=cpus)


def load_main(path):
    """Make what the submitter's main program defines loadable, as multiprocessing does for a spawned process.

    As an import, because that is compiled once and then read from __pycache__; a job may be shorter than the compilation.
    """
    spec = importlib.util.spec_from_file_location("__mp_main__", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module
    spec.loader.exec_module(module)
    module.__spec__ = None  # or a process that a task starts would look for a module of that name instead of this file


def builtin_outcome(outcome):
    """An outcome of `perform` without what is not of a builtin type: an error says so in the place of such a value."""
    try:
        kind, *fields = load_builtins(outcome)
    except Exception:  # whatever a foreign __reduce__ leads to
        name = foreign_type(pickle.loads(outcome)[1])
        fields = [None, "NotPicklable", f"the result holds {name}; from a cluster only builtin types come back", ""]
        kind = "error"
    return outcome if kind == "ok" else pickle.dumps(("error", *fields[1:]), PICKLE_PROTOCOL)


def write_outcome(path, content):
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
    # The module, not this script: a task that asks condor_worker.task_cpus() must find what was set.
    from condor_worker import main as job_main

    sys.exit(job_main())
