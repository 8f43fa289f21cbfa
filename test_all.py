"""All tests, in sections that mirror the files.

    python -m pytest                  # what CI runs
    python -m pytest -m slow          # searches from nothing that take minutes; chaos on a real HTCondor pool
    python -m pytest -m condor        # what needs a pool (skipped where condor_submit is missing)

Parts: executors (condor_worker.py), HTCondor through fake tools and on a real pool; the reduction itself against oracles, closed forms,
golden values and laws; the program from outside: bad input, command line, pickle, store, processes; symmetries and cuts; one-step
tasks, their controller and journal. Nothing is compared with a former run of the program, every wait is for an
event with a deadline, and the oracles share no code with what they test.
"""

import concurrent.futures
import contextlib
import ctypes
import dataclasses
import enum
import functools
import hashlib
import html.parser
import importlib.abc
import importlib.util
import io
import itertools
import json
import math
import os
import pickle
import py_compile
import random
import re
import resource
import shlex
import shutil
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import traceback
import tracemalloc
import zlib
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import condor_worker
import explorer as ex
import ibp_reduce
from condor_worker import (
    CondorExecutor,
    CondorMissing,
    Description,
    DirectoryRefused,
    ExecutorError,
    InlineExecutor,
    LocalExecutor,
    NotPicklable,
    RemoteError,
    Shared,
    SubmitFailed,
    TaskDied,
    TaskHeld,
    TaskTimeout,
    TimeLimits,
    claim_directory,
    private_directory,
    queue_counts,
    remove_run,
    task_cpus,
)
from explorer import (
    MODES,
    PARAMETERS,
    ActiveLearningExplorer,
    Box,
    Cell,
    Clusters,
    Couplings,
    Explorer,
    ExplorerError,
    Lattice,
    PhaseType,
    classify,
    energy,
    ideal_state,
    luttinger_tisza,
    normalised,
    simulate,
    structure_factor,
    topological_charge,
    triangle_chirality,
)
from ibp_reduce import (
    BUILT_IN_FAMILIES,
    BatchPlan,
    Controller,
    Family,
    Frontier,
    InputError,
    Journal,
    Knowledge,
    Layout,
    Neighbourhood,
    Outcome,
    Point,
    Problem,
    Progress,
    ReductionError,
    Rule,
    RunDirectory,
    Sector,
    SectorKnowledge,
    StepController,
    Store,
    Terms,
    carry_sector,
    corner,
    derive_identities,
    evaluate_identities,
    find_masters,
    find_nonzero_sectors,
    generic_point,
    invert,
    layout_for,
    load_family,
    merge,
    null_vector,
    pack_keys,
    propagate,
    reduce_steps,
    sector_of,
    sector_order,
    sum_by_key,
    unpack_keys,
    weight,
)

HERE = Path(__file__).resolve().parent
DEADLINE_S = 90  # for events that come in a second or two on an idle machine


@pytest.fixture(scope="session", autouse=True)
def interruptible():
    """A shell's background job ignores Ctrl-C, and so would every program that the tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# =====================================================================================================================
# Executors
# =====================================================================================================================


# what the executors run ---------------------------------------------------------------------------------------------


def square(x):
    return x * x


def add(x, *, y=0):
    return x + y


class SectorError(ValueError):
    pass


class TwoArguments(Exception):
    """Pickles, but does not unpickle."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


class NotEven(Exception):
    """Does not pickle."""

    def __reduce__(self):
        raise TypeError("no way")


class Unspeakable(NotEven):
    def __str__(self):
        raise TypeError("no way")


def fail(exception_type, *args):
    raise exception_type(*args)


def return_lock():
    return threading.Lock()


def leave(code):
    sys.exit(code)


def append_to(numbers):
    numbers.append(len(numbers))
    return numbers


def environment(name):
    return os.environ.get(name)


def process_id():
    return os.getpid()


def note_attempt(folder):
    """Leave a file named by this process in a folder, and return how many there are now."""
    (Path(folder) / str(os.getpid())).touch()
    return len(attempts(folder))


def block_first(folder):
    """Block forever in the first attempt; the number of the attempt in later ones."""
    if note_attempt(folder) == 1:
        threading.Event().wait()
    return len(attempts(folder))


def block(folder):
    note_attempt(folder)
    threading.Event().wait()


def block_until(path, folder):
    """The number of attempts, once there is a file."""
    note_attempt(folder)
    wait_until(Path(path).exists)
    return len(attempts(folder))


def kill_self(folder, signal_number):
    print("last words")
    note_attempt(folder)
    os.kill(os.getpid(), signal_number)


def exit_self(code):
    os._exit(code)


def scaled(array, factor):
    return array * factor


def attempts(folder):
    return [int(path.name) for path in Path(folder).iterdir()]


def wait_until(condition):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def exists(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


# both executors -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pool():
    with LocalExecutor(2) as executor:
        executor.warm_up()
        yield executor


@pytest.fixture(params=["inline", "local"])
def executor(request):
    if request.param == "local":
        yield request.getfixturevalue("pool")
    else:
        with InlineExecutor() as inline:
            inline.warm_up()
            yield inline


@pytest.fixture(params=[InlineExecutor, lambda: LocalExecutor(1)], ids=["inline", "local"])
def fresh(request):
    with request.param() as executor:
        yield executor


def test_results_do_not_depend_on_order(executor):
    numbers = list(range(60))
    random.Random(3).shuffle(numbers)
    futures = {executor.submit(square, x): x for x in numbers}
    assert {futures[f]: f.result(DEADLINE_S) for f in concurrent.futures.as_completed(futures, DEADLINE_S)} == {x: x * x for x in numbers}
    assert list(executor.map(square, numbers)) == [x * x for x in numbers]
    assert executor.submit(add, 1, y=2).result(DEADLINE_S) == 3
    assert executor.processes in (1, 2)


def test_arguments_travel_by_value(executor):
    numbers = [7]
    assert executor.submit(append_to, numbers).result(DEADLINE_S) == [7, 1]
    assert numbers == [7]


def test_exception_is_raised_as_itself_with_its_origin(executor):
    with pytest.raises(SectorError, match=r"^sector 42 is empty$") as info:
        executor.submit(fail, SectorError, "sector 42 is empty").result(DEADLINE_S)
    text = "".join(traceback.format_exception(info.value))
    assert "in fail\n" in text and "raise exception_type(*args)" in text
    with pytest.raises(SystemExit) as info:  # an outcome like others, not the end of the process
        executor.submit(leave, 3).result(DEADLINE_S)
    assert info.value.code == 3


@pytest.mark.parametrize(
    ("exception_type", "args", "message"),
    [(TwoArguments, ("a", "b"), "TwoArguments: a and b"), (NotEven, ("7",), "NotEven: 7"), (Unspeakable, (), "Unspeakable: <")],
)
def test_exception_that_cannot_travel_becomes_a_remote_error(executor, exception_type, args, message):
    with pytest.raises(RemoteError, match=message) as info:
        executor.submit(fail, exception_type, *args).result(DEADLINE_S)
    assert info.value.type_name == exception_type.__name__
    assert "in fail\n" in info.value.traceback_text
    assert executor.submit(square, 3).result(DEADLINE_S) == 9


def test_unpicklable_result_and_task(executor):
    with pytest.raises(NotPicklable, match="the result of return_lock .*lock"):
        executor.submit(return_lock).result(DEADLINE_S)
    with pytest.raises(NotPicklable, match="lambda"):
        executor.submit(lambda: 1).result(DEADLINE_S)
    with pytest.raises(NotPicklable, match="square or its arguments .*lock"):
        executor.submit(square, threading.Lock()).result(DEADLINE_S)
    assert executor.submit(square, 3).result(DEADLINE_S) == 9


def test_arrays(executor):
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(2_000_000, dtype=numpy.int64)  # 16 MB, far beyond the pipe's buffer
    assert numpy.array_equal(executor.submit(scaled, array, 3).result(DEADLINE_S), 3 * array)


def test_submit_after_shutdown(fresh):
    assert fresh.submit(square, 2).result(DEADLINE_S) == 4
    fresh.shutdown()
    fresh.shutdown()
    with pytest.raises(RuntimeError, match="cannot submit square"):
        fresh.submit(square, 2)


def test_keyboard_interrupt_passes_through_the_inline_executor():
    with InlineExecutor() as executor, pytest.raises(KeyboardInterrupt):
        executor.submit(fail, KeyboardInterrupt)


# local executor -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"processes": 0}, {"timeout_s": 0}, {"timeout_s": float("inf")}, {"timeout_s": float("nan")}, {"retries": -1}]
)
def test_impossible_numbers(options):
    options = {"processes": 1} | options
    with pytest.raises(ValueError, match=f"{list(options)[-1]}={list(options.values())[-1]}"):
        LocalExecutor(**options)


def test_killed_from_outside_is_tried_again_and_nobody_notices(tmp_path):
    with LocalExecutor(2) as executor:
        victim = executor.submit(block_first, tmp_path)
        others = [executor.submit(square, x) for x in range(20)]
        wait_until(lambda: attempts(tmp_path))
        os.kill(attempts(tmp_path)[0], signal.SIGKILL)
        assert victim.result(DEADLINE_S) == 2
        assert [f.result(DEADLINE_S) for f in others] == [x * x for x in range(20)]


def test_killed_while_idle_costs_no_attempt():
    with LocalExecutor(1, retries=0) as executor:
        first = executor.submit(process_id).result(DEADLINE_S)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: executor._workers[0].process.exitcode is not None)
        assert executor.submit(process_id).result(DEADLINE_S) != first


def test_task_that_always_dies(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    (tmp_path / "attempts").mkdir()
    with LocalExecutor(2, retries=2, log_dir=tmp_path / "logs") as executor:
        dying = executor.submit(kill_self, tmp_path / "attempts", signal.SIGKILL)
        others = [executor.submit(square, x) for x in range(20)]
        with pytest.raises(TaskDied, match=r"kill_self: .* SIGKILL .*made: 3; see .*worker-\d\.log") as info:
            dying.result(DEADLINE_S)
        assert len(attempts(tmp_path / "attempts")) == 3
        assert [f.result(DEADLINE_S) for f in others] == [x * x for x in range(20)]
    assert Path(str(info.value).rpartition("see ")[2]).read_text(encoding="utf-8") == "last words\n" * 3


def test_crash_and_exit_code_are_named(tmp_path):
    (tmp_path / "attempts").mkdir()
    with LocalExecutor(1, retries=0, log_dir=tmp_path) as executor:
        with pytest.raises(TaskDied, match="exit_self: its process ended with exit code 7"):
            executor.submit(exit_self, 7).result(DEADLINE_S)
        with pytest.raises(TaskDied, match="SIGSEGV"):
            executor.submit(kill_self, tmp_path / "attempts", signal.SIGSEGV).result(DEADLINE_S)
        assert "in kill_self" in (tmp_path / "worker-0.log").read_text(encoding="utf-8")
        assert executor.submit(square, 3).result(DEADLINE_S) == 9


def test_time_limit_takes_one_task_only(tmp_path):
    with LocalExecutor(2, timeout_s=0.7, retries=3, log_dir=tmp_path / "logs") as executor:
        (tmp_path / "attempts").mkdir()
        hanging = executor.submit(block, tmp_path / "attempts")
        others = [executor.submit(square, x) for x in range(20)]
        with pytest.raises(TaskTimeout, match=r"block was killed at its time limit of 0\.7 s; see .*worker-\d\.log"):
            hanging.result(DEADLINE_S)
        (pid,) = attempts(tmp_path / "attempts")  # one attempt in spite of retries=3
        assert not exists(pid)
        assert [f.result(DEADLINE_S) for f in others] == [x * x for x in range(20)]
        assert list(executor.map(square, range(20))) == [x * x for x in range(20)]


def test_an_interrupted_exchange_does_not_answer_the_next_task(monkeypatch):
    with LocalExecutor(1) as executor:
        monkeypatch.setattr(executor, "timeout_s", "not a number")
        assert isinstance(executor.submit(square, 3).exception(DEADLINE_S), TypeError)
        monkeypatch.undo()
        assert executor.submit(square, 4).result(DEADLINE_S) == 16


def test_longest_time_limit():
    with LocalExecutor(1, timeout_s=0.999 * condor_worker.LONGEST_TIMEOUT_S) as executor:
        assert executor.submit(square, 4).result(DEADLINE_S) == 16


def test_more_processes_than_cores(tmp_path):
    with LocalExecutor(8) as executor:
        futures = [executor.submit(block, tmp_path) for _ in range(8)]
        wait_until(lambda: len(attempts(tmp_path)) == 8)  # all at the same time
        executor.kill_workers()
        for future in futures:
            with pytest.raises(TaskDied, match="block"):
                future.result(0)


def test_processes_start_when_needed(tmp_path):
    with LocalExecutor(3) as executor:
        assert len(executor._workers) == 0
        executor.submit(square, 1).result(DEADLINE_S)
        wait_until(lambda: executor._idle == 1)
        executor.submit(square, 1).result(DEADLINE_S)
        assert len(executor._workers) == 1
        executor.warm_up()
        assert len(executor._workers) == 3
        assert len({worker.process.pid for worker in executor._workers}) == 3


def test_cancel_a_queued_task(tmp_path):
    with LocalExecutor(1) as executor:
        running = executor.submit(block_first, tmp_path)
        queued = [executor.submit(square, x) for x in range(3)]
        wait_until(running.running)
        assert queued[1].cancel() and not running.cancel()
        wait_until(lambda: attempts(tmp_path))
        os.kill(attempts(tmp_path)[0], signal.SIGKILL)
        assert running.result(DEADLINE_S) == 2
        assert [queued[0].result(DEADLINE_S), queued[2].result(DEADLINE_S)] == [0, 4]
        assert concurrent.futures.wait(queued, DEADLINE_S).not_done == set()


def test_shutdown_finishes_the_queue_or_cancels_it(tmp_path):
    executor = LocalExecutor(1)
    futures = [executor.submit(square, x) for x in range(10)]
    executor.shutdown()
    assert [f.result(0) for f in futures] == [x * x for x in range(10)]
    executor = LocalExecutor(1)
    running = executor.submit(block_first, tmp_path)
    wait_until(lambda: attempts(tmp_path))
    queued = [executor.submit(square, x) for x in range(10)]
    executor.shutdown(wait=False, cancel_futures=True)
    assert concurrent.futures.wait(queued, 0).not_done == set() and all(f.cancelled() for f in queued)
    os.kill(attempts(tmp_path)[0], signal.SIGKILL)
    executor.shutdown()
    assert running.result(0) == 2


def test_processes_ignore_interrupts(tmp_path):
    (tmp_path / "attempts").mkdir()
    with LocalExecutor(1) as executor:
        future = executor.submit(block_until, tmp_path / "go on", tmp_path / "attempts")
        wait_until(lambda: attempts(tmp_path / "attempts"))
        os.kill(attempts(tmp_path / "attempts")[0], signal.SIGINT)
        (tmp_path / "go on").touch()
        assert future.result(DEADLINE_S) == 1


def test_no_process_is_left(tmp_path):
    with LocalExecutor(3) as orderly:
        orderly.warm_up()
        orderly.submit(square, 1)
    with pytest.raises(SectorError), LocalExecutor(2) as failing:
        running = [failing.submit(block, tmp_path) for _ in range(2)]
        queued = failing.submit(square, 1)
        wait_until(lambda: len(attempts(tmp_path)) == 2)
        raise SectorError
    assert all(isinstance(f.exception(0), TaskDied) for f in running) and queued.cancelled()
    for executor in orderly, failing:
        pids = [worker.process.pid for worker in executor._workers]
        assert len(pids) == executor.processes and not any(map(exists, pids))
        assert not any(thread.is_alive() for thread in executor._threads)


def test_callback_may_end_its_executor(tmp_path, caplog):
    with LocalExecutor(2) as executor:
        hanging = executor.submit(block, tmp_path)
        wait_until(lambda: attempts(tmp_path))
        executor.submit(square, 1).add_done_callback(lambda future: executor.kill_workers())
        assert isinstance(hanging.exception(DEADLINE_S), TaskDied)
    assert not caplog.records  # where exceptions of callbacks end


def test_one_thread_for_blas_unless_set(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    with LocalExecutor(1) as executor:
        assert executor.submit(environment, "OMP_NUM_THREADS").result(DEADLINE_S) == "1"
        assert executor.submit(environment, "MKL_NUM_THREADS").result(DEADLINE_S) == "3"
    assert "OMP_NUM_THREADS" not in os.environ and os.environ["MKL_NUM_THREADS"] == "3"


def test_environment_is_restored_after_simultaneous_starts(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with contextlib.ExitStack() as stack:
        executors = [stack.enter_context(LocalExecutor(1)) for _ in range(4)]
        starts = [threading.Thread(target=executor.warm_up) for executor in executors]
        for thread in starts:
            thread.start()
        for thread in starts:
            thread.join()
        assert "OMP_NUM_THREADS" not in os.environ
        futures = [executor.submit(environment, "OMP_NUM_THREADS") for executor in executors]
        assert [f.result(DEADLINE_S) for f in futures] == ["1"] * 4


def test_overhead_of_a_small_task(pool):
    def round_trip():
        start = time.perf_counter()
        pool.submit(square, 3).result(DEADLINE_S)
        return time.perf_counter() - start

    assert min(round_trip() for _ in range(300)) < 1e-3  # the best of many: what the machine does besides is not ours


# a script as the main program ---------------------------------------------------------------------------------------

SCRIPT = """
import os, sys, threading, time
OMP_AT_IMPORT = os.environ.get('OMP_NUM_THREADS')
if __name__ != '__main__':
    os.write(1, f'importing {os.getpid()}\\n'.encode())  # in one piece: several processes write here
    time.sleep(float(os.environ.get('IMPORT_TAKES_S', '0')))
from condor_worker import LocalExecutor


class Special(Exception):
    pass


def work(x):
    if x < 0:
        raise Special(f'negative: {x}')
    return x * x, OMP_AT_IMPORT


def block():
    os.write(1, b'started\\n')
    threading.Event().wait()


"""


def start_script(tmp_path, main, **environment):
    """Run SCRIPT with a main program; its output ends when the last process that inherited it has ended."""
    folder = tmp_path / """it's "here" """
    folder.mkdir()
    body = textwrap.indent(textwrap.dedent(main), "    ")
    (folder / "run me.py").write_text(f"{SCRIPT}if __name__ == '__main__':\n{body}", encoding="utf-8")
    inherited = {name: value for name, value in os.environ.items() if name not in condor_worker.THREAD_VARIABLES}
    inherited |= {"PYTHONPATH": str(Path(condor_worker.__file__).parent)} | environment
    return subprocess.Popen(
        [sys.executable, "run me.py"],
        cwd=folder,
        env=inherited,
        text=True,
        start_new_session=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(script, text=""):
    """What a script printed to its output and errors after it got a text as its input."""
    try:
        return script.communicate(text, timeout=DEADLINE_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(script.pid, signal.SIGKILL)  # a failed test leaves nothing behind either


def test_functions_and_exceptions_of_a_script(tmp_path):
    """The time limit is shorter than the import of the script, which does not count."""
    output, errors = finish(
        start_script(
            tmp_path,
            """
        with LocalExecutor(2, timeout_s=0.5, retries=0) as executor:
            executor.warm_up()
            print(list(executor.map(work, range(4))), os.environ.get('OMP_NUM_THREADS'))
            try:
                executor.submit(work, -1).result()
            except Special as error:
                print(type(error) is Special, error)
        """,
            IMPORT_TAKES_S="0.8",
        )
    )
    assert errors == ""
    assert [line for line in output.splitlines() if not line.startswith("importing")] == [
        "[(0, '1'), (1, '1'), (4, '1'), (9, '1')] None",
        "True negative: -1",
    ]


def test_processes_ignore_interrupts_while_they_import(tmp_path):
    script = start_script(
        tmp_path,
        """
        with LocalExecutor(2, retries=0) as executor:
            executor.warm_up()
            print([future.result() for future in [executor.submit(work, x) for x in range(4)]])
        """,
        IMPORT_TAKES_S="0.5",
    )
    for line in [script.stdout.readline() for _ in range(2)]:
        os.kill(int(line.removeprefix("importing")), signal.SIGINT)
    assert finish(script) == ("[(0, '1'), (1, '1'), (4, '1'), (9, '1')]\n", "")


BLOCKED = """
    with LocalExecutor(2) as executor:
        futures = [executor.submit(block) for _ in range(4)]
        futures[0].result()
    """
WITHOUT_BLOCK = """
    executor = LocalExecutor(2, retries=100)
    futures = [executor.submit(block) for _ in range(4)]
    sys.stdin.readline()
    raise KeyError('not handled')
    """


@pytest.mark.parametrize(
    ("main", "signal_number", "wait_for", "import_s"),
    [
        (BLOCKED, signal.SIGINT, "started", "0"),
        (BLOCKED, signal.SIGINT, "importing", "30"),
        (BLOCKED, signal.SIGTERM, "started", "0"),
        (BLOCKED, signal.SIGKILL, "started", "0"),
        (WITHOUT_BLOCK, None, "started", "0"),
    ],
    ids=["interrupt", "interrupt-imports", "terminate", "kill", "exit"],
)
def test_nothing_outlives_the_main_program(tmp_path, main, signal_number, wait_for, import_s):
    script = start_script(tmp_path, main, IMPORT_TAKES_S=import_s)
    lines = [script.stdout.readline().split()[0] for _ in range(4 if wait_for == "started" else 2)]
    assert lines.count(wait_for) == 2
    if signal_number == signal.SIGINT:
        os.killpg(script.pid, signal_number)  # as a terminal does
    elif signal_number is not None:
        os.kill(script.pid, signal_number)
    errors = finish(script, "go on" if signal_number is None else "")[1]
    tracebacks = errors.count("Traceback (most recent call last)")
    if signal_number in (signal.SIGTERM, signal.SIGKILL):
        assert script.returncode == -signal_number and tracebacks == 0
    else:
        assert tracebacks == 1 and ("KeyboardInterrupt" if signal_number else "not handled") in errors


def runs(pid):
    """Whether a process lives; one that waits for being reaped does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    return False


# =====================================================================================================================
# HTCondor
# =====================================================================================================================


# fake tools ---------------------------------------------------------------------------------------------------------

FAKE_CONDOR = r'''"""HTCondor's tools, as far as condor_worker.py needs them, and a pool that lives in one SQLite file.

Called as condor_submit, condor_q, ... it is such a tool; imported, it gives the tests Pool, with which they see every call and let
jobs run, finish, vanish, be held. Output, exit codes and log events are those of a real pool (HTCondor 23.9.6).
"""

import contextlib
import json
import os
import re
import signal
import sqlite3
import sys
import time

IDLE, RUNNING, REMOVED, COMPLETED, HELD = 1, 2, 3, 4, 5
SCHEMA = """
    create table if not exists calls (number integer primary key, tool text, arguments text, began real, ended real);
    create table if not exists clusters (id integer primary key autoincrement);
    create table if not exists jobs (cluster int, proc int, status int, gone text, ad text, start real, pid int, hold_code int,
        hold_reason text, primary key (cluster, proc));
    create table if not exists settings (name text primary key, value text);
    create table if not exists runner (pid int);
"""
DEFAULTS = {
    "run": "idle",  # idle: jobs wait for the test; now: within condor_submit; background: in processes, `slots` at a time
    "slots": 4,
    "down": False,  # every tool fails, or those named
    "hang": [],  # tools that never end
    "garbage": None,  # what condor_q prints, and its exit code
    "submit_error": None,  # the message with which condor_submit fails
    "submit_after": None,  # what the next condor_submit does after it has committed: error, die, hang, silent
    "submit_takes_s": 0,  # before it commits
    "removal_lingers": False,  # condor_rm marks jobs only
}
USAGE = (
    "\t(%d) %s\n\t\tUsr 0 00:00:01, Sys 0 00:00:00  -  Run Remote Usage\n\t\tUsr 0 00:00:00, Sys 0 00:00:00  -  Run Local Usage\n"
    "%s\t0  -  Run Bytes Sent By Job\n\t0  -  Run Bytes Received By Job\n%s"
    "\tPartitionable Resources :    Usage  Request Allocated \n\t   Cpus                 :     0.97        1         1 \n"
    "\t   Memory (MB)          :        6     1024      1024 \n\t   TimeExecute (s)      :        1                    \n"
)
TOTAL = (
    "\t\tUsr 0 00:00:01, Sys 0 00:00:00  -  Total Remote Usage\n\t\tUsr 0 00:00:00, Sys 0 00:00:00  -  Total Local Usage\n",
    "\t0  -  Total Bytes Sent By Job\n\t0  -  Total Bytes Received By Job\n",
)


class ToolError(Exception):
    pass


class Job:
    def __init__(self, row):
        self.cluster, self.proc, self.status, self.gone, ad, self.start, self.pid, self.hold_code, self.hold_reason = row
        self.ad = json.loads(ad)  # the lines of the submit file, keys in lower case, macros replaced
        self.key = (self.cluster, self.proc)
        self.task = self.ad["my.condorworkertask"].strip('"')
        self.cpus, self.memory, self.priority = (int(self.ad.get(k, 0)) for k in ("request_cpus", "request_memory", "priority"))

    def __str__(self):
        return f"{self.cluster}.{self.proc}"

    def path(self, suffix):
        return os.path.join(self.ad["initialdir"], self.task + suffix)

    def attributes(self):
        """What condor_q shows."""
        shown = {"ClusterId": self.cluster, "ProcId": self.proc, "JobStatus": self.status, "JobPrio": self.priority, "Owner": "me"}
        shown |= {"RequestCpus": self.cpus, "RequestMemory": self.memory, "CondorWorkerTask": self.task}
        shown["CondorWorkerRun"] = self.ad["my.condorworkerrun"].strip('"')
        if self.start is not None:
            shown["JobCurrentStartDate"] = int(self.start)
        if self.status == HELD:
            shown |= {"HoldReasonCode": self.hold_code, "HoldReason": self.hold_reason}
        return shown

    def command(self):
        return [self.ad["executable"], *split_quoted(self.ad["arguments"])]

    def environment(self):
        everything = self.ad.get("getenv", "false").lower() == "true"
        words = split_quoted(self.ad.get("environment", '""'))
        return (dict(os.environ) if everything else {}) | dict(word.split("=", 1) for word in words)


class Pool:
    def __init__(self, directory):
        self.path = os.path.join(directory, "pool.sqlite")
        if not os.path.exists(self.path):
            with self.database() as database:
                database.executescript(SCHEMA)

    @contextlib.contextmanager
    def database(self):
        """A connection that holds the lock; what is changed is seen together, at the end of the block."""
        database = sqlite3.connect(self.path, timeout=60, isolation_level=None)
        try:
            database.execute("pragma synchronous = off")
            database.execute("begin immediate")
            yield database
            if database.in_transaction:
                database.execute("commit")
        finally:
            database.close()

    def set(self, **settings):
        assert settings.keys() <= DEFAULTS.keys()
        with self.database() as database:
            database.executemany("replace into settings values (?, ?)", [(k, json.dumps(v)) for k, v in settings.items()])

    def settings(self):
        with self.database() as database:
            return DEFAULTS | {name: json.loads(value) for name, value in database.execute("select * from settings")}

    # what happened -------------------------------------------------------------------------------------------------

    def calls(self, tool=""):
        """(tool, arguments, when it began) of the calls so far."""
        with self.database() as database:
            rows = database.execute("select tool, arguments, began from calls where tool like ? order by number", [f"{tool}%"])
            return [(name, json.loads(arguments), began) for name, arguments, began in rows]

    def begin(self, tool, arguments):
        with self.database() as database:
            return database.execute(
                "insert into calls (tool, arguments, began) values (?, ?, ?)", [tool, json.dumps(arguments), time.time()]
            ).lastrowid

    def end(self, number):
        with self.database() as database:
            database.execute("update calls set ended = ? where number = ?", [time.time(), number])

    def history(self):
        """All jobs ever, in the order of submission."""
        with self.database() as database:
            return list(map(Job, database.execute("select * from jobs order by cluster, proc")))

    def jobs(self, *status):
        """Those in the queue."""
        return [job for job in self.history() if job.gone is None and (not status or job.status in status)]

    # what happens --------------------------------------------------------------------------------------------------

    def change(self, database, job, **columns):
        names = ", ".join(f"{name} = ?" for name in columns)
        database.execute(f"update jobs set {names} where cluster = ? and proc = ?", [*columns.values(), *job.key])

    def log(self, job, *events):
        """events: (number, text) or (number, text, when)"""
        lines = []
        for number, text, *when in events:
            stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(*when))
            lines.append(f"{number:03d} ({job.cluster:03d}.{job.proc:03d}.000) {stamp} {text.rstrip()}\n...\n")
        self.append(job, "".join(lines))

    def append(self, job, text):
        if "log" in job.ad:
            log = os.open(os.path.join(job.ad["initialdir"], job.ad["log"]), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(log, text.encode())
            finally:
                os.close(log)

    def started(self, when=None, host="127.0.0.1:36637?addrs=127.0.0.1-36637"):
        text = f"Job executing on host: <{host}>\n\tSlotName: slot1_1@node\n\tCpus = 1\n\tMemory = 1024"
        return (1, text) if when is None else (1, text, when)

    def evicted(self, when=None):
        text = "Job was evicted.\n" + USAGE % (0, "CPU times", "", "")
        return (4, text) if when is None else (4, text, when)

    def start(self, job, ago_s=0, before=()):
        """The job runs, since ago_s seconds; what the log says of the time before comes together with it."""
        with self.database() as database:
            self.change(database, job, status=RUNNING, start=time.time() - ago_s)
            self.log(
                job, *before, self.started(time.time() - ago_s), (6, "Image size of job updated: 5184\n\t3  -  MemoryUsage of job (MB)")
            )

    def perform(self, job):
        """Do the work of a job, in a process of its own; the pool does not notice. Its exit code."""
        request = {"command": job.command(), "home": job.ad["initialdir"], "environment": job.environment(), "errors": job.path(".err")}
        self.forge.stdin.write(f"{json.dumps(request)}\n")
        self.forge.stdin.flush()
        return int(self.forge.stdout.readline())

    def run(self, job):
        self.start(job)
        self.finish(job, self.perform(job))

    def finish(self, job, exit_code=0):
        """The job ends, by a signal where the code is negative; whatever it has left."""
        self.leave(job, "completed", terminated(exit_code))

    def leave(self, job, how, *events):
        with self.database() as database:
            self.change(database, job, gone=how)
            self.log(job, *events)

    def vanish(self, job):
        self.leave(job, "vanished")

    def evict(self, job):
        with self.database() as database:
            self.change(database, job, status=IDLE)
            self.log(job, self.evicted())

    def hold(self, job, code, reason, subcode=0):
        with self.database() as database:
            self.change(database, job, status=HELD, hold_code=code, hold_reason=reason)
            self.log(job, *[self.evicted()] * (job.status == RUNNING), (12, f"Job was held.\n\t{reason}\n\tCode {code} Subcode {subcode}"))
        kill_group(job.pid)

    def release(self, job):
        with self.database() as database:
            self.change(database, job, status=IDLE, hold_code=None, hold_reason=None)
            self.log(job, (13, "Job was released.\n\tvia condor_release (by user me)"))

    def remove(self, job, lingers=False):
        with self.database() as database:
            if lingers:
                self.change(database, job, status=REMOVED)
                return
            self.change(database, job, gone="removed")
            self.log(job, *[self.evicted()] * (job.status == RUNNING), (9, "Job was aborted.\n\tvia condor_rm (by user me)"))
        kill_group(job.pid)

    def copy(self, job):
        """The same job once more, in a cluster of its own."""
        with self.database() as database:
            cluster = database.execute("insert into clusters default values").lastrowid
            insert(database, cluster, [job.ad])

    # jobs that run by themselves -----------------------------------------------------------------------------------

    def serve(self):
        """Run what is idle, in processes, until nothing is left; in a process that outlives the caller."""
        if os.fork():
            os.wait()
            return
        os.setsid()
        if os.fork():
            os._exit(0)
        null = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(null, number)
        os.closerange(3, 256)
        try:
            with self.database() as database:
                if any(alive(pid) for (pid,) in database.execute("select pid from runner")):
                    os._exit(0)
                database.execute("delete from runner")
                database.execute("insert into runner values (?)", [os.getpid()])
            self.run_all(self.settings()["slots"])
        finally:
            os._exit(0)

    def run_all(self, slots):
        children = {}
        while True:
            for job in self.claim(slots - len(children), last=not children):
                children[self.fork(job)] = job
            while children:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                self.reap(children.pop(pid), os.waitstatus_to_exitcode(status))
            time.sleep(0.01)

    def claim(self, number, last):
        with self.database() as database:
            rows = database.execute("select * from jobs where gone is null and status = 1 order by cluster, proc")
            idle = sorted(map(Job, rows), key=lambda job: -job.priority)
            if last and not idle:
                database.execute("delete from runner")
                database.execute("commit")
                os._exit(0)
            for job in idle[:number]:
                self.change(database, job, status=RUNNING, start=time.time(), pid=None)
                self.log(job, self.started())
        return idle[:number]

    def fork(self, job):
        pid = fork_job(job.command(), job.ad["initialdir"], job.environment(), job.path(".err"), lambda: job_directory(job))
        with contextlib.suppress(OSError):
            os.setpgid(pid, pid)
        with self.database() as database:
            self.change(database, job, pid=pid)
            ((gone, status),) = database.execute("select gone, status from jobs where cluster = ? and proc = ?", job.key)
        if gone or status != RUNNING:  # removed or held before its process was known
            kill_group(pid)
        return pid

    def reap(self, job, exit_code):
        with self.database() as database:
            ((gone, status),) = database.execute("select gone, status from jobs where cluster = ? and proc = ?", job.key)
            if gone is None and status == RUNNING:
                self.change(database, job, gone="completed")
                self.log(job, terminated(exit_code))

    def run_now(self, jobs):
        """Run jobs within this process."""
        for start in range(0, len(jobs), 500):
            codes = []
            for job in jobs[start : start + 500]:
                with job_directory(job):
                    codes.append(main_of(job.command(), job.ad["initialdir"]))
            with self.database() as database:
                for job, code in zip(jobs[start:], codes):
                    self.change(database, job, gone="completed")
                    self.log(job, self.started(), terminated(code))

    def kill(self):
        """End the processes of the pool."""
        with self.database() as database:
            pids = [pid for (pid,) in database.execute("select pid from runner") if alive(pid)]
            groups = [pid for (pid,) in database.execute("select pid from jobs where gone is null") if pid and alive(pid)]
            for pid in pids:  # while nobody can register another
                os.kill(pid, signal.SIGKILL)
            for pid in groups:
                kill_group(pid)


def terminated(exit_code):
    if exit_code < 0:
        text = "Job terminated.\n" + USAGE % (0, f"Abnormal termination (signal {-exit_code})\n\t(0) No core file", *TOTAL)
        return 5, text + f"\n\tJob terminated of its own accord with signal {-exit_code}."
    text = "Job terminated.\n" + USAGE % (1, f"Normal termination (return value {exit_code})", *TOTAL)
    return 5, text + f"\n\tJob terminated of its own accord with exit-code {exit_code}."


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill_group(pid):
    if pid:
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)


def load_worker(path):
    if "condor_worker" not in sys.modules:
        import importlib.util  # here: the tools are to start fast

        spec = importlib.util.spec_from_file_location("condor_worker", path)
        sys.modules["condor_worker"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["condor_worker"]


def main_of(words, home):
    """The exit code of a job's command, run in this process."""
    script = next(i for i, word in enumerate(words) if word.endswith(".py"))
    try:
        return load_worker(os.path.join(home, words[script])).main(words[script + 1 :]) or 0
    except SystemExit as leaving:
        return leaving.code or 0


def fork_job(command, home, environment, errors, directory):
    """The process of a job."""
    load_worker(os.path.join(home, next(word for word in command if word.endswith(".py"))))  # once, here
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)
        code = 70
        try:
            os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), 2)
            os.environ.clear()
            os.environ.update(environment)
            with directory():
                code = main_of(command, home)
        finally:
            os._exit(code)
    return pid


@contextlib.contextmanager
def at(directory):
    os.chdir(directory)
    yield


def forge():
    """Run the jobs that come on standard input, one after the other: a fork of this process takes no time to start."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    for line in sys.stdin:
        request = json.loads(line)
        pid = fork_job(**request, directory=lambda request=request: at(request["home"]))
        answers.write(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n")
        answers.flush()


@contextlib.contextmanager
def job_directory(job):
    """Be where the job runs: in its initial directory, or in a scratch directory to which its files are copied, and back."""
    home = job.ad["initialdir"]
    if job.ad.get("should_transfer_files", "no").lower() != "yes":
        os.chdir(home)
        yield
        return
    import shutil

    scratch = os.path.join(home, f"scratch-{job}")
    os.mkdir(scratch)
    os.chdir(scratch)
    try:
        for name in filter(None, map(str.strip, job.ad["transfer_input_files"].split(","))):
            shutil.copy2(os.path.join(home, name), scratch)
        before = {name: os.stat(name).st_mtime_ns for name in os.listdir()}
        yield
        for name in os.listdir():
            if os.path.isfile(name) and before.get(name) != os.stat(name).st_mtime_ns:
                shutil.copy2(name, home)
    finally:
        os.chdir(home)
        shutil.rmtree(scratch)


# the tools ---------------------------------------------------------------------------------------------------------


def split_quoted(value):
    """Words of HTCondor's new syntax: "one 'two words' it''s", where "" stands for a double quote."""
    if not (len(value) > 1 and value[0] == value[-1] == '"'):
        if '"' in value or "'" in value:
            raise ToolError(f"ERROR: quotes in old syntax: {value}")
        return value.split()
    inner = value[1:-1]
    if re.search('(?<!")"("")*(?!")', inner):
        raise ToolError(f"ERROR: unescaped double quote: {value}")
    words, word, quoted, i = [], None, False, 0
    inner = inner.replace('""', '"')
    while i < len(inner):
        c = inner[i]
        if c == "'" and quoted and inner[i + 1 : i + 2] == "'":
            word, i = word + "'", i + 1
        elif c == "'":
            word, quoted = word or "", not quoted
        elif c in " \t" and not quoted:
            words, word = words + [word] * (word is not None), None
        else:
            word = (word or "") + c
        i += 1
    if quoted:
        raise ToolError(f"ERROR: unbalanced quote: {value}")
    return words + [word] * (word is not None)


def replace_macros(value, names):
    value = re.sub(r"(?<!\$)\$ENV\((\w+)\)", lambda found: os.environ.get(found[1], ""), value)
    value = re.sub(r"(?<!\$)\$\((?!DOLLAR\))(\w+)(?::([^)]*))?\)", lambda found: names.get(found[1].lower(), found[2] or ""), value)
    before = None
    while value != before:  # as the real one, which takes the second of two for the argument of a $$
        before, value = value, re.sub(r"(?<!\$)\$\(DOLLAR\)", "$", value, count=1)
    return value


def read_submit_file(path):
    """The ads of a submit file."""
    with open(path, encoding="utf-8") as file:
        lines = file.read().split("\n")
    keys, items = {}, None
    for line in map(str.strip, lines):
        if not line or line.startswith("#"):
            continue
        if items is not None:
            raise ToolError(f"ERROR: after the queue statement: {line}")
        if queue := re.fullmatch(r"queue\s+([\w, ]+?)\s+from\s+(.+)", line, re.IGNORECASE):
            names = re.split("[, ]+", queue[1])
            with open(queue[2], encoding="utf-8") as file:
                items = [dict(zip(names, re.split(r"\s*,\s*|\s+", row.strip(), maxsplit=len(names) - 1))) for row in file if row.strip()]
        elif setting := re.fullmatch(r"(\+?[\w.]+)\s*=\s*(.*)", line):
            keys[setting[1].lower().replace("+", "my.", 1)] = setting[2]
        else:
            raise ToolError(f"ERROR: on line: {line}")
    if items is None:
        raise ToolError("ERROR: no queue statement")
    constant = {key: value for key, value in keys.items() if "$" not in value}
    varying = {key: value for key, value in keys.items() if "$" in value}
    for item in items:
        names = {key.lower(): value for key, value in item.items()}
        yield constant | {key: replace_macros(value, names) for key, value in varying.items()}


def check_ad(ad):
    if ad.get("universe", "vanilla") != "vanilla":
        raise ToolError(f"ERROR: I don't know about the '{ad['universe']}' universe.")
    if ad.get("transfer_executable", "true").lower() == "true" and not os.path.exists(ad["executable"]):
        raise ToolError(f"ERROR: Executable file {ad['executable']} does not exist")
    if not os.path.isdir(ad["initialdir"]):
        raise ToolError(f"ERROR: No such directory: {ad['initialdir']}")
    split_quoted(ad["arguments"])
    split_quoted(ad.get("environment", '""'))


def insert(database, cluster, ads):
    rows = [(cluster, proc, IDLE, None, json.dumps(ad), None, None, None, None) for proc, ad in enumerate(ads)]
    database.executemany("insert into jobs values (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
    return list(map(Job, rows))


def condor_submit(pool, arguments, settings):
    (path,) = arguments
    sys.stdout.write("Submitting job(s)")
    sys.stdout.flush()
    if settings["submit_error"]:
        raise ToolError(settings["submit_error"])
    ads = list(read_submit_file(path))
    check_ad(ads[0])
    time.sleep(settings["submit_takes_s"])
    with pool.database() as database:  # a number once given is not given again
        cluster = database.execute("insert into clusters default values").lastrowid
    with pool.database() as database:
        jobs = insert(database, cluster, ads)
        texts = [
            f"000 ({cluster:03d}.{job.proc:03d}.000) {time.strftime('%Y-%m-%d %H:%M:%S')} Job submitted from host: <127.0.0.1:1>"
            for job in jobs
        ]
        pool.append(jobs[0], "".join(f"{text}\n...\n" for text in texts))
    after = settings["submit_after"]
    pool.set(submit_after=None)
    if settings["run"] == "now":
        pool.run_now(jobs)
    elif settings["run"] == "background":
        pool.serve()
    if after == "error":
        raise ToolError("\nERROR: Failed to commit job submission into the queue.\nERROR: Failed to receive message from schedd")
    if after == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if after == "hang":
        signal.pause()
    if after != "silent":
        print(f"{'.' * min(len(jobs), 60)}\n{len(jobs)} job(s) submitted to cluster {cluster}.")


def select_jobs(pool, words):
    """The jobs in the queue that ids or a constraint name, and which ids name none."""
    jobs = pool.jobs()
    chosen, missing, words = [], [], list(words)
    while words:
        word = words.pop(0)
        if word == "-constraint":
            constraint = words.pop(0)
            chosen += [job for job in jobs if satisfies(job, constraint)]
        elif word == "-reason":
            words.pop(0)
        elif word in ("-all", "all"):
            chosen += jobs
        elif re.fullmatch(r"\d+(\.\d+)?", word):
            found = [job for job in jobs if word in (str(job), str(job.cluster))]
            chosen += found
            missing += [word] * (not found)
        else:
            raise ToolError(f"unknown argument {word}")
    return chosen, missing, bool(jobs)


def satisfies(job, constraint):
    shown = {name.lower(): value for name, value in job.attributes().items()}
    for term in constraint.split("&&"):
        match = re.fullmatch(r'[\s(]*(\w+)\s*(==|=\?=|!=|=!=)\s*("[^"]*"|\d+)[\s)]*', term)
        if match is None:
            raise ToolError(f"Error: cannot parse constraint {constraint}")
        if (shown.get(match[1].lower()) == json.loads(match[3])) != (match[2] in ("==", "=?=")):
            return False
    return True


def condor_q(pool, arguments, settings):
    if settings["garbage"]:
        text, code = settings["garbage"]
        sys.stdout.write(text)
        return code
    words, shown, chosen = list(arguments), None, []
    while words:
        word = words.pop(0)
        if word == "-attributes":
            shown = words.pop(0).split(",")
        elif word == "-constraint":
            chosen += [word, words.pop(0)]
        elif word not in ("-json", "-allusers", "-nobatch"):
            chosen.append(word)
    jobs = select_jobs(pool, chosen or ["-all"])[0]
    if "-json" not in arguments:
        raise ToolError("the fake condor_q speaks JSON only")
    ads = [job.attributes() for job in jobs]
    if shown is not None:
        names = {name.lower() for name in shown}
        ads = [{name: value for name, value in ad.items() if name.lower() in names} for ad in ads]
    if ads:
        print("[\n" + "\n,\n".join(json.dumps(ad, indent=2) for ad in ads) + "\n]")
    if settings["run"] == "background" and any(job.status == IDLE for job in jobs):
        pool.serve()
    return 0


def act_on_jobs(verb, act, may_act):
    def tool(pool, arguments, settings):
        jobs, missing, any_left = select_jobs(pool, arguments)
        if not any_left:
            sys.stderr.write(f"{os.path.basename(sys.argv[0])}:0:There are no jobs in the queue\n")
            return 0
        for job in filter(may_act, jobs):
            act(pool, job, settings)
            print(f"Job {job} {verb}")
        for word in missing:
            sys.stderr.write(f"\nJob {word} not found\n")
        if not jobs and not missing:
            sys.stderr.write("\nCouldn't find/remove all jobs matching constraint\n")
        if settings["run"] == "background":
            pool.serve()
        return 0 if any(map(may_act, jobs)) else 1

    return tool


TOOLS = {
    "condor_submit": condor_submit,
    "condor_q": condor_q,
    "condor_rm": act_on_jobs(
        "marked for removal", lambda pool, job, settings: pool.remove(job, settings["removal_lingers"]), lambda job: True
    ),
    "condor_hold": act_on_jobs(
        "held", lambda pool, job, settings: pool.hold(job, 1, "via condor_hold (by user me)"), lambda job: job.status != HELD
    ),
    "condor_release": act_on_jobs("released", lambda pool, job, settings: pool.release(job), lambda job: job.status == HELD),
}


def main():
    tool, pool = os.path.basename(sys.argv[0]), Pool(os.environ["FAKE_CONDOR"])
    number = pool.begin(tool, sys.argv[1:])
    try:
        settings = pool.settings()
        if tool in settings["hang"]:
            signal.pause()
        if settings["down"] is True or tool in (settings["down"] or ()):
            raise ToolError("\n-- Failed to fetch ads from: <127.0.0.1:9618> : CEDAR:6001:Failed to connect to <127.0.0.1:9618>")
        return TOOLS[tool](pool, sys.argv[1:], settings)
    except ToolError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    finally:
        pool.end(number)


if __name__ == "__main__":
    sys.exit(main())
'''

# what the jobs run: a module that loads in no time
JOBS = '''
import os, sys, threading, time
import condor_worker

class SectorError(ValueError):
    pass

class Unspeakable(Exception):
    def __str__(self):
        raise TypeError("no way")

def square(x):
    return x * x

def add(x, *, y=0):
    return x + y

def same(x):
    return x

def fail(exception_type, *args):
    raise exception_type(*args)

def evaluate(expression):
    return eval(expression)

def note(path, line):
    """Append a line, in one piece."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, f"{line}\\n".encode())
    os.close(file)

def noted_square(path, x, seconds=0):
    note(path, x)
    time.sleep(seconds)
    return x * x

def hang_on_one_cpu(path):
    note(path, os.getpid())
    if condor_worker.task_cpus() == 1:
        threading.Event().wait()
    return condor_worker.task_cpus()

def hang(path):
    note(path, os.getpid())
    threading.Event().wait()

def hang_within_on_one_cpu(path):
    if condor_worker.task_cpus() > 1:
        return "done"
    with condor_worker.LocalExecutor(1) as executor:
        executor.submit(hang, path).result()

def read(shared):
    return shared.get()

def state():
    names = ("OMP_NUM_THREADS", "PATH", "PYTHONPATH")
    return {"cwd": os.getcwd(), "cpus": condor_worker.task_cpus()} | {name: os.environ.get(name) for name in names}
'''


@pytest.fixture(scope="session")
def jobs(tmp_path_factory):
    """The module of what the jobs run."""
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "condor_jobs.py").write_text(JOBS, encoding="utf-8")
    sys.path.insert(0, str(folder))
    yield importlib.import_module("condor_jobs")
    sys.path.remove(str(folder))


@pytest.fixture(scope="session")
def fake_tools(tmp_path_factory):
    """The directory of the tools, and their module."""
    folder = tmp_path_factory.mktemp("tools")
    (folder / "fake_condor.py").write_text(FAKE_CONDOR, encoding="utf-8")
    py_compile.compile(str(folder / "fake_condor.py"))
    launcher = (
        f"#!{sys.executable} -IS\nimport sys\n\nsys.path.append({str(folder)!r})\nimport fake_condor\n\nsys.exit(fake_condor.main())\n"
    )
    for name in ("condor_submit", "condor_q", "condor_rm", "condor_release", "condor_hold"):
        (folder / name).write_text(launcher, encoding="utf-8")
        (folder / name).chmod(0o755)
    spec = importlib.util.spec_from_file_location("fake_condor", folder / "fake_condor.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with subprocess.Popen(
        [sys.executable, "-IS", "-c", f"import sys\nsys.path.append({str(folder)!r})\nimport fake_condor\nfake_condor.forge()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as module.Pool.forge:
        yield folder, module


@pytest.fixture
def fake(fake_tools, tmp_path, monkeypatch, quick):
    """An empty pool, the tools of which come first on PATH."""
    folder, module = fake_tools
    (tmp_path / "pool").mkdir()
    monkeypatch.setenv("FAKE_CONDOR", str(tmp_path / "pool"))
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    pool = module.Pool(str(tmp_path / "pool"))
    yield pool
    pool.kill()


SHORT_WAITS = {"TICK_S": 0.02, "POLL_S": 0.1, "LINGER_S": 0.02, "SUBMIT_SPACING_S": 0.02, "GRACE_S": (0.1, 0.1), "LONGEST_BACKOFF_S": 0.2}


@pytest.fixture
def quick(monkeypatch):
    """Waits of condor_worker, shortened."""
    for name, value in SHORT_WAITS.items():
        monkeypatch.setattr(condor_worker, name, value)


@pytest.fixture
def memory_path():
    """A directory in memory, if that can be: a test of thousands of files is not one of the disk."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture
def make(tmp_path, fake):
    """Makes executors, which are gone after the test."""
    with contextlib.ExitStack() as stack:

        def make(directory=tmp_path / "work" / "condor", **options):
            executor = CondorExecutor(directory, **({"check_interval_s": 0.08} | options))
            stack.callback(executor.detach)
            return executor

        yield make


def wait_for_jobs(fake, number, *status):
    """The jobs in the queue, once there are so many."""
    wait_until(lambda: len(fake.jobs(*status)) == number)
    return fake.jobs(*status)


def let_it_look(fake, times=3):
    """Wait until the queue has been asked some times more: whatever the executor was to do, it has done."""
    before = len(fake.calls("condor_q"))
    wait_until(lambda: len(fake.calls("condor_q")) >= before + times)


def results(futures):
    return [future.result(DEADLINE_S) for future in futures]


def task_files(executor_directory):
    return sorted(path.name for path in Path(executor_directory).glob("[0-9]*.*"))


def events(directory):
    return [json.loads(line) for line in (Path(directory) / "events.jsonl").read_text(encoding="utf-8").splitlines()]


# results and exceptions ---------------------------------------------------------------------------------------------


def test_results_do_not_depend_on_order_nor_on_the_cluster(fake, make, jobs):
    fake.set(run="now")
    executor = make()
    executor.warm_up()
    numbers = list(range(40))
    random.Random(3).shuffle(numbers)
    futures = {executor.submit(jobs.square, x): x for x in numbers}
    assert {futures[f]: f.result(0) for f in concurrent.futures.as_completed(futures, DEADLINE_S)} == {x: x * x for x in numbers}
    assert list(executor.map(jobs.square, numbers, timeout=DEADLINE_S)) == [x * x for x in numbers]
    assert executor.submit(jobs.add, 1, y=2).result(DEADLINE_S) == 3


@pytest.mark.parametrize(
    "value",
    [
        [None, True, 2**100, -1.5, 1 + 2j, "é\n", b"\0\xff", ""],
        {"a": ((), [], {}, set(), frozenset({1, (2, 3)}), {4}), (1, "b"): {None: [0.0]}},
        [[1] * 100_000, "x" * 300_000],
        [float("inf"), -0.0],
    ],
    ids=["scalars", "nested", "large", "floats"],
)
def test_builtin_types_come_back_as_they_were(fake, make, jobs, value):
    fake.set(run="now")
    answer = make().submit(jobs.same, value).result(DEADLINE_S)
    assert answer == value and repr(answer) == repr(value) and type(answer) is type(value)


FOREIGN = {  # results: what the error must name
    "__import__('numpy').arange(3)": "numpy.*ndarray",
    "{'x': [1, (__import__('numpy').float64(2),)]}": "numpy",
    "__import__('fractions').Fraction(1, 3)": "fractions.Fraction",
    "__import__('condor_jobs').SectorError": "type",
    "eval": "builtin_function",
    "__import__('threading').Lock()": "lock",
    "__import__('functools').reduce(lambda x, _: [x], range(100_000), [])": "(?i)recursion|deep",
}


def test_a_result_of_another_type_is_a_clear_error(fake, make, jobs):
    fake.set(run="now")
    executor = make()
    futures = {expression: executor.submit(jobs.evaluate, expression) for expression in FOREIGN}
    for expression, culprit in FOREIGN.items():
        error = futures[expression].exception(DEADLINE_S)
        assert isinstance(error, ExecutorError) and re.search(culprit, str(error)) and "\n" not in str(error), (expression, error)
    assert len(fake.history()) == len(FOREIGN)  # trying again would not help
    assert executor.submit(jobs.square, 3).result(DEADLINE_S) == 9


def test_exceptions(fake, make, jobs):
    fake.set(run="now")
    executor = make()
    with pytest.raises(ValueError, match="^sector 42 is empty$") as info:
        executor.submit(jobs.fail, ValueError, "sector 42 is empty").result(DEADLINE_S)
    assert type(info.value) is ValueError
    assert "in fail\n" in "".join(traceback.format_exception(info.value))
    with pytest.raises(RemoteError, match="^SectorError: sector 42 is empty$") as info:
        executor.submit(jobs.fail, jobs.SectorError, "sector 42 is empty").result(DEADLINE_S)
    assert info.value.type_name == "SectorError" and "in fail\n" in info.value.traceback_text
    assert "in fail\n" in "".join(traceback.format_exception(info.value))


def test_exceptions_that_are_hard_to_build_or_dangerous_to_raise(fake, make, jobs):
    fake.set(run="now")
    executor = make()
    raised = {
        SystemExit: ("3",),
        KeyboardInterrupt: (),
        GeneratorExit: (),
        StopIteration: ("x",),
        KeyError: ("x",),
        FileNotFoundError: (2, "No such file", "x"),
        UnicodeDecodeError: ("utf-8", b"\xff", 0, 1, "invalid"),
        jobs.Unspeakable: (),
    }
    futures = {kind: executor.submit(jobs.fail, kind, *args) for kind, args in raised.items()}
    errors = {kind: future.exception(DEADLINE_S) for kind, future in futures.items()}
    for kind in SystemExit, KeyboardInterrupt, GeneratorExit:  # raised here they would end more than the task
        assert isinstance(errors[kind], RemoteError) and errors[kind].type_name == kind.__name__
    for kind in raised:
        assert isinstance(errors[kind], (kind, RemoteError)), kind
        assert "in fail\n" in "".join(traceback.format_exception(errors[kind])), kind
    assert executor.submit(jobs.square, 3).result(DEADLINE_S) == 9


def test_a_call_that_does_not_pickle(fake, make, jobs):
    fake.set(run="now")
    executor = make()
    for future in executor.submit(lambda: 1), executor.submit(jobs.same, threading.Lock()):
        with pytest.raises(NotPicklable):
            future.result(DEADLINE_S)
    assert executor.submit(jobs.square, 3).result(DEADLINE_S) == 9
    assert len(fake.history()) == 1


def test_a_function_of_this_file(fake, make):
    fake.set(run="now")
    assert make().submit(sum_of, 3, 4).result(DEADLINE_S) == 7


def sum_of(*numbers):
    return sum(numbers)


def test_where_and_how_a_job_runs(fake, make, jobs, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", """/a "b" it's""")
    executor = make()
    future = executor.submit(jobs.state)
    (job,) = wait_for_jobs(fake, 1)
    assert subprocess.run(job.command(), cwd=executor.directory, env=job.environment(), timeout=DEADLINE_S).returncode == 0
    fake.finish(job)
    state = future.result(DEADLINE_S)
    assert state["cwd"] == str(tmp_path / "work" / "condor") and state["cpus"] == 1 and state["OMP_NUM_THREADS"] == "1"
    assert state["PATH"] == os.environ["PATH"] and state["PYTHONPATH"] == os.environ["PYTHONPATH"]
    report = executor.report(future)
    assert report["cpus"] == 1 and 0 <= report["seconds"] < DEADLINE_S and report["peak_memory_kb"] > 1000 and report["host"]
    assert "OMP_NUM_THREADS" not in os.environ or os.environ["OMP_NUM_THREADS"] != "1"


def test_report_of_a_task_that_is_not_done(fake, make, jobs):
    executor = make()
    assert executor.report(executor.submit(jobs.square, 3)) is None


@pytest.fixture(params=["inline", "local", "condor"])
def any_executor(request):
    if request.param == "condor":
        request.getfixturevalue("fake").set(run="now")
        yield request.getfixturevalue("make")()
    else:
        with InlineExecutor() if request.param == "inline" else LocalExecutor(2) as executor:
            yield executor


def test_every_executor_tells_the_same(any_executor, jobs):
    executor = any_executor
    executor.warm_up()
    assert executor.processes >= 1
    done, failed = [executor.submit(jobs.square, x) for x in range(3)], executor.submit(jobs.fail, ValueError, "x")
    assert results(done) == [0, 1, 4] and isinstance(failed.exception(DEADLINE_S), ValueError)
    assert executor.statistics["tasks"] == 4 and executor.statistics["stragglers"] == 0
    assert all(isinstance(value, (int, dict)) for value in executor.statistics.values())
    assert executor.counts().keys() >= {"queued", "idle", "running", "held", "done", "failed"}
    wait_until(lambda: executor.counts()["running"] == 0)
    assert executor.counts()["queued"] == executor.counts()["idle"] == executor.counts()["held"] == 0
    assert executor.report(done[0])["seconds"] >= 0
    for future in done:
        assert executor.forget(future) is None
    executor.shutdown()
    executor.shutdown()
    with pytest.raises(RuntimeError, match="cannot submit square"):
        executor.submit(jobs.square, 2)


def test_callbacks_may_submit_and_forget(fake, make, jobs):
    fake.set(run="now")
    executor, last = make(), concurrent.futures.Future()

    def go_on(future):
        executor.forget(future)
        if future.result() > 1000:
            last.set_result(future.result())
        else:
            executor.submit(jobs.square, future.result()).add_done_callback(go_on)

    executor.submit(jobs.square, 2).add_done_callback(go_on)
    assert last.result(DEADLINE_S) == 65536
    wait_until(lambda: not task_files(executor.directory))


def test_an_unexpected_exception_of_the_watcher_fails_all(fake, make, jobs):
    class Broken(TimeLimits):
        def limit_s(self, description):
            raise ZeroDivisionError("boom")

    executor = make(stragglers=Broken(1))
    futures = [executor.submit(jobs.square, x) for x in range(3)]
    fake.start(wait_for_jobs(fake, 3)[0])
    for future in futures:
        with pytest.raises(ExecutorError, match="boom") as info:
            future.result(DEADLINE_S)
        assert "\n" not in str(info.value)
    with pytest.raises((ExecutorError, RuntimeError)):
        executor.submit(jobs.square, 3).result(DEADLINE_S)


# output files -------------------------------------------------------------------------------------------------------


class Planted:
    """Makes a directory when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def edited(**fields):
    return lambda content, trap: pickle.dumps(pickle.loads(content) | fields)


def with_outcome(make_outcome):
    def damage(content, trap):
        outcome = make_outcome(trap)
        sound = pickle.loads(content)
        assert sound["digest"] == hashlib.sha256(sound["outcome"]).hexdigest()
        return pickle.dumps(sound | {"outcome": outcome, "digest": hashlib.sha256(outcome).hexdigest()})

    return damage


BAD_OUTCOMES = {
    "missing": None,
    "empty": b"",
    "truncated": lambda content, trap: content[:-9],
    "half": lambda content, trap: content[: len(content) // 2],
    "text": b"Killed\n",
    "no dictionary": pickle.dumps([1]),
    "fields missing": pickle.dumps({"format": 1}),
    "another task's": edited(task="9999999"),
    "wrong digest": edited(digest="0" * 64),
    "wrong format": edited(format=99),
    "odd outcome": with_outcome(lambda trap: pickle.dumps(("maybe", 9))),
    "short outcome": with_outcome(lambda trap: pickle.dumps(("ok",))),
    "outcome is text": with_outcome(lambda trap: b"ok"),
    "planted": lambda content, trap: pickle.dumps(Planted(trap)),
    "planted within": with_outcome(lambda trap: pickle.dumps(("ok", Planted(trap)))),
    "exception planted": with_outcome(lambda trap: pickle.dumps(("error", "SystemExit", Planted(trap), ""))),
}


def leave_damaged(fake, job, name, trap):
    """The output file of a job, damaged."""
    path, content = Path(job.path(".out")), BAD_OUTCOMES[name]
    if callable(content):
        assert fake.perform(job) == 0
        content = content(path.read_bytes(), trap)
    if content is not None:
        path.write_bytes(content)


def test_a_damaged_output_file_is_made_anew_and_nothing_in_it_is_executed(fake, make, jobs, tmp_path):
    executor = make()
    futures = {name: executor.submit(jobs.square, x) for x, name in enumerate(BAD_OUTCOMES)}
    for name, job in zip(BAD_OUTCOMES, wait_for_jobs(fake, len(BAD_OUTCOMES))):
        leave_damaged(fake, job, name, tmp_path / "trap")
        fake.finish(job)
    fake.set(run="background")
    assert {name: future.result(DEADLINE_S) for name, future in futures.items()} == {name: x * x for x, name in enumerate(BAD_OUTCOMES)}
    assert len(fake.history()) == 2 * len(BAD_OUTCOMES) and not (tmp_path / "trap").exists()


@pytest.mark.parametrize("name", ["truncated", "planted within"])
def test_an_output_file_that_is_always_damaged(fake, make, jobs, tmp_path, name):
    executor = make(retries=1)
    future = executor.submit(jobs.square, 3)
    for attempt in range(2):
        wait_until(lambda attempt=attempt: len(fake.history()) == attempt + 1)
        (job,) = fake.jobs()
        leave_damaged(fake, job, name, tmp_path / "trap")
        fake.finish(job)
    with pytest.raises(TaskDied, match=r"square.*\.err") as info:
        future.result(DEADLINE_S)
    assert "\n" not in str(info.value) and not (tmp_path / "trap").exists() and len(fake.history()) == 2


@pytest.mark.parametrize(("exit_code", "said"), [(3, r"\b3\b"), (-9, "SIGKILL|signal 9")])
def test_a_job_that_ends_without_output(fake, make, jobs, exit_code, said):
    executor = make(retries=1)
    future = executor.submit(jobs.square, 3)
    for attempt in range(2):
        wait_until(lambda attempt=attempt: len(fake.history()) == attempt + 1)
        (job,) = fake.jobs()
        fake.start(job)
        Path(job.path(".err")).write_text("loading\nlast words\n", encoding="utf-8")
        fake.finish(job, exit_code)
    with pytest.raises(TaskDied, match=f"(?=.*({said}))(?=.*{job.task}.err)(?=.*last words)") as info:
        future.result(DEADLINE_S)
    assert "\n" not in str(info.value) and "loading" not in str(info.value)
    assert executor.statistics["failed"] == 1 and executor.statistics["retries"] == 1


def test_an_output_file_that_comes_late_is_used(fake, make, jobs, monkeypatch):
    """As on a network file system, where the log may be seen before the file."""
    monkeypatch.setattr(condor_worker, "GRACE_S", (0.3, 10))
    executor = make()
    future = executor.submit(jobs.square, 3)
    (job,) = wait_for_jobs(fake, 1)
    fake.perform(job)
    hidden = Path(job.path(".out")).rename(Path(job.path(".hidden")))
    fake.finish(job)
    wait_until(lambda: executor.counts()["idle"] == 0)
    hidden.rename(job.path(".out"))
    assert future.result(DEADLINE_S) == 9 and len(fake.history()) == 1


def test_a_result_for_which_the_disk_has_no_room(fake, make, jobs):
    """The limit on a file's size fails as a full disk does."""
    executor = make(retries=0)
    future = executor.submit(jobs.same, "x" * 1_000_000)
    (job,) = wait_for_jobs(fake, 1)
    before = set(os.listdir(executor.directory))
    code = "import sys, condor_worker\ncondor_worker.DISK_PAUSES_S = (0, 0)\nsys.exit(condor_worker.main(sys.argv[1:]))"
    arguments = job.command()[job.command().index(condor_worker.__file__) + 1 :]
    with limited_file_size(500_000), open(job.path(".err"), "wb") as errors:
        done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=executor.directory, env=os.environ | path_to(), stderr=errors)
    assert done.returncode == 3
    assert set(os.listdir(executor.directory)) - before <= {f"{job.task}.err"}  # no half a file
    (line,) = Path(job.path(".err")).read_text(encoding="utf-8").splitlines()
    assert job.task in line
    fake.finish(job, 3)
    with pytest.raises(TaskDied, match=re.escape(line[-20:])):
        future.result(DEADLINE_S)


def path_to(*folders):
    """PYTHONPATH of a process that is to find condor_worker."""
    return {"PYTHONPATH": os.pathsep.join(map(str, [HERE, *folders]))}


@contextlib.contextmanager
def limited_file_size(size):
    """No file grows beyond that, neither of this process nor of those it starts."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_call_for_which_the_disk_has_no_room(fake, make, jobs):
    fake.set(run="now")
    executor = make()
    with limited_file_size(500_000):
        future = executor.submit(jobs.same, "x" * 1_000_000)
        with pytest.raises(ExecutorError) as info:
            future.result(DEADLINE_S)
        assert "\n" not in str(info.value) and str(executor.directory) in str(info.value)
        assert executor.submit(jobs.square, 3).result(DEADLINE_S) == 9
    assert not [name for name in os.listdir(executor.directory) if "tmp" in name]


def test_a_journal_that_cannot_be_written_is_said_once(fake, make, jobs, tmp_path):
    fake.set(run="now")
    said = []
    journal = private_directory(tmp_path / "work" / "condor") / "events.jsonl"
    journal.write_text('{"time": 0, "event": "note"}\n' * 30_000, encoding="utf-8")
    executor = make(say=lambda *words: said.append(" ".join(map(str, words))))
    with limited_file_size(500_000):
        assert results([executor.submit(jobs.square, x) for x in range(3)]) == [0, 1, 4]
        assert results([executor.submit(jobs.square, x) for x in range(3)]) == [0, 1, 4]
    assert len([line for line in said if "events.jsonl" in line]) == 1, said


# job side -----------------------------------------------------------------------------------------------------------


def test_a_script_as_the_main_program(fake, tmp_path):
    """Functions and exceptions of a script, which is not run a second time."""
    fake.set(run="background")
    script = tmp_path / """it's "here".py"""
    script.write_text(
        textwrap.dedent(
            """
            import sys
            from condor_worker import CondorExecutor

            class Special(Exception):
                pass

            def work(x):
                if x < 0:
                    raise Special(f"negative: {x}")
                return x * x

            if __name__ == "__main__":
                with CondorExecutor(sys.argv[1], check_interval_s=0.2) as executor:
                    futures = [executor.submit(work, x) for x in (3, 4, -1)]
                    print(futures[0].result(), futures[1].result(), repr(futures[2].exception()))
            """
        ),
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, script.name, tmp_path / "work"],
        cwd=tmp_path,
        env=os.environ | path_to(),
        text=True,
        capture_output=True,
        timeout=DEADLINE_S,
    )
    assert done.stderr == "" and done.stdout.startswith("9 16 RemoteError('Special', 'negative: -1'")


HOSTILE_NAMES = [
    "blank and  two",
    """it's "here" """.strip(),
    "a,b;c",
    "$(x) $HOME $ENV(HOME) $(task) $RANDOM_CHOICE(1,2)",
    "ünï→\u202e",
    "; touch pwned; `touch pwned` $(touch pwned) | touch pwned & touch pwned",
    "#comment = \\ \\\\x",
    "-constraint",
    "'",
    '"',
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_hostile_directory_names(fake, make, jobs, tmp_path, monkeypatch, name):
    fake.set(run="background")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    directory = tmp_path / name
    executor = make(directory)
    assert Path(executor.submit(jobs.state).result(DEADLINE_S)["cwd"]) == directory
    assert list((tmp_path / "here").iterdir()) == [] and not list(tmp_path.rglob("pwned"))
    assert all(job.ad["initialdir"] == str(directory) for job in fake.history())


def test_a_relative_directory_and_a_changed_one(fake, make, jobs, tmp_path, monkeypatch):
    fake.set(run="background")
    monkeypatch.chdir(tmp_path)
    executor = make("here")
    monkeypatch.chdir("/")
    assert executor.submit(jobs.state).result(DEADLINE_S)["cwd"] == str(tmp_path / "here")


@pytest.mark.parametrize("name", ["a\nqueue 1000", "a $$(y)", "a\\", "a\r"])
def test_directory_names_that_no_submit_file_can_hold(fake, tmp_path, name):
    """A real condor_submit replaces $(DOLLAR) but once in $(DOLLAR)$(DOLLAR)."""
    with pytest.raises(ValueError) as info:
        CondorExecutor(tmp_path / name)
    assert "\n" not in str(info.value) and not (tmp_path / name).exists()


def test_transfer_of_files(fake, make, jobs, tmp_path):
    """The job runs elsewhere and finds what it needs in its own directory."""
    fake.set(run="background")
    shared = Shared.write({"table": list(range(1000))}, tmp_path / "else, where")
    executor = make(transfer_files=True)
    state = executor.submit(jobs.state)
    values = [executor.submit(jobs.read, shared) for _ in range(3)]
    assert Path(state.result(DEADLINE_S)["cwd"]).name.startswith("scratch-")
    assert results(values) == [{"table": list(range(1000))}] * 3
    ad = fake.history()[0].ad
    transferred = ad["transfer_input_files"].split(",")
    assert ad["should_transfer_files"].upper() == "YES" and ad["when_to_transfer_output"].upper() == "ON_EXIT"
    assert not any(os.path.isabs(name.strip()) for name in transferred)
    assert {"condor_worker.py", "condor_jobs.py"} <= {name.strip() for name in transferred}


def test_without_transfer_the_file_system_is_shared(fake, make, jobs):
    executor = make()
    executor.submit(jobs.square, 3)
    (job,) = wait_for_jobs(fake, 1)
    assert job.ad["should_transfer_files"].upper() == "NO" and "transfer_input_files" not in job.ad


# options ------------------------------------------------------------------------------------------------------------


RESERVED = ["executable", "arguments", "queue", "log", "output", "error", "initialdir", "max_materialize", "max_idle"]
RESERVED += ["transfer_input_files", "should_transfer_files", "request_cpus", "request_memory", "priority"]


@pytest.mark.parametrize("key", [*RESERVED, "Executable", "REQUEST_MEMORY"])
def test_reserved_options(fake, tmp_path, key):
    with pytest.raises(ValueError, match=key) as info:
        CondorExecutor(tmp_path, options=[(key, "1")])
    hints = {"request_cpus": "cpus", "request_memory": "memory_mb", "max_idle": "max_jobs", "max_materialize": "max_jobs"}
    assert hints.get(key.lower(), "") in str(info.value) and "\n" not in str(info.value)


@pytest.mark.parametrize("option", [("a b", "1"), ("", "1"), ("x=y", "1"), ("1x", "1"), ("++x", "1"), ("x\n", "1"), ("x", "1\nqueue 9")])
def test_impossible_options(fake, tmp_path, option):
    with pytest.raises(ValueError):
        CondorExecutor(tmp_path, options=[option])


def test_options_reach_the_submit_file(fake, make, jobs):
    options = [("accounting_group", "physics.loops"), ("requirements", '(OpSysMajorVer > 7) && (Arch == "X86_64")'), ("+Project", '"ibp"')]
    executor = make(options=[*options, ("MY.Other", "3"), ("request_disk", "7 GB")], cpus=2, memory_mb=3000)
    executor.submit(jobs.square, 3)
    (job,) = wait_for_jobs(fake, 1)
    assert job.ad["accounting_group"] == "physics.loops" and job.ad["requirements"] == options[1][1]
    assert job.ad["my.project"] == '"ibp"' and job.ad["my.other"] == "3" and job.ad["request_disk"] == "7 GB"
    assert (job.cpus, job.memory) == (2, 3000)
    run = json.loads((executor.directory / "run.json").read_text(encoding="utf-8"))["run"]
    assert job.ad["my.condorworkerrun"] == f'"{run}"'


@pytest.mark.parametrize(
    "options", [{"check_interval_s": 0}, {"cpus": 0}, {"memory_mb": 0}, {"max_jobs": 0}, {"retries": -1}, {"timeout_s": 0}]
)
def test_impossible_numbers_for_condor(fake, tmp_path, options):
    with pytest.raises(ValueError):
        CondorExecutor(tmp_path, **options)


@pytest.mark.parametrize("missing", ["condor_submit", "condor_q", "condor_rm"])
def test_without_htcondor(fake_tools, tmp_path, monkeypatch, missing):
    (tmp_path / "bin").mkdir()
    for tool in fake_tools[0].glob("condor_*"):
        if tool.name != missing:
            (tmp_path / "bin" / tool.name).symlink_to(tool)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(CondorMissing, match=missing) as info:
        CondorExecutor(tmp_path / "work")
    assert "\n" not in str(info.value)


# what happens to jobs -----------------------------------------------------------------------------------------------


def test_counts_tell_what_the_jobs_do(fake, make, jobs):
    executor = make(max_jobs=4)
    futures = [executor.submit(jobs.square, x) for x in range(6)]
    idle, running, held, done = wait_for_jobs(fake, 4)
    fake.run(done)
    assert futures[3].result(DEADLINE_S) == 9
    wait_for_jobs(fake, 4)
    fake.start(running)
    fake.hold(held, 1, "because")  # and soon released
    wait_until(lambda: executor.counts()["running"] == 1 and executor.counts()["done"] == 1)
    counts = executor.counts()
    assert counts["queued"] == 1 and counts["idle"] + counts["held"] == 3 and counts["failed"] == 0, counts


@pytest.mark.parametrize("logged", [True, False], ids=["removed", "vanished"])
def test_a_job_that_somebody_removed_is_submitted_again(fake, make, jobs, logged):
    executor = make(retries=2)
    future = executor.submit(jobs.square, 3)
    (job,) = wait_for_jobs(fake, 1)
    fake.start(job)
    fake.remove(job) if logged else fake.vanish(job)
    (again,) = wait_for_jobs(fake, 1)
    assert again.task == job.task and (again.cpus, again.memory) == (job.cpus, job.memory)
    fake.run(again)
    assert future.result(DEADLINE_S) == 9 and executor.statistics["retries"] == 1


def test_a_job_that_is_removed_again_and_again(fake, make, jobs):
    executor = make(retries=2)
    future = executor.submit(jobs.square, 3)
    for attempt in range(3):
        wait_until(lambda attempt=attempt: len(fake.history()) == attempt + 1)
        fake.remove(fake.jobs()[0])
    with pytest.raises(ExecutorError, match="square.*remove") as info:
        future.result(DEADLINE_S)
    assert "\n" not in str(info.value) and len(fake.history()) == 3


def test_a_removed_job_that_has_left_its_output(fake, make, jobs):
    executor = make()
    future = executor.submit(jobs.square, 3)
    (job,) = wait_for_jobs(fake, 1)
    fake.perform(job)
    fake.remove(job)
    assert future.result(DEADLINE_S) == 9 and len(fake.history()) == 1


HOLDS = [
    (1, "via condor_hold (by user root)"),
    (6, "Error from slot1@node: Failed to execute"),
    (7, "Failed to open '/x' as standard error"),
]


def test_a_held_job_is_released_and_at_last_given_up(fake, make, jobs):
    said = []
    executor = make(check_interval_s=0.02, say=lambda *words: said.append(" ".join(map(str, words))))
    futures = [executor.submit(jobs.square, x) for x in range(len(HOLDS))]
    held = wait_for_jobs(fake, len(HOLDS))

    def releases():
        return (executor.directory / "jobs.log").read_bytes().count(b"\n013 (")

    for number in range(4):
        for job, (code, reason) in zip(held, HOLDS):
            fake.hold(job, code, reason)
        if number < 3:
            wait_until(lambda number=number: releases() == len(held) * (number + 1) or any(future.done() for future in futures))
            assert not any(future.done() for future in futures), futures
            let_it_look(fake, 2)
    for future, (code, reason) in zip(futures, HOLDS):
        with pytest.raises(TaskHeld, match=rf"square(?=.*\b{code}\b).*{re.escape(reason)}") as info:
            future.result(DEADLINE_S)
        assert "\n" not in str(info.value) and len([line for line in said if reason in line]) == 1, said
    wait_for_jobs(fake, 0)
    assert len(fake.history()) == len(HOLDS) and releases() == 3 * len(HOLDS)


def test_a_job_that_is_held_again_at_once(fake, make, jobs):
    """The queue and the log tell of the same hold, which counts once."""
    executor = make(check_interval_s=0.02)
    future = executor.submit(jobs.square, 3)
    (job,) = wait_for_jobs(fake, 1)
    for releases in range(4):
        fake.hold(job, 1, "because")
        wait_until(lambda releases=releases: (len(fake.calls("condor_release")) > releases and fake.jobs(1)) or future.done())
    assert isinstance(future.exception(DEADLINE_S), TaskHeld)
    assert (len(fake.calls("condor_release")), executor.statistics["held"]) == (3, 4)


def test_jobs_held_together_are_released_together_and_go_on(fake, make, jobs):
    executor = make(check_interval_s=0.3)
    futures = [executor.submit(jobs.square, x) for x in range(20)]
    for job in wait_for_jobs(fake, 20):
        fake.hold(job, 1, "because")
    wait_for_jobs(fake, 20, 1)
    assert len(fake.calls("condor_release")) <= 3
    fake.set(run="background")
    assert results(futures) == [x * x for x in range(20)] and executor.statistics["held"] >= 20


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (34, "Error from slot1@node: Job has gone over memory limit of 1024 megabytes"),
        (26, "MemoryUsage exceeded"),
        (21, "over memory limit"),
    ],
)
def test_a_job_held_for_its_memory_gets_more_up_to_a_limit(fake, make, jobs, code, reason):
    executor = make(memory_mb=1000, max_memory_mb=4000)
    future = executor.submit(jobs.square, 3)
    for memory in 1000, 2000, 4000:
        wait_until(lambda memory=memory: [job.memory for job in fake.jobs()] == [memory])
        fake.start(fake.jobs()[0])
        fake.hold(fake.jobs()[0], code, reason)
    with pytest.raises(TaskHeld, match=rf"(?=.*\b{code}\b)(?=.*{reason})"):
        future.result(DEADLINE_S)
    wait_for_jobs(fake, 0)
    assert [job.memory for job in fake.history()] == [1000, 2000, 4000] and not fake.calls("condor_release")


def test_more_memory_helps(fake, make, jobs):
    executor = make()
    future = executor.submit(jobs.square, 3)
    (job,) = wait_for_jobs(fake, 1)
    fake.hold(job, 34, "memory")
    wait_until(lambda: [again.memory for again in fake.jobs()] == [2 * job.memory])
    fake.run(fake.jobs()[0])
    assert future.result(DEADLINE_S) == 9


def test_a_second_job_of_a_task_is_removed(fake, make, jobs):
    executor = make()
    future = executor.submit(jobs.square, 3)
    (job,) = wait_for_jobs(fake, 1)
    fake.copy(job)
    wait_until(lambda: len(fake.history()) == 2 and fake.history()[1].gone == "removed")
    assert fake.history()[0].gone is None
    fake.run(job)
    assert future.result(DEADLINE_S) == 9


# the queue does not answer ------------------------------------------------------------------------------------------


def no_changes_since(fake, before):
    return [call for call in fake.calls()[before:] if call[0] != "condor_q"] == []


def test_while_the_schedd_is_down_nothing_is_concluded(fake, make, jobs):
    said = []
    executor = make(say=lambda *words: said.append(" ".join(map(str, words))))
    futures = [executor.submit(jobs.square, x) for x in range(3)]
    all_jobs = wait_for_jobs(fake, 3)
    let_it_look(fake)
    fake.set(down=True)
    before = len(fake.calls())
    let_it_look(fake, 2)
    fake.perform(all_jobs[0])
    fake.vanish(all_jobs[0])  # done, and the log does not tell
    fake.vanish(all_jobs[1])  # lost
    let_it_look(fake, 2)
    assert no_changes_since(fake, before) and not any(future.done() for future in futures)
    fake.set(down=False)
    assert futures[0].result(DEADLINE_S) == 0
    fake.set(run="background")
    assert results(futures) == [0, 1, 4]
    assert sorted(job.task for job in fake.history()) == sorted([job.task for job in all_jobs] + [all_jobs[1].task])
    assert len(said) == 2 and "condor_q" in said[0], said  # down, and back


GARBAGE = [
    "garbage",
    "[",
    "[" * 100_000,
    "[1, 2]",
    "{}",
    '""',
    "[{}]",
    '[{"ClusterId": "x", "ProcId": [], "JobStatus": null}]',
    "[null]",
    "\0",
]


def test_garbage_from_the_queue_is_not_an_empty_queue(fake, make, jobs, monkeypatch):
    monkeypatch.setattr(condor_worker, "LONGEST_BACKOFF_S", 0.05)
    executor = make(check_interval_s=0.05)
    future = executor.submit(jobs.square, 3)
    (job,) = wait_for_jobs(fake, 1)
    let_it_look(fake, 1)
    before = len(fake.calls())
    for text, code in [*((text, 0) for text in GARBAGE), ("", 1), ("[]", 1)]:
        fake.set(garbage=[text, code])
        asked = len(fake.calls("condor_q"))
        wait_until(lambda asked=asked: len(fake.calls("condor_q")) >= asked + 2 or future.done())
        assert no_changes_since(fake, before) and not future.done(), (text[:99], future)
        assert executor.counts()["idle"] == 1, text[:99]
    fake.set(garbage=None)
    let_it_look(fake, 3)
    assert no_changes_since(fake, before) and not future.done()
    fake.run(job)
    assert future.result(DEADLINE_S) == 9


@pytest.fixture
def impatient(monkeypatch):
    """Less than a second for any tool of HTCondor."""
    run = subprocess.run
    monkeypatch.setattr(
        subprocess, "run", lambda *args, timeout=None, **options: run(*args, timeout=timeout and min(timeout, 0.7), **options)
    )


def test_a_queue_that_hangs_is_no_empty_queue(fake, make, jobs, impatient):
    executor = make()
    future = executor.submit(jobs.square, 3)
    (job,) = wait_for_jobs(fake, 1)
    let_it_look(fake, 1)
    fake.set(hang=["condor_q"])
    before = len(fake.calls())
    let_it_look(fake, 2)
    assert no_changes_since(fake, before)
    fake.set(hang=[])
    fake.run(job)
    assert future.result(DEADLINE_S) == 9


@pytest.mark.parametrize("how", ["error", "die", "silent", "hang"])
def test_a_submission_that_worked_though_it_failed(fake, make, jobs, impatient, how):
    fake.set(submit_after=how)
    executor = make()
    futures = [executor.submit(jobs.square, x) for x in range(5)]
    all_jobs = wait_for_jobs(fake, 5)
    let_it_look(fake)
    assert len(fake.history()) == 5 and len(fake.calls("condor_submit")) == 1
    for job in all_jobs:
        fake.run(job)
    assert results(futures) == [x * x for x in range(5)]
    assert len(fake.history()) == 5 and not fake.calls("condor_rm")


def test_a_submission_that_worked_though_it_failed_and_is_over_already(fake, make, jobs):
    fake.set(submit_after="error", run="now")
    executor = make()
    assert results([executor.submit(jobs.square, x) for x in range(5)]) == [x * x for x in range(5)]
    assert len(fake.history()) == 5


def test_a_submission_that_cannot_work(fake, make, jobs):
    message = "ERROR: Parse error in expression: Requirements = ((Target.Arch"
    fake.set(submit_error=message)
    executor = make(check_interval_s=0.05)
    futures = [executor.submit(jobs.square, x) for x in range(3)]
    for future in futures:
        with pytest.raises(SubmitFailed, match=re.escape("Parse error in expression")) as info:
            future.result(DEADLINE_S)
        assert "\n" not in str(info.value)
    assert len(fake.calls("condor_submit")) == 3
    fake.set(submit_error=None, run="now")
    assert executor.submit(jobs.square, 3).result(DEADLINE_S) == 9


def test_a_submission_waits_for_the_schedd(fake, make, jobs):
    fake.set(down=True)
    executor = make()
    futures = [executor.submit(jobs.square, x) for x in range(3)]
    wait_until(lambda: len(fake.calls()) >= 3)
    assert not any(future.done() for future in futures)
    fake.set(down=False, run="background")
    assert results(futures) == [0, 1, 4] and len(fake.history()) == 3


def test_a_condor_rm_that_fails_is_repeated(fake, make, jobs):
    executor = make(timeout_s=60)
    future = executor.submit(jobs.square, 3)
    (job,) = wait_for_jobs(fake, 1)
    let_it_look(fake, 1)
    fake.set(down=["condor_rm"])
    fake.start(job, ago_s=100)
    wait_until(lambda: fake.calls("condor_rm"))
    let_it_look(fake, 2)
    assert fake.jobs() and not future.done()
    fake.set(down=False)
    assert isinstance(future.exception(DEADLINE_S), TaskTimeout)
    wait_for_jobs(fake, 0)


# user log -----------------------------------------------------------------------------------------------------------


def test_an_event_that_is_half_written(fake, make, jobs):
    executor = make()
    future = executor.submit(jobs.square, 3)
    (job,) = wait_for_jobs(fake, 1)
    fake.perform(job)
    event = f"005 (001.000.000) {time.strftime('%Y-%m-%d %H:%M:%S')} Job terminated.\n\t(1) Normal termination (return value 0)\n...\n"
    fake.append(job, event[:20])
    let_it_look(fake)
    assert not future.done()
    fake.append(job, event[20:])
    assert future.result(DEADLINE_S) == 9


@pytest.mark.parametrize("how", ["truncated", "replaced", "deleted", "garbage"])
def test_a_log_that_is_tampered_with(fake, make, jobs, how):
    executor = make()
    futures = [executor.submit(jobs.square, x) for x in range(3)]
    all_jobs = wait_for_jobs(fake, 3)
    log = executor.directory / "jobs.log"
    fake.run(all_jobs[0])
    assert futures[0].result(DEADLINE_S) == 0
    if how == "truncated":
        os.truncate(log, 0)
    elif how == "garbage":
        with open(log, "ab") as file:
            file.write(b"\n...\n\xff\xfe 005 (\n...\n005 (999.999.000) 2026\n...\n001 (x.y.z) yesterday\n...\n005\n...\n...\n")
    else:
        log.unlink()
        if how == "replaced":
            log.write_text("", encoding="utf-8")
    fake.run(all_jobs[1])
    fake.run(all_jobs[2])
    assert results(futures) == [0, 1, 4] and len(fake.history()) == 3


# stragglers ---------------------------------------------------------------------------------------------------------


def test_a_straggler_is_run_again_with_more_cpus(fake, make, jobs, tmp_path):
    executor = make(stragglers=TimeLimits(60))
    futures = [executor.submit(jobs.state) for _ in range(5)]
    all_jobs = wait_for_jobs(fake, 5)
    for job in all_jobs[:3]:
        fake.start(job, ago_s=100)
    fake.start(all_jobs[3], ago_s=5)
    wait_until(lambda: len(fake.history()) == 8 and len(fake.jobs()) == 5)
    again = fake.history()[5:]
    assert sorted(job.task for job in again) == [job.task for job in all_jobs[:3]]
    assert all((job.cpus, job.memory) == (8, 2 * all_jobs[0].memory) for job in again)
    assert len(fake.calls("condor_rm")) <= 3  # not one for each
    for job in again[1:]:
        fake.run(job)
    fake.start(again[0], ago_s=10_000)  # has no such limit now
    let_it_look(fake)
    assert len(fake.history()) == 8
    fake.finish(again[0], fake.perform(again[0]))
    assert [future.result(DEADLINE_S)["cpus"] for future in futures[:3]] == [8, 8, 8]
    assert executor.report(futures[0])["cpus"] == 8
    for job in all_jobs[3:]:
        fake.run(job)
    assert [future.result(DEADLINE_S)["cpus"] for future in futures[3:]] == [1, 1]
    assert executor.statistics["stragglers"] == 3 and not Path("pwned").exists()


def test_a_straggler_whose_output_is_there_first(fake, make, jobs):
    executor = make(stragglers=TimeLimits(60))
    future = executor.submit(jobs.square, 3)
    (job,) = wait_for_jobs(fake, 1)
    fake.set(removal_lingers=True)
    fake.start(job, ago_s=100)
    wait_until(lambda: fake.jobs(3))
    fake.perform(job)
    fake.remove(job)
    assert future.result(DEADLINE_S) == 9 and len(fake.history()) == 1


def test_a_straggler_is_not_run_twice_at_a_time(fake, make, jobs):
    executor = make(stragglers=TimeLimits(60))
    future = executor.submit(jobs.square, 3)
    (job,) = wait_for_jobs(fake, 1)
    fake.set(removal_lingers=True)
    fake.start(job, ago_s=100)
    wait_until(lambda: fake.jobs(3))
    let_it_look(fake, 3)
    fake.set(down=True)
    let_it_look(fake, 2)
    assert len(fake.history()) == 1
    fake.set(down=False, removal_lingers=False)
    fake.remove(job)
    (again,) = wait_for_jobs(fake, 1)
    assert again.key != job.key and again.cpus == 8
    fake.run(again)
    assert future.result(DEADLINE_S) == 9


def test_an_eviction_resets_the_clock(fake, make, jobs):
    executor = make(stragglers=TimeLimits(60))
    future = executor.submit(jobs.square, 3)
    (job,) = wait_for_jobs(fake, 1)
    now = time.time()
    fake.log(job, fake.started(now - 500), fake.evicted(now - 400))
    let_it_look(fake, 3)
    lost = (7, "Shadow exception!\n\tCan no longer talk to condor_starter", now - 20)  # as good as an eviction
    fake.start(job, ago_s=10, before=[fake.started(now - 300), lost])
    let_it_look(fake, 3)
    assert not fake.calls("condor_rm") and len(fake.history()) == 1
    fake.evict(job)
    let_it_look(fake, 2)
    fake.run(job)
    assert future.result(DEADLINE_S) == 9 and executor.statistics["stragglers"] == 0


def test_waiting_in_the_queue_is_not_slowness(fake, make, jobs):
    executor = make(stragglers=TimeLimits(0.3), timeout_s=0.3)
    future = executor.submit(jobs.square, 3)
    (job,) = wait_for_jobs(fake, 1)
    let_it_look(fake, 5)  # 0.7 s
    assert not fake.calls("condor_rm") and len(fake.history()) == 1
    fake.perform(job)
    fake.finish(job)
    assert future.result(DEADLINE_S) == 9


def test_a_log_without_the_start_of_a_job(fake, make, jobs):
    """The queue tells it too."""
    executor = make(stragglers=TimeLimits(60))
    future = executor.submit(jobs.square, 3)
    (job,) = wait_for_jobs(fake, 1)
    with fake.database() as database:
        fake.change(database, job, status=2, start=time.time() - 100)
    wait_until(lambda: [again.cpus for again in fake.jobs()] == [8])
    fake.run(fake.jobs()[0])
    assert future.result(DEADLINE_S) == 9


def test_the_hard_time_limit(fake, make, jobs):
    executor = make(timeout_s=60, retries=3)
    slow, fast = executor.submit(jobs.square, 3), executor.submit(jobs.square, 4)
    first, second = wait_for_jobs(fake, 2)
    fake.start(first, ago_s=100)
    with pytest.raises(TaskTimeout, match="square.* 60 s"):
        slow.result(DEADLINE_S)
    fake.run(second)
    assert fast.result(DEADLINE_S) == 16 and len(fake.history()) == 2 and fake.history()[0].gone == "removed"


def test_the_limit_that_is_learned(fake, make, jobs):
    fake.set(run="now")
    executor = make(stragglers=TimeLimits(None, auto=True, floor_s=50), describe=lambda fn, args, kwargs: Description(group=fn.__name__))
    results([executor.submit(jobs.square, x) for x in range(12)])
    fake.set(run="idle")
    known, unknown = executor.submit(jobs.square, 3), executor.submit(jobs.same, 4)
    for job in wait_for_jobs(fake, 2):
        fake.start(job, ago_s=100)
    wait_until(lambda: len(fake.history()) == 15)
    first, second = sorted(fake.jobs(), key=lambda job: job.cpus)
    assert (first.cpus, second.cpus) == (1, 8)
    fake.finish(first, fake.perform(first))
    fake.run(second)
    assert results([known, unknown]) == [9, 4]


# how often, how much, in which order --------------------------------------------------------------------------------


def priority_of_argument(fn, args, kwargs):
    return Description(priority=args[0])


def test_the_heaviest_first(fake, make, jobs):
    executor = make(max_jobs=2, describe=priority_of_argument)
    futures = [executor.submit(jobs.square, x) for x in (100, 100)]
    first = wait_for_jobs(fake, 2)
    numbers = [3, 1, 4, 1, 5, 9, 4]
    futures += [executor.submit(jobs.square, x) for x in numbers]
    wait_until(lambda: executor.counts()["queued"] == len(numbers))
    assert executor.processes == 2
    for done in range(len(numbers)):
        fake.run(first.pop(0))
        wait_until(lambda done=done: len(fake.history()) == 3 + done)
        first.append(fake.history()[-1])
    for job in first:
        fake.run(job)
    assert results(futures) == [x * x for x in [100, 100, *numbers]]
    assert [job.priority for job in fake.history()[2:]] == sorted(numbers, reverse=True)
    tasks = [job.task for job in fake.history()[2:]]
    assert tasks == sorted(tasks, key=lambda task: (-numbers[int(task) - int(min(tasks))], task))  # ties: first in first out


def test_many_tasks_are_one_cluster(fake, make, jobs):
    executor = make(describe=priority_of_argument)
    futures = [executor.submit(jobs.square, x) for x in range(200)]
    all_jobs = wait_for_jobs(fake, 200)
    assert len({job.cluster for job in all_jobs}) == len(fake.calls("condor_submit")) <= 3
    assert {job.priority for job in all_jobs} == set(range(200))
    assert len({job.ad["log"] for job in all_jobs}) == 1
    executor.remove_jobs()
    assert not any(future.done() and future.exception() is None for future in futures)


def test_max_jobs_is_respected(fake, make, jobs, tmp_path):
    fake.set(run="background", slots=2)
    executor = make(max_jobs=5)
    futures, most = [executor.submit(jobs.noted_square, str(tmp_path / "runs"), x) for x in range(15)], 0
    while not all(future.done() for future in futures):
        most = max(most, len(fake.jobs()))
    assert results(futures) == [x * x for x in range(15)] and most <= 5
    sizes = [len(list(group)) for _, group in itertools.groupby(fake.history(), key=lambda job: job.cluster)]
    assert sum(sizes) == 15 and max(sizes) <= 5


def test_the_queue_is_asked_once_per_interval_whatever_happens(fake, make, jobs, monkeypatch):
    asked, run = [], subprocess.run

    def note_and_run(command, **options):
        asked.extend([time.monotonic()] * (command[0] == "condor_q"))
        return run(command, **options)

    monkeypatch.setattr(subprocess, "run", note_and_run)
    fake.set(run="background")
    executor = make(check_interval_s=0.3, stragglers=TimeLimits(60))
    until = time.monotonic() + 10
    while len(asked) < 5 and time.monotonic() < until:  # something is submitted all the time
        executor.submit(jobs.noted_square, os.devnull, 3, 0.1).result(DEADLINE_S)
    assert len(asked) >= 5 and min(later - earlier for earlier, later in itertools.pairwise(asked)) > 0.29, asked


def test_the_queue_is_not_asked_while_no_job_is_out(fake, make, jobs):
    fake.set(run="now")
    executor = make(check_interval_s=0.05)
    executor.submit(jobs.square, 3).result(DEADLINE_S)
    wait_until(lambda: executor.counts()["running"] == executor.counts()["idle"] == 0)
    before = len(fake.calls())
    with pytest.raises(concurrent.futures.TimeoutError):
        concurrent.futures.Future().result(0.5)
    assert len(fake.calls()) <= before + 1


@pytest.mark.parametrize("number", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_many_tasks(fake, make, jobs, number, memory_path):
    """In the time of a few calls of the tools."""
    fake.set(run="now")
    executor = make(memory_path / "condor", check_interval_s=5)
    start = time.monotonic()
    futures = [executor.submit(jobs.square, x) for x in range(number)]
    submitted = time.monotonic()
    assert results(futures) == [x * x for x in range(number)]
    seconds = time.monotonic() - start
    print(f"{number} tasks: {submitted - start:.1f} s to submit, {seconds:.1f} s in all, {len(fake.calls())} calls of tools")
    assert len(fake.calls("condor_submit")) <= 4 + number / 100 and len(fake.calls("condor_q")) <= 2 + seconds / 5
    for future in futures:
        executor.forget(future)
    executor.shutdown()
    assert task_files(executor.directory) == []


def test_a_thousand_waiting_jobs_cost_next_to_nothing(fake, make, jobs):
    executor = make(check_interval_s=0.7)
    for x in range(1000):
        executor.submit(jobs.square, x)
    wait_for_jobs(fake, 1000)
    let_it_look(fake, 1)
    before, start = time.process_time(), time.monotonic()
    while time.monotonic() - start < 1:
        threading.Event().wait(0.1)  # no polling of ours
    assert (time.process_time() - before) / (time.monotonic() - start) < 0.1


# ending -------------------------------------------------------------------------------------------------------------


def test_forgotten_files(fake, make, jobs):
    fake.set(run="background")
    executor = make()
    futures = [executor.submit(jobs.square, x) for x in range(5)]
    results(futures)
    wait_for_jobs(fake, 0)
    tasks = sorted({name.partition(".")[0] for name in task_files(executor.directory)})
    assert len(tasks) == 5
    for future in futures[:4]:
        executor.forget(future)
        executor.forget(future)
    wait_until(lambda: {name.partition(".")[0] for name in task_files(executor.directory)} == {tasks[4]})
    executor.shutdown()
    assert task_files(executor.directory) == [] and not list(executor.directory.glob("submit-*"))


def test_files_that_a_killed_controller_was_writing_or_deleting(fake, make, jobs):
    fake.set(run="now")
    executor = make()
    unfinished = "0000043.call.node.99.7", "0000042.out.node7.99.7"  # as replace_file names them
    for name in ("0000042.out", "0000042.err", "submit-3.sub", "submit-3.items", *unfinished):
        (executor.directory / name).touch()
    executor.detach()
    successor = make()
    assert successor.recover() == [] and successor.submit(jobs.square, 3).result(DEADLINE_S) == 9
    successor.shutdown()
    assert {path.name for path in successor.directory.iterdir()} == {"run.json", "jobs.log", "events.jsonl"}


@pytest.mark.parametrize("cancel", [False, True])
def test_shutdown_waits_and_cancels_what_the_cluster_does_not_have(fake, make, jobs, cancel):
    executor = make(max_jobs=2)
    futures = [executor.submit(jobs.square, x) for x in range(5)]
    wait_for_jobs(fake, 2)
    wait_until(lambda: all(future.running() for future in futures[:2]))
    assert futures[2].cancel() and not futures[0].cancel()
    executor.shutdown(wait=False, cancel_futures=cancel)
    with pytest.raises(RuntimeError, match="cannot submit square"):
        executor.submit(jobs.square, 2)
    fake.set(run="background")
    executor.shutdown()
    assert [future.cancelled() for future in futures] == [False, False, True, cancel, cancel]
    assert [future.result(0) for future in futures if not future.cancelled()] == ([0, 1] if cancel else [0, 1, 9, 16])
    assert concurrent.futures.wait(futures, 0).not_done == set() and task_files(executor.directory) == []
    assert len(fake.history()) == (2 if cancel else 4)


def test_detached_jobs_are_adopted(fake, make, jobs):
    executor = make(describe=priority_of_argument)
    lost = [executor.submit(jobs.square, x) for x in range(6)]
    all_jobs = sorted(wait_for_jobs(fake, 6), key=lambda job: job.task)
    executor.detach()
    assert len(fake.jobs()) == 6
    fake.run(all_jobs[0])  # done while nobody looks
    fake.vanish(all_jobs[1])  # lost while nobody looks
    successor = make(describe=priority_of_argument)
    found = {args[0]: future for future, fn, args, kwargs in successor.recover() if fn is jobs.square and not kwargs}
    assert found.keys() == set(range(6)) and found[0].result(DEADLINE_S) == 0
    wait_until(lambda: len(fake.jobs()) == 5)
    fresh = successor.submit(jobs.square, 7)
    wait_for_jobs(fake, 6)
    fake.set(run="background")
    assert [found[x].result(DEADLINE_S) for x in range(6)] == [x * x for x in range(6)] and fresh.result(DEADLINE_S) == 49
    assert len(fake.history()) == 8 and not any(future.done() and not future.exception() for future in lost)
    assert len({job.task for job in fake.history()}) == 7 and max(job.task for job in fake.history()) == fake.history()[-1].task
    successor.shutdown()
    assert task_files(successor.directory) == [] and fake.calls("condor_rm") == []


def test_an_exception_detaches(fake, make, jobs):
    with pytest.raises(KeyboardInterrupt), make() as executor:
        executor.submit(jobs.square, 3)
        wait_for_jobs(fake, 1)
        raise KeyboardInterrupt
    assert len(fake.jobs()) == 1 and fake.calls("condor_rm") == []
    fake.set(run="background")
    ((future, _, args, _),) = make().recover()
    assert future.result(DEADLINE_S) == 9 and args == (3,)


def test_what_was_never_submitted_is_recovered(fake, make, jobs):
    fake.set(down=True)
    executor = make()
    for x in range(3):
        executor.submit(jobs.square, x)
    executor.detach()
    fake.set(down=False, run="background")
    found = make().recover()
    assert [future.result(DEADLINE_S) for future, _, _, _ in found] == [0, 1, 4] and len(fake.history()) == 3


def test_recovery_while_the_schedd_is_down(fake, make, jobs):
    executor = make()
    for x in range(3):
        executor.submit(jobs.square, x)
    wait_for_jobs(fake, 3)
    executor.detach()
    fake.set(down=True)
    successor = make()
    found = successor.recover()
    assert sorted(args[0] for _, _, args, _ in found) == [0, 1, 2]
    before = len(fake.calls())
    wait_until(lambda: len(fake.calls()) >= before + 2)
    fake.set(down=False)
    let_it_look(fake)
    assert len(fake.history()) == 3 and fake.calls("condor_rm") == []
    fake.set(run="background")
    assert sorted(future.result(DEADLINE_S) for future, _, _, _ in found) == [0, 1, 4]


def test_outcomes_that_nobody_forgot_are_told_again(fake, make, jobs):
    fake.set(run="now")
    executor = make()
    futures = [executor.submit(jobs.square, 3), executor.submit(jobs.fail, ValueError, "x"), executor.submit(jobs.square, 4)]
    concurrent.futures.wait(futures, DEADLINE_S)
    executor.forget(futures[2])
    executor.detach()
    found = make().recover()
    assert len(found) == 2 and len(fake.history()) == 3
    outcomes = {fn.__name__: future for future, fn, _, _ in found}
    assert outcomes["square"].result(DEADLINE_S) == 9 and isinstance(outcomes["fail"].exception(DEADLINE_S), ValueError)


def test_a_damaged_call_file_is_dropped_and_its_job_removed(fake, make, jobs):
    executor = make()
    for x in range(3):
        executor.submit(jobs.square, x)
    all_jobs = wait_for_jobs(fake, 3)
    executor.detach()
    Path(all_jobs[0].path(".call")).write_bytes(b"damaged")
    Path(all_jobs[1].path(".call")).unlink()
    said = []
    successor = make(say=lambda *words: said.append(" ".join(map(str, words))))
    ((future, _, args, _),) = successor.recover()
    assert args == (2,) and len([line for line in said if all_jobs[0].task in line]) == 1
    wait_for_jobs(fake, 1)
    assert [job.gone for job in fake.history()] == ["removed", "removed", None]
    fake.run(all_jobs[2])
    assert future.result(DEADLINE_S) == 4
    assert "orphan" in {event["event"] for event in events(successor.directory)}


def test_jobs_of_a_run_that_is_not_recovered_are_removed(fake, make, jobs, tmp_path):
    executor, other = make(), make(tmp_path / "other")
    executor.submit(jobs.square, 3)
    kept = other.submit(jobs.square, 4)
    wait_for_jobs(fake, 2)
    executor.detach()
    fresh = make().submit(jobs.square, 5)
    wait_until(lambda: [job.gone for job in fake.history()].count("removed") == 1 and len(fake.history()) == 3)
    for job in wait_for_jobs(fake, 2):
        fake.run(job)
    assert results([fresh, kept]) == [25, 16]


def test_more_memory_is_remembered(fake, make, jobs):
    executor = make()
    executor.submit(jobs.square, 3)
    fake.hold(wait_for_jobs(fake, 1)[0], 34, "memory")
    wait_until(lambda: [job.memory for job in fake.jobs()] == [2048])
    wait_until(lambda: len([event for event in events(executor.directory) if event["event"] == "submitted"]) == 2)
    executor.detach()
    fake.vanish(fake.jobs()[0])
    ((future, *_),) = make().recover()
    (job,) = wait_for_jobs(fake, 1)
    assert job.memory == 2048
    fake.run(job)
    assert future.result(DEADLINE_S) == 9


def test_the_jobs_of_a_run_are_counted_and_removed(fake, make, jobs, tmp_path):
    executor, other = make(), make(tmp_path / "other")
    for x in range(4):
        executor.submit(jobs.square, x)
    other.submit(jobs.square, 5)
    wait_for_jobs(fake, 5)
    mine = [job for job in fake.jobs() if job.ad["initialdir"] == str(executor.directory)]
    executor.detach()
    fake.start(mine[0])
    fake.hold(mine[1], 1, "because")
    counts = queue_counts(executor.directory)
    assert (counts["idle"], counts["running"], counts["held"]) == (2, 1, 1)
    assert remove_run(executor.directory) == 4
    assert [job.key for job in fake.jobs()] == [job.key for job in fake.history() if job.key not in {job.key for job in mine}]
    assert remove_run(executor.directory) == 0 and other.remove_jobs() == 1 and fake.jobs() == []


def test_the_journal_is_lines_of_json(fake, make, jobs):
    fake.set(run="background")
    executor = make()
    results([executor.submit(jobs.square, x) for x in range(3)])
    lines = events(executor.directory)
    assert all("time" in line and "event" in line for line in lines)
    submitted = [line for line in lines if line["event"] == "submitted"]
    assert sorted(task for line in submitted for task in line["tasks"]) == sorted(job.task for job in fake.history())
    assert {line["cluster"] for line in submitted} == {job.cluster for job in fake.history()}


def test_files_are_private(fake, make, jobs):
    executor = make()
    executor.submit(jobs.square, 3)
    wait_for_jobs(fake, 1)
    assert executor.directory.stat().st_mode & 0o777 == 0o700
    executor.detach()
    executor.directory.chmod(0o770)
    with pytest.raises(DirectoryRefused, match="chmod go-w"):
        make()


# killed controllers -------------------------------------------------------------------------------------------------

CONTROLLER = """
import concurrent.futures, sys, time
from pathlib import Path
from condor_jobs import note
from condor_worker import CondorExecutor, claim_directory


def work(runs, x, seconds):
    note(runs, x)
    time.sleep(seconds)
    return x * x


if __name__ == "__main__":
    folder, number, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    results = folder / "results"
    results.touch()
    with claim_directory(folder / "work") as work_dir, CondorExecutor(work_dir / "condor", check_interval_s=0.2) as executor:
        known = {int(line.split()[0]) for line in results.read_text().splitlines()}
        futures = {future: args[1] for future, fn, args, kwargs in executor.recover() if fn is work}
        print("recovered", flush=True)
        for x in set(range(number)) - known - set(futures.values()):
            futures[executor.submit(work, str(folder / "runs"), x, seconds)] = x
        for future in concurrent.futures.as_completed(futures):
            if futures[future] not in known:
                note(results, f"{futures[future]} {future.result()}")
                known.add(futures[future])
            executor.forget(future)
    print("done", flush=True)
"""


def start_controller(tmp_path, jobs, number, seconds):
    script = tmp_path / "controller.py"
    script.write_text(CONTROLLER, encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, script, tmp_path, str(number), str(seconds)],
        env=os.environ | path_to(Path(jobs.__file__).parent),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def lines_of(path):
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


@pytest.mark.parametrize("seed", range(2))
def test_controllers_that_are_killed_lose_nothing_and_repeat_nothing(fake, jobs, tmp_path, seed):
    chance, number = random.Random(seed), 40
    fake.set(run="background")
    for _ in range(5):
        controller = start_controller(tmp_path, jobs, number, 0.05)
        with contextlib.suppress(subprocess.TimeoutExpired):
            controller.wait(chance.uniform(0.1, 0.9))
        kill = chance.choice([os.kill, os.killpg])  # alone, or with the tool that it is just calling
        if controller.poll() is None:
            kill(controller.pid, signal.SIGKILL)
        controller.communicate()
        wait_until(lambda: not submitting(fake))
    controller = start_controller(tmp_path, jobs, number, 0.05)
    assert controller.communicate(timeout=DEADLINE_S)[0] == "recovered\ndone\n"
    assert sorted(lines_of(tmp_path / "results")) == sorted(f"{x} {x * x}" for x in range(number))
    assert sorted(lines_of(tmp_path / "runs"), key=int) == [str(x) for x in range(number)]  # each ran once
    assert fake.jobs() == [] and task_files(tmp_path / "work" / "condor") == []


def submitting(fake):
    """Whether a condor_submit still lives. One that was killed left its call open."""
    for stat in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if b"condor_submit" in stat.read_bytes() and fake.path.encode().rpartition(b"/")[0] in (stat.parent / "environ").read_bytes():
                return True
    return False


def test_a_submission_that_outlives_its_controller(fake, jobs, tmp_path):
    fake.set(run="background", submit_takes_s=0.5, slots=2)
    controller = start_controller(tmp_path, jobs, 20, 0.1)
    wait_until(lambda: fake.calls("condor_submit"))
    os.kill(controller.pid, signal.SIGKILL)
    controller.communicate()
    fake.set(submit_takes_s=0)
    controller = start_controller(tmp_path, jobs, 20, 0.1)
    assert controller.communicate(timeout=DEADLINE_S)[0] == "recovered\ndone\n"
    assert sorted(lines_of(tmp_path / "results")) == sorted(f"{x} {x * x}" for x in range(20))
    wait_until(lambda: not submitting(fake))
    assert set(lines_of(tmp_path / "runs")) == {str(x) for x in range(20)}


# directories --------------------------------------------------------------------------------------------------------


def test_a_claimed_directory_is_private(tmp_path):
    with claim_directory(tmp_path / "a" / "b") as path:
        assert path == tmp_path / "a" / "b" and path.stat().st_mode & 0o777 == 0o700
        controller = json.loads((path / "controller.json").read_text(encoding="utf-8"))
        assert controller["pid"] == os.getpid() and controller.keys() >= {"host", "pid", "started", "command"}
    with claim_directory(tmp_path / "a" / "b"):
        pass


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777, 0o1777])
def test_a_directory_that_others_may_write_to_is_refused(tmp_path, mode):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(mode)
    for use in private_directory, lambda path: claim_directory(path).__enter__():
        with pytest.raises(DirectoryRefused, match=r"open.*others.*chmod go-w") as info:
            use(tmp_path / "open")
        assert "\n" not in str(info.value) and isinstance(info.value, ExecutorError)


def test_a_directory_that_others_may_read_is_made_private_or_left(tmp_path):
    (tmp_path / "readable").mkdir(mode=0o755)
    assert private_directory(tmp_path / "readable") == tmp_path / "readable"


def test_what_is_not_our_directory_is_refused(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "foreign").mkdir()
    cases = ["file", "file/below"]
    if os.geteuid() == 0:
        os.chown(tmp_path / "foreign", 12345, -1)
        cases.append("foreign")
    for name in cases:
        with pytest.raises(DirectoryRefused, match=name.partition("/")[0]) as info:
            private_directory(tmp_path / name)
        assert "\n" not in str(info.value)


CLAIM = (
    "import sys, condor_worker\nwith condor_worker.claim_directory(sys.argv[1]):\n    print('claimed', flush=True)\n    sys.stdin.read()"
)


def claim_elsewhere(path):
    """A process that holds the claim on a directory."""
    process = subprocess.Popen([sys.executable, "-c", CLAIM, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE)
    assert process.stdout.readline() == "claimed\n"
    return process


def test_a_second_claim_names_the_first(tmp_path):
    with (
        claim_directory(tmp_path / "mine"),
        pytest.raises(DirectoryRefused, match=rf"\b{os.getpid()}\b"),
        claim_directory(tmp_path / "mine"),
    ):
        pass
    process = claim_elsewhere(tmp_path / "mine")
    try:
        with pytest.raises(DirectoryRefused, match=rf"(?=.*{re.escape(os.uname().nodename)})(?=.*\b{process.pid}\b)") as info:
            claim_directory(tmp_path / "mine").__enter__()
        assert "\n" not in str(info.value)
    finally:
        process.kill()
        process.communicate()
    with claim_directory(tmp_path / "mine"):  # free again after a SIGKILL
        with pytest.raises(DirectoryRefused):
            claim_directory(tmp_path / "mine").__enter__()
        with claim_directory(tmp_path / "other"):
            pass


def test_a_claim_by_a_path_that_looks_different(tmp_path):
    (tmp_path / "mine").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    with claim_directory(tmp_path / "mine"), pytest.raises(DirectoryRefused), claim_directory(tmp_path / "link"):
        pass


def test_a_claim_where_native_locks_fail(tmp_path, monkeypatch):
    filelock = pytest.importorskip("filelock")

    class NoLocks(filelock.FileLock):
        def _acquire(self):
            raise NotImplementedError("FileSystem does not appear to support flock; use SoftFileLock instead")

    monkeypatch.setattr(filelock, "FileLock", NoLocks)
    with claim_directory(tmp_path / "mine"):
        assert (tmp_path / "mine" / "controller.softlock").exists()
        with pytest.raises(DirectoryRefused, match=str(os.getpid())):
            claim_directory(tmp_path / "mine").__enter__()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / "mine" / "controller.softlock").write_text(f"{dead.pid}\n{os.uname().nodename}\n", encoding="utf-8")
    controller = {"host": os.uname().nodename, "pid": dead.pid, "started": 0, "command": "x"}
    (tmp_path / "mine" / "controller.json").write_text(json.dumps(controller), encoding="utf-8")
    with claim_directory(tmp_path / "mine"):  # taken over: its holder is dead
        pass


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"pid": []}'])
def test_a_claim_beside_a_damaged_controller_file(tmp_path, content):
    process = claim_elsewhere(tmp_path / "mine")
    try:
        path = tmp_path / "mine" / "controller.json"
        path.unlink() if content is None else path.write_text(content, encoding="utf-8")
        with pytest.raises(DirectoryRefused, match="mine") as info:
            claim_directory(tmp_path / "mine").__enter__()
        assert "\n" not in str(info.value)
    finally:
        process.kill()
        process.communicate()


# shared values ------------------------------------------------------------------------------------------------------


def test_shared_values(tmp_path, jobs, monkeypatch):
    value = {"rules": [(1, 2)] * 1000}
    shared = Shared.write(value, tmp_path / "a" / "b")
    assert Path(shared.path).name == f"{shared.digest}.shared" and Path(shared.path).parent == tmp_path / "a" / "b"
    written = os.stat(shared.path)
    assert Shared.write(value, tmp_path / "a" / "b") == shared and len(list((tmp_path / "a" / "b").iterdir())) == 1
    assert os.stat(shared.path).st_ino == written.st_ino
    assert Shared.write([1], tmp_path / "a" / "b").digest != shared.digest
    assert shared.get() == value and shared.get() is shared.get()
    with LocalExecutor(1) as executor:
        assert executor.submit(jobs.read, shared).result(DEADLINE_S) == value
    (tmp_path / "here").mkdir()
    shutil.copy(shared.path, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    assert Shared(f"/nowhere/{shared.digest}.shared", shared.digest).get() == value
    with pytest.raises(NotPicklable):
        Shared.write(threading.Lock(), tmp_path)


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b"", lambda b: b + b"x", lambda b: pickle.dumps(Planted("trap")), None])
def test_a_damaged_shared_value_is_refused(tmp_path, monkeypatch, change):
    monkeypatch.chdir(tmp_path)
    shared = Shared.write({"rules": [(1, 2)] * 10}, tmp_path)
    path = Path(shared.path)
    path.unlink() if change is None else path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ExecutorError, match=shared.digest[:8]) as info:
        shared.get()
    assert "\n" not in str(info.value) and not (tmp_path / "trap").exists()


def test_shared_values_on_a_full_disk(tmp_path):
    with limited_file_size(100_000), pytest.raises(OSError):
        Shared.write("x" * 1_000_000, tmp_path)
    assert list(tmp_path.iterdir()) == []


# time limits --------------------------------------------------------------------------------------------------------


def test_a_fixed_limit():
    assert TimeLimits(None).limit_s(Description()) is None and TimeLimits(7).limit_s(Description("a", 100)) == 7
    limits = TimeLimits(7)
    for _ in range(50):
        limits.note(Description("a"), 1000)
    assert limits.limit_s(Description("a")) == 7


def test_ten_tasks_of_a_group_make_a_limit():
    limits = TimeLimits(None, auto=True, floor_s=30)
    for _ in range(9):
        limits.note(Description("a", size=2), 20)
    assert limits.limit_s(Description("a")) is None
    limits.note(Description("a", size=4), 40)
    assert limits.limit_s(Description("a")) == pytest.approx(60)  # 6 times 10 s per unit
    assert limits.limit_s(Description("a", size=5)) == pytest.approx(300)
    assert limits.limit_s(Description("a", size=0.1)) == 30  # the floor
    assert limits.limit_s(Description("b")) is None
    capped = TimeLimits(100, auto=True, floor_s=30)
    for _ in range(10):
        capped.note(Description("a"), 10)
    assert (capped.limit_s(Description("a")), capped.limit_s(Description("a", size=9)), capped.limit_s(Description("b"))) == (60, 100, 100)


SECONDS = st.lists(st.floats(0, 1e4), min_size=10, max_size=60)


@settings(max_examples=40, deadline=None)
@given(seconds=SECONDS, size=st.floats(0.01, 1e3), scale=st.floats(0.01, 50), data=st.data())
def test_laws_of_the_learned_limit(seconds, size, scale, data):
    def limit(seconds, size, noted_size=1.0, **options):
        limits = TimeLimits(None, auto=True, **({"floor_s": 0} | options))
        for value in seconds:
            limits.note(Description("a", size=noted_size), value)
        return limits.limit_s(Description("a", size=size))

    usual = limit(seconds, size)
    assert limit(data.draw(st.permutations(seconds)), size) == pytest.approx(usual)  # order
    assert limit([scale * value for value in seconds], size) == pytest.approx(scale * usual)  # unit of time
    assert limit(seconds, size, noted_size=scale) == pytest.approx(usual / scale)  # unit of size
    assert limit(seconds, 2 * size) == pytest.approx(2 * usual)
    assert 6 * size * sorted(seconds)[len(seconds) // 2 - 1] * 0.999999 <= usual <= 6 * size * max(seconds) * 1.000001
    assert limit(seconds, size, floor_s=7) == pytest.approx(max(7, usual))
    slower = [value + 1 for value in seconds]
    assert limit(slower, size) > usual


def test_limits_keep_their_memory_and_stand_several_threads():
    limits, failures = TimeLimits(None, auto=True), []

    def note(offset):
        try:
            for x in range(3_000):
                limits.note(Description("a"), 100 + (offset + x * 7919) % 1000 / 1000)
                assert x < 10 or 600 <= limits.limit_s(Description("a")) <= 606.1
        except BaseException as error:
            failures.append(error)

    note(0)
    tracemalloc.start()
    try:
        threads = [threading.Thread(target=note, args=(offset,)) for offset in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S)
        assert tracemalloc.get_traced_memory()[0] < 300_000
    finally:
        tracemalloc.stop()
    assert failures == []


# local executor -----------------------------------------------------------------------------------------------------


def test_task_cpus_outside_of_a_task(jobs):
    assert task_cpus() == 1
    with InlineExecutor() as executor:
        assert executor.submit(task_cpus).result() == 1
    assert task_cpus() == 1


class LimitOnceStarted(TimeLimits):
    """Tasks of a group are stragglers from when there is a file on."""

    def __init__(self, path, group):
        super().__init__(None)
        self.path, self.group = path, group

    def limit_s(self, description):
        return 0.01 if description.group == self.group and self.path.exists() else None


def group_by_function(fn, args, kwargs):
    return Description(group=fn.__name__)


def test_local_stragglers_are_run_again_with_more_cpus(tmp_path, jobs, quick):
    limits = LimitOnceStarted(tmp_path / "pids", "hang_on_one_cpu")
    with LocalExecutor(2, stragglers=limits, straggler_cpus=6, retries=0, describe=group_by_function) as executor:
        slow = executor.submit(jobs.hang_on_one_cpu, str(tmp_path / "pids"))
        others = [executor.submit(jobs.square, x) for x in range(10)]
        assert slow.result(DEADLINE_S) == 6 and results(others) == [x * x for x in range(10)]
        assert executor.submit(task_cpus).result(DEADLINE_S) == 1  # in whichever process
        assert executor.submit(task_cpus).result(DEADLINE_S) == 1
        first, second = map(int, lines_of(tmp_path / "pids"))
        assert first != second and not runs(first)
        assert executor.statistics["stragglers"] == 1 and executor.statistics["tasks"] == 13 and executor.statistics["died"] == 0
        assert executor.report(slow)["cpus"] == 6


def test_a_local_limit_that_is_learned_while_the_task_runs(tmp_path, jobs, quick):
    limits = TimeLimits(None, auto=True, floor_s=0.3)
    with LocalExecutor(2, stragglers=limits, describe=lambda fn, args, kwargs: Description(group="all")) as executor:
        slow = executor.submit(jobs.hang_on_one_cpu, str(tmp_path / "pids"))
        wait_until(lambda: lines_of(tmp_path / "pids"))
        results([executor.submit(jobs.square, x) for x in range(12)])
        assert slow.result(DEADLINE_S) == 8


def test_a_local_straggler_keeps_its_hard_limit(tmp_path, jobs, quick):
    limits = LimitOnceStarted(tmp_path / "pids", "hang")
    with LocalExecutor(1, timeout_s=0.7, stragglers=limits, describe=group_by_function) as executor:
        hanging = executor.submit(jobs.hang, str(tmp_path / "pids"))
        with pytest.raises(TaskTimeout, match="hang"):
            hanging.result(DEADLINE_S)
        assert len(lines_of(tmp_path / "pids")) == 2 and executor.submit(jobs.square, 3).result(DEADLINE_S) == 9


def test_processes_of_a_local_straggler_die_with_it(tmp_path, jobs, quick):
    limits = LimitOnceStarted(tmp_path / "pids", "hang_within_on_one_cpu")
    with LocalExecutor(1, stragglers=limits, describe=group_by_function) as executor:
        assert executor.submit(jobs.hang_within_on_one_cpu, str(tmp_path / "pids")).result(DEADLINE_S) == "done"
        (grandchild,) = map(int, lines_of(tmp_path / "pids"))
        wait_until(lambda: not runs(grandchild))


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM, None])
def test_grandchildren_end_with_the_main_program(tmp_path, jobs, signal_number):
    code = "import sys, condor_jobs\nfrom condor_worker import LocalExecutor\nif __name__ == '__main__':\n"
    code += "    executor = LocalExecutor(1)\n    executor.submit(condor_jobs.hang_within_on_one_cpu, sys.argv[1])\n    sys.stdin.read()"
    (tmp_path / "main.py").write_text(code, encoding="utf-8")
    environment = os.environ | path_to(Path(jobs.__file__).parent)
    script = subprocess.Popen([sys.executable, tmp_path / "main.py", tmp_path / "pids"], env=environment, stdin=subprocess.PIPE)
    wait_until(lambda: lines_of(tmp_path / "pids"))
    (grandchild,) = map(int, lines_of(tmp_path / "pids"))
    if signal_number is None:
        script.stdin.close()
    else:
        script.send_signal(signal_number)
    script.wait(DEADLINE_S)
    wait_until(lambda: not runs(grandchild))


def test_local_queue_takes_the_heaviest_first(tmp_path, jobs):
    with LocalExecutor(1, describe=lambda fn, args, kwargs: Description(priority=args[1] // 10 if len(args) > 1 else 100)) as executor:
        blocker = executor.submit(jobs.hang_on_one_cpu, str(tmp_path / "pids"))
        wait_until(lambda: lines_of(tmp_path / "pids"))
        numbers = [31, 15, 92, 65, 35, 89, 93, 12, 38, 46, 99, 90]
        futures = [executor.submit(jobs.noted_square, str(tmp_path / "runs"), x) for x in numbers]
        assert executor.counts()["queued"] == len(numbers) and executor.counts()["running"] == 1
        os.kill(int(lines_of(tmp_path / "pids")[0]), signal.SIGKILL)  # tried again
        wait_until(lambda: len(lines_of(tmp_path / "pids")) == 2)
        os.kill(int(lines_of(tmp_path / "pids")[1]), signal.SIGKILL)
        assert isinstance(blocker.exception(DEADLINE_S), TaskDied)
        assert results(futures) == [x * x for x in numbers]
    assert list(map(int, lines_of(tmp_path / "runs"))) == sorted(numbers, key=lambda x: -(x // 10))
    assert executor.statistics["died"] == 1 and executor.statistics["failed"] == 1


# a real pool --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def real_pool():
    if shutil.which("condor_submit") is None:
        pytest.skip("condor_submit is not on PATH")
    try:
        answer = subprocess.run(["condor_q", "-totals"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"condor_q does not answer: {error}")
    if answer.returncode != 0:
        pytest.skip(f"condor_q fails: {answer.stderr.strip()}")


def in_the_queue(directory):
    return sum(queue_counts(directory).get(state, 0) for state in ("idle", "running", "held"))


def job_id(directory, task):
    """Ask the pool itself which job a task is."""
    command = ["condor_q", "-json", "-attributes", "ClusterId,ProcId,CondorWorkerTask,Iwd"]
    text = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    found = [ad for ad in json.loads(text or "[]") if ad.get("CondorWorkerTask") == task and ad["Iwd"] == str(directory)]
    return f"{found[-1]['ClusterId']}.{found[-1]['ProcId']}" if found else None


@pytest.mark.condor
def test_a_pool_with_a_hostile_directory(real_pool, jobs, tmp_path):
    with CondorExecutor(tmp_path / """it's "here", $(x) $ENV(HOME) #\\ ünï; touch pwned""", check_interval_s=1) as executor:
        futures = [executor.submit(jobs.square, x) for x in range(30)]
        where = executor.submit(jobs.state)
        assert results(futures) == [x * x for x in range(30)]
        assert where.result(DEADLINE_S)["cwd"] == str(executor.directory) and where.result()["OMP_NUM_THREADS"] == "1"
        assert executor.report(where)["host"]
    assert task_files(executor.directory) == [] and in_the_queue(executor.directory) == 0 and not list(tmp_path.rglob("pwned"))


@pytest.mark.condor
def test_a_pool_with_file_transfer(real_pool, jobs, tmp_path):
    shared = Shared.write(list(range(100)), tmp_path / "else where")
    with CondorExecutor(tmp_path / "it's here", check_interval_s=1, transfer_files=True) as executor:
        where, value = executor.submit(jobs.state), executor.submit(jobs.read, shared)
        assert value.result(DEADLINE_S) == list(range(100))
        assert not where.result(DEADLINE_S)["cwd"].startswith(str(tmp_path))


@pytest.mark.condor
def test_a_pool_where_jobs_are_removed_held_and_slow(real_pool, jobs, tmp_path):
    limits = TimeLimits(4)
    with CondorExecutor(tmp_path / "work", check_interval_s=1, stragglers=limits, straggler_cpus=4) as executor:
        slow = executor.submit(jobs.hang_on_one_cpu, str(tmp_path / "slow"))
        removed, held = (executor.submit(jobs.noted_square, str(tmp_path / name), 3, 2) for name in ("removed", "held"))
        for tool, name in ("condor_rm", "removed"), ("condor_hold", "held"):
            wait_until(lambda name=name: lines_of(tmp_path / name))
            task = f"{2 if name == 'removed' else 3:07d}"
            assert subprocess.run([tool, job_id(executor.directory, task)], capture_output=True, timeout=60).returncode == 0
        assert results([removed, held, slow]) == [9, 9, 4]
        assert len(lines_of(tmp_path / "slow")) == len(lines_of(tmp_path / "removed")) == len(lines_of(tmp_path / "held")) == 2
        assert executor.statistics["stragglers"] == 1 and executor.statistics["held"] == 1
    assert in_the_queue(executor.directory) == 0


@pytest.mark.condor
def test_a_pool_whose_controller_is_killed(real_pool, jobs, tmp_path):
    for _ in range(2):
        controller = start_controller(tmp_path, jobs, 20, 1)
        assert controller.stdout.readline() == "recovered\n"
        wait_until(lambda: len(lines_of(tmp_path / "runs")) >= 2)
        os.kill(controller.pid, signal.SIGKILL)
        controller.communicate()
    controller = start_controller(tmp_path, jobs, 20, 1)
    assert controller.communicate(timeout=DEADLINE_S)[0] == "recovered\ndone\n"
    assert sorted(lines_of(tmp_path / "results")) == sorted(f"{x} {x * x}" for x in range(20))
    assert sorted(lines_of(tmp_path / "runs"), key=int) == [str(x) for x in range(20)]
    assert in_the_queue(tmp_path / "work" / "condor") == 0


# =====================================================================================================================
# Reduction: oracles, closed forms, golden values, laws
# =====================================================================================================================

P31 = 2**31 - 1
OTHER_PRIMES = (2147483629, 2147483587)  # the two primes below 2**31 - 1
SHIPPED = ibp_reduce.DATA / "rules.shelf"
FAMILIES = sorted(BUILT_IN_FAMILIES)
TRIANGLEBOX = BUILT_IN_FAMILIES["trianglebox"]
needs_stored_rules = pytest.mark.skipif(not SHIPPED.exists(), reason="minutes without data/rules.shelf")
few_examples = settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


# running the program ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def shelves(tmp_path_factory):
    """The shipped rules, and a store that every test of the session learns from and adds to."""
    session_store = Store(tmp_path_factory.mktemp("rules") / "session.shelf")
    return [Store(SHIPPED, read_only=True), session_store] if SHIPPED.exists() else [session_store]


@pytest.fixture(scope="session")
def reduce_at(shelves):
    """reduce_at(family, targets, prime=…, point=…, **Problem options) -> Outcome, with the rules of the session."""

    def run(family, targets, prime=P31, point=None, shelves=shelves, executor=None, **options) -> Outcome:
        family = BUILT_IN_FAMILIES.get(family, family)
        problem = Problem(family, point or point_of(family, prime), tuple(targets), **options)
        return Controller(problem, executor or InlineExecutor(), shelves, Progress(quiet=True)).run()

    return run


def point_of(family, prime=P31, d=None, **invariants) -> Point:
    values = dict(family.point) | invariants
    return Point(Fraction(d or family.d), tuple((name, Fraction(value)) for name, value in values.items()), prime)


def residue(value, p=P31):
    """A rational number modulo p."""
    value = Fraction(value)
    return value.numerator * pow(value.denominator, -1, p) % p


def combine(*terms, p=P31):
    """Sum of factor * expression over (factor, expression), modulo p and without zeros."""
    total = {}
    for factor, expression in terms:
        for integral, value in expression.items():
            total[integral] = (total.get(integral, 0) + factor * value) % p
    return {integral: value for integral, value in total.items() if value}


def bits_of(indices):
    return sum(1 << i for i, a in enumerate(indices) if a > 0)


# oracle: identities and zero sectors --------------------------------------------------------------------------------


def quadratic_form(text, momenta):
    """{(x, y): coefficient}, symmetric, of a propagator: 'k1-k2+p1' is squared, '2*k1*p1' is a product as it stands."""
    text = text.replace(" ", "")
    if "*" in text:
        number, x, y = text.split("*")
        return {(x, y): Fraction(number) / 2, (y, x): Fraction(number) / 2}
    routing = {name: Fraction(sign + "1") for sign, name in re.findall(r"([+-]?)(\w+)", text)}
    return {(x, y): routing[x] * routing[y] for x in momenta for y in momenta if x in routing and y in routing}


class Kinematics:
    """A family with numbers for the invariants, in Fractions.

    forms[b]: quadratic form of propagator b; masses[b]: its squared mass; products[x, y]: scalar products of external
    momenta.
    """

    def __init__(self, family, **invariants):
        import sympy

        values = {name: sympy.Rational(str(value)) for name, value in (dict(family.point) | invariants).items()}

        def number(text):
            return Fraction(str(sympy.Rational(sympy.sympify(text, rational=True).subs(values))))

        self.family, self.loops, self.legs = family, family.loop_momenta, family.external_momenta
        self.momenta = self.loops + self.legs
        self.forms = [quadratic_form(text, self.momenta) for text, _ in family.propagators]
        self.masses = [number(mass) for _, mass in family.propagators]
        self.products = {}
        for pair, value in family.kinematics:
            x, y = pair.split("*")
            self.products[x, y] = self.products[y, x] = number(value)

    def split(self, form):
        """A quadratic form as {(loop momentum, momentum): coefficient} and a number."""
        loop, rest = {}, Fraction(0)
        for (x, y), value in form.items():
            if x in self.legs and y in self.legs:
                rest += value * self.products[x, y]
            else:
                pair = tuple(sorted((x, y), key=self.momenta.index))
                loop[pair] = loop.get(pair, 0) + value
        return loop, rest

    def in_propagators(self):
        """Every scalar product with a loop momentum as its n + 1 coefficients of D_1 … D_n, 1: Gauss-Jordan on (loop
        part) = D + mass - rest.
        """
        n = len(self.forms)
        pairs = [pair for pair in itertools.combinations_with_replacement(self.momenta, 2) if pair[0] in self.loops]
        rows = []
        for b, (loop, rest) in enumerate(map(self.split, self.forms)):
            rows.append([loop.get(pair, Fraction(0)) for pair in pairs] + [Fraction(b == c) for c in range(n)] + [self.masses[b] - rest])
        for c in range(n):
            pivot = next(r for r in range(c, n) if rows[r][c])
            rows[c], rows[pivot] = rows[pivot], rows[c]
            rows[c] = [value / rows[c][c] for value in rows[c]]
            for r in range(n):
                if r != c and rows[r][c]:
                    rows[r] = [value - rows[r][c] * other for value, other in zip(rows[r], rows[c])]
        return {pair: row[n:] for pair, row in zip(pairs, rows)}

    def identities(self, d):
        """[{shift: [c_0, c_1, …, c_n]}]: d/dk .

        q for all loop momenta k and all momenta q, then the LI of each pair of legs.
        """
        n, table = len(self.forms), self.in_propagators()

        def derivative(momentum, vector):
            """vector .

            d/d momentum of the integrand: sum over b of -a_b / D_b * (2 sum_y form_b[momentum, y] y . vector).
            """
            terms = {}
            for b, form in enumerate(self.forms):
                loop, rest = self.split({(y, vector): 2 * value for (x, y), value in form.items() if x == momentum})
                numerator = [Fraction(0)] * n + [rest]
                for pair, value in loop.items():
                    numerator = [old + value * new for old, new in zip(numerator, table[pair])]
                for c, value in enumerate(numerator):
                    shift = tuple((i == b) - (i == c) for i in range(n))
                    terms.setdefault(shift, [Fraction(0)] * (n + 1))[b + 1] -= value
            return terms

        def add(*parts):
            total = {}
            for factor, terms in parts:
                for shift, row in terms.items():
                    total[shift] = [a + factor * b for a, b in zip(total.get(shift, [Fraction(0)] * (n + 1)), row)]
            return {shift: row for shift, row in total.items() if any(row)}

        divergence = {(0,) * n: [Fraction(d)] + [Fraction(0)] * n}
        operators = [add((1, derivative(k, q)), (k == q, divergence)) for k in self.loops for q in self.momenta]
        for u, v in itertools.combinations(self.legs, 2):  # invariance of the integral under u ∧ v, a rotation of all legs e
            rotated = [(sign * self.products[e, x], derivative(e, y)) for e in self.legs for sign, x, y in ((1, v, u), (-1, u, v))]
            operators.append(add(*rotated))
        return operators

    def nonzero_sectors(self):
        """Lee's criterion (arXiv:1405.5616): a sector is scaleless if sum_i k_i x_i dG/dx_i = G has a solution k, where
        G = U + F.

        That is k . e = 1 for the exponents e of all monomials of G.
        """
        import sympy

        lines = self.family.lines
        ring, *x = sympy.ring([f"x{i}" for i in range(lines)], sympy.QQ)

        def weighted(numbers):
            return sum((xi * sympy.QQ(v.numerator, v.denominator) for xi, v in zip(x, numbers)), ring.zero)

        def entry(i, j):
            return weighted([form.get((i, j), Fraction(0)) for form in self.forms[:lines]])

        def determinant(m):
            permutations = list(itertools.permutations(range(len(m))))
            signs = [(-1) ** sum(a > b for a, b in itertools.combinations(order, 2)) for order in permutations]
            return sum((s * math.prod((m[i][j] for i, j in enumerate(o)), start=ring.one) for s, o in zip(signs, permutations)), ring.zero)

        quadratic = [[entry(i, j) for j in self.loops] for i in self.loops]
        linear = [{e: entry(i, e) for e in self.legs} for i in self.loops]
        u = determinant(quadratic)
        f = u * weighted([self.split(form)[1] - mass for form, mass in zip(self.forms[:lines], self.masses)])
        for i, j in itertools.product(range(len(self.loops)), repeat=2):
            minor = determinant([[v for c, v in enumerate(row) if c != j] for r, row in enumerate(quadratic) if r != i])
            for a, b in itertools.product(self.legs, repeat=2):
                product = self.products[a, b]
                f -= (-1) ** (i + j) * minor * linear[i][a] * linear[j][b] * sympy.QQ(product.numerator, product.denominator)
        exponents = np.array([*u.itermonoms(), *f.itermonoms()]).reshape(-1, lines)
        found = []
        for bits in range(1, 1 << lines):
            absent = np.array([not bits >> i & 1 for i in range(lines)])
            here = exponents[~exponents[:, absent].any(1)]
            if len(here) and np.linalg.matrix_rank(np.column_stack([here, np.ones(len(here))])) > np.linalg.matrix_rank(here):
                found.append(bits)
        return found


def any_kinematics(family):
    """Invariants without special relations, for what holds at generic points."""
    draw = random.Random(family.name)
    return Kinematics(family, **{name: draw.randrange(10**4, 10**6) for name, _ in family.point})


# oracle: full elimination -------------------------------------------------------------------------------------------


def oracle_weight(a):
    """(t, sector id, r, s, |a_n|, …, |a_1|)."""
    positive = [x for x in a if x > 0]
    return len(positive), bits_of(a), sum(positive), -sum(x for x in a if x < 0), tuple(abs(x) for x in reversed(a))


def compositions(total, places):
    """All tuples of so many non-negative numbers with at most this sum."""
    if places == 0:
        return [()]
    return [(x, *rest) for x in range(total + 1) for rest in compositions(total - x, places - 1)]


def seeds_of(bits, n, dots, s):
    for up in compositions(dots, bits.bit_count()):
        for down in compositions(s, n - bits.bit_count()):
            ups, downs = iter(up), iter(down)
            yield tuple(1 + next(ups) if bits >> i & 1 else -next(downs) for i in range(n))


class Laporta:
    """All identities at all seeds with at most so many dots and this s in the sectors below `tops`, eliminated heaviest
    first, modulo p.

    pivots: {integral: row without it}, normalised: integral + row = 0.
    """

    def __init__(self, kinematics, tops, dots, s, d=41, p=P31):
        self.p, n = p, kinematics.family.n
        operators = [{shift: [residue(v, p) for v in row] for shift, row in terms.items()} for terms in kinematics.identities(d)]
        live = {b for b in any_kinematics(kinematics.family).nonzero_sectors() if any(b & top == b for top in tops)}
        seeds = sorted((seed for bits in live for seed in seeds_of(bits, n, dots, s)), key=oracle_weight)
        rows = []
        for seed in seeds:
            for terms in operators:
                values = {
                    tuple(map(int.__add__, seed, shift)): row[0] + sum(map(int.__mul__, row[1:], seed)) for shift, row in terms.items()
                }
                rows.append({term: value % p for term, value in values.items() if value % p and bits_of(term) in live})
        self.integrals = sorted({term for row in rows for term in row}, key=oracle_weight)
        self.number = {integral: number for number, integral in enumerate(self.integrals)}
        self.pivots = {}
        self.size = len(rows), len(self.integrals)
        for row in rows:
            row = {self.number[term]: value for term, value in row.items()}
            while row and (lead := max(row)) in self.pivots:
                self._eliminate(row, lead)
            if row:
                factor = pow(row.pop(lead), -1, p)
                self.pivots[lead] = [(k, value * factor % p) for k, value in row.items()]

    def _eliminate(self, row, lead):
        factor = row.pop(lead)
        for k, value in self.pivots[lead]:
            new = (row.get(k, 0) - factor * value) % self.p
            if new:
                row[k] = new
            else:
                row.pop(k, None)

    def reduce(self, expression):
        """The expression through integrals that this system does not reduce: its normal form."""
        row = {self.number[integral]: value % self.p for integral, value in expression.items()}
        done = {}
        while row:
            lead = max(row)
            if lead in self.pivots:
                self._eliminate(row, lead)
            else:
                done[self.integrals[lead]] = row.pop(lead)
        return done


# 1. against the oracles ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_identities_equal_explicit_differentiation(name):
    """Every IBP and LI operator, term by term, at the family's point and at one with fractions."""
    family = BUILT_IN_FAMILIES[name]
    for d, invariants in (("41", {}), ("-7/3", {symbol: f"{29 + 4 * i}/{3 + i}" for i, (symbol, _) in enumerate(family.point)})):
        expected = [
            {shift: [residue(value) for value in row] for shift, row in terms.items()}
            for terms in Kinematics(family, **invariants).identities(d)
        ]
        equations = evaluate_identities(derive_identities(family), point_of(family, d=d, **invariants))
        found = [{} for _ in range(equations.count)]
        for operator, shift, row in zip(equations.operator.tolist(), equations.shift.tolist(), equations.coefficient.tolist()):
            found[operator][tuple(shift)] = row
        assert found == expected


NONZERO = {
    "trianglebox": 23, "doublebox": 43, "doublebox-1m": 47, "nonplanar-doublebox": 49, "sunrise": 4, "pentabox": 111,
    "ladder3": 47, "banana3": 5, "box": 7, "bubble": 3,
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_nonzero_sectors_are_those_with_a_scale(name):
    """The identities at corners agree with the polynomials U and F; the numbers are those of a Laporta run (box and
    bubble: by hand).
    """
    family = BUILT_IN_FAMILIES[name]
    found = find_nonzero_sectors(evaluate_identities(derive_identities(family), generic_point(family)), family.lines)
    assert sorted(found) == any_kinematics(family).nonzero_sectors()
    assert len(found) == NONZERO[name]
    if name == "trianglebox":  # arXiv:2502.05121
        assert sorted(found) == [14, 15, 21, 23, 27, 28, 29, 30, 31, 37, 39, 43, 45, 46, 47, 53, 55, 57, 59, 60, 61, 62, 63]


# family, targets, dots and s of the seeds of the elimination
BRUTE_FORCE = [
    ("bubble", [(9, 8), (12, 1), (4, -5), (-2, 6)], 17, 5),
    ("box", [(2, 1, 1, 2), (1, 1, 1, 3), (2, 0, 1, -1), (1, -1, 2, 0)], 4, 2),
    ("sunrise", [(2, 1, 1, -1, -1), (1, 1, 1, -2, -1), (2, 2, 0, -1, 0), (1, 0, 2, -1, -2)], 2, 3),
    ("trianglebox", [(1, 1, 1, 1, 1, 1, -1), (2, 1, 1, 1, 0, 1, 0), (1, -2, 1, 1, 1, 0, -1)], 1, 3),
    ("doublebox", [(1, 0, 1, 1, 1, 0, 1, -1, 0), (1, 1, 1, 1, 1, 0, 0, -1, -1)], 1, 2),
    ("doublebox-1m", [(1, 0, 1, 1, 0, 0, 1, -1, 0), (1, 0, 2, 1, 0, 0, 1, 0, 0)], 1, 2),
    ("nonplanar-doublebox", [(1, 0, 1, 1, 0, 1, 0, -1, 0), (1, 0, 0, 2, 0, 1, 0, 0, 0)], 1, 2),
    ("pentabox", [(0, 0, 1, 0, 0, 1, 0, 2, -1, 0, 0), (1, 0, 1, 0, 1, 0, 1, 0, 0, -1, 0)], 1, 2),
    ("ladder3", [(1, 1, 0, 0, 1, 1, 1, 1, -1), (1, 0, 0, 0, 2, 1, 1, 1, 0)], 1, 2),
    ("banana3", [(1, 1, 1, 0, 0, -1, 0, 0, -1), (2, 1, 0, 1, -1, 0, 0, 0, 0), (1, 0, 1, 2, 0, 0, -1, 0, 0)], 1, 2),
]


@pytest.mark.parametrize(("name", "targets", "dots", "s"), BRUTE_FORCE, ids=[case[0] for case in BRUTE_FORCE])
def test_brute_force(reduce_at, name, targets, dots, s):
    """A full elimination of all identities around gives the same coefficients of the same masters."""
    oracle = Laporta(Kinematics(BUILT_IN_FAMILIES[name]), {bits_of(t) for t in targets}, dots, s)
    outcome = reduce_at(name, targets, paper_masters_only=True)
    assert not outcome.unreduced
    for target in targets:
        assert outcome.reductions[target] == oracle.reduce({target: 1})


@needs_stored_rules
@pytest.mark.parametrize(
    ("name", "target", "dots", "s"),
    [
        ("doublebox", (1, 1, 1, 1, 1, 1, 1, -1, 0), 0, 2),
        ("doublebox-1m", (1, 1, 1, 1, 1, 1, 1, 0, -1), 0, 2),
        ("nonplanar-doublebox", (1, 1, 0, 1, 1, 1, 0, -1, -1), 1, 2),
        ("pentabox", (1, 0, 1, 0, 0, 1, 0, 1, -1, 0, 0), 1, 2),
        ("banana3", (1, 1, 1, 1, -2, -1, 0, 0, 0), 0, 3),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_brute_force_upper_sectors(reduce_at, name, target, dots, s):
    """As test_brute_force, in sectors whose masters and rules take long to find."""
    oracle = Laporta(Kinematics(BUILT_IN_FAMILIES[name]), {bits_of(target)}, dots, s)
    outcome = reduce_at(name, [target])
    assert not outcome.unreduced
    normal_form = oracle.reduce({target: 1})
    assert normal_form and oracle.reduce(combine((1, {target: 1}), (-1, outcome.reductions[target]))) == {}


def test_corner_masters_are_equal_to_the_published_ones(reduce_at):
    """Without paper_masters_only corners of sectors stand for what they are through the published masters: the
    difference vanishes.
    """
    target = (1, 1, 1, 1, 1, 1, -1)
    oracle = Laporta(Kinematics(TRIANGLEBOX), {63}, 1, 2)
    outcome = reduce_at("trianglebox", [target])
    extra = set(outcome.reductions[target]) - set(TRIANGLEBOX.paper_masters)
    assert extra and all(set(master) <= {0, 1} for master in extra)
    assert oracle.reduce(combine((1, {target: 1}), (-1, outcome.reductions[target]))) == {}


# 2. closed forms in d -----------------------------------------------------------------------------------------------


def rising(x, k):
    """Gamma(x + k) / Gamma(x) for any integer k, exactly."""
    return math.prod((x + i for i in range(k)), start=Fraction(1)) if k >= 0 else 1 / rising(x + k, -k)


def massless_banana(indices, square, d=41):
    """I[a_1 … a_m] / I[1 … 1] of m massless lines between two points (m - 1 loops) with momentum squared `square`.

    I is proportional to square^(L d/2 - a) Gamma(a - L d/2) / Gamma((L+1) d/2 - a) prod_i Gamma(d/2 - a_i) /
    Gamma(a_i) with a = sum a_i: the one-loop G(a, b) nested (Chetyrkin, Kataev, Tkachov 1980).
    """
    half, loops, m = Fraction(d, 2), len(indices) - 1, len(indices)
    more = sum(indices) - m
    value = rising(m - loops * half, more) / rising((loops + 1) * half - m, -more) / Fraction(square) ** more
    return value * math.prod(rising(half - 1, 1 - a) / math.factorial(a - 1) for a in indices)


@pytest.mark.parametrize("point", [{}, {"m1": "2/3", "m2": "-5", "m3": "11/7"}], ids=["default", "fractions"])
@pytest.mark.parametrize(("bits", "square"), [(14, "m1"), (21, "m3"), (28, "m2"), (37, "m1")])
def test_two_loop_sunrises(reduce_at, bits, square, point):
    """Sunrise sectors with many dots are one rational number in d times their corner."""
    lines = [i for i in range(7) if bits >> i & 1]
    corner = tuple(bits >> i & 1 for i in range(7))
    cases = {}
    for indices in [(1, 1, 1), (1, 2, 1), (3, 1, 2), (2, 5, 4), (7, 1, 1), (6, 6, 6)]:
        target = [0] * 7
        for i, a in zip(lines, indices):
            target[i] = a
        cases[tuple(target)] = massless_banana(indices, Fraction((dict(TRIANGLEBOX.point) | point)[square]))
    outcome = reduce_at("trianglebox", cases, point=point_of(TRIANGLEBOX, **point))
    assert outcome.reductions == {target: {corner: residue(value)} for target, value in cases.items()}


@pytest.mark.parametrize(("bits", "pairs"), [(27, ((0, 3, "m1"), (1, 4, "m3"))), (43, ((0, 3, "m1"), (1, 5, "m1")))])
def test_products_of_bubbles(reduce_at, bits, pairs):
    """Two one-loop bubbles, each with its own momentum."""
    values, cases = dict(TRIANGLEBOX.point), {}
    for indices in [((1, 2), (3, 1)), ((4, 2), (2, 2)), ((1, 1), (1, 6)), ((5, 4), (3, 5))]:
        target, expected = [0] * 7, Fraction(1)
        for (i, j, square), (a, b) in zip(pairs, indices):
            target[i], target[j] = a, b
            expected *= massless_banana((a, b), Fraction(values[square]))
        cases[tuple(target)] = expected
    outcome = reduce_at("trianglebox", cases)
    corner = tuple(bits >> i & 1 for i in range(7))
    assert outcome.reductions == {target: {corner: residue(value)} for target, value in cases.items()}


@pytest.mark.parametrize(
    ("lines", "factors"),
    [((0, 6, 7, 5), ((0, 1, 2, 3),)), ((0, 3, 1, 4, 2, 5), ((0, 1), (2, 3), (4, 5))), ((0, 6, 4, 2, 5), ((0, 1, 2), (3, 4)))],
)
def test_three_loop_bubbles(reduce_at, lines, factors):
    """ladder3: four lines between two points, and products of sunrise and bubbles.

    Factors name positions in `lines`.
    """
    cases = {}
    corner = tuple(int(i in lines) for i in range(9))
    for indices in [(1, 1, 2, 1, 1, 1), (2, 1, 3, 1, 2, 1), (3, 2, 2, 2, 1, 2)]:
        target, expected = [0] * 9, Fraction(1)
        for i, a in zip(lines, indices):
            target[i] = a
        for factor in factors:
            expected *= massless_banana([indices[i] for i in factor], 5)
        cases[tuple(target)] = expected
    outcome = reduce_at("ladder3", cases)
    assert outcome.reductions == {target: {corner: residue(value)} for target, value in cases.items()}


@functools.cache
def tadpole(a, d, m):
    """I[a] / I[1] of D = k^2 - m: proportional to (-1)^a Gamma(a - d/2) / Gamma(a) m^(d/2 - a); zero for a < 1."""
    return (-1) ** (a - 1) * rising(1 - Fraction(d, 2), a - 1) / math.factorial(a - 1) / Fraction(m) ** (a - 1) if a > 0 else Fraction(0)


def tensor_tadpole(a, s, d, m, square):
    """I[a, -s] / I[1, 0] of D1 = k^2 - m, D2 = (k + p)^2 - m = D1 + p^2 + 2 k.p, with (k.p)^(2j) -> (k^2 p^2)^j (1/2)_j
    / (d/2)_j.
    """
    total = Fraction(0)
    for j in range(s // 2 + 1):
        average = math.comb(s, 2 * j) * (4 * square) ** j * rising(Fraction(1, 2), j) / rising(Fraction(d, 2), j)
        for u in range(j + 1):  # (k^2)^j = (D1 + m)^j
            for v in range(s - 2 * j + 1):  # (D1 + p^2)^(s - 2j)
                powers = math.comb(j, u) * Fraction(m) ** (j - u) * math.comb(s - 2 * j, v) * Fraction(square) ** (s - 2 * j - v)
                total += average * powers * tadpole(a - u - v, d, m)
    return total


def test_massive_tadpoles(reduce_at):
    """One line with dots and with numerators, up to indices of 100."""
    cases = {
        (a, -s): tensor_tadpole(a, s, 41, 3, 7) for a, s in [(1, 0), (2, 0), (9, 0), (100, 0), (1, 1), (3, 2), (5, 7), (2, 60), (60, 100)]
    }
    assert cases[2, 0] == Fraction(41 - 2, 2 * 3)  # by hand: (d - 2a) I[a] = 2 a m I[a+1]
    outcome = reduce_at("bubble", cases)
    assert outcome.reductions == {target: {(1, 0): residue(value)} for target, value in cases.items()}


# 3. golden values ---------------------------------------------------------------------------------------------------

# trianglebox at the default point; two independent solvers agree on these values.
# Coefficients in the order of Family.paper_masters, which is eq. (2.5) of arXiv:2502.05121 sorted by weight.
GOLDEN = {
    1009: {
        (2, 1, 2, 1, 2, 2, -4): "202 913 113 666 327 195 265 924 573 7 389 314 7 641 348 107",
        (3, 2, 1, 3, 2, 2, -6): "258 83 629 840 483 277 913 919 691 295 696 586 979 228 238 222",
        (1, 1, 1, 1, 1, 1, -3): "592 873 910 708 365 620 158 404 201 307 873 836 842 514 47 992",
        (2, 0, 2, 0, 1, 1, 0): "0 966 0 120 0 0 0 0 0 0 303 902 0 0 0 0",
        (1, 0, 1, -1, 2, 1, -5): "0 618 0 137 0 0 0 0 0 0 712 1005 0 0 0 0",
    },
    2147483647: {
        (2, 1, 2, 1, 2, 2, -4): "1089059650 1105720964 458815413 309446473 1278593447 1585971970 134968398 1709487165 "
        "630519592 1568061364 611550345 1875317411 1268176107 733255633 951245746 1927890033",
        (3, 2, 1, 3, 2, 2, -6): "630438041 708462970 1791720647 1231778240 407947842 1229882763 224815242 1861512200 "
        "978662642 1533163105 656302105 98675279 1932072379 347679426 885800929 1762278000",
        (1, 1, 1, 1, 1, 1, -3): "927395373 1162884003 1072627557 1424654885 89163843 1014597978 637042038 1393310226 "
        "1866601572 2019173691 266793901 1563491066 1509801620 802375825 1144385938 440841927",
        (2, 0, 2, 0, 1, 1, 0): "0 807385401 0 1528354581 0 0 0 0 0 0 2046380509 48607530 0 0 0 0",
        (1, 0, 1, -1, 2, 1, -5): "0 614294058 0 823078012 0 0 0 0 0 0 1839304551 768947584 0 0 0 0",
    },
}  # fmt: skip


@pytest.mark.parametrize(("prime", "target"), [(prime, target) for prime, values in GOLDEN.items() for target in values])
def test_golden_values(reduce_at, prime, target):
    coefficients = dict(zip(TRIANGLEBOX.paper_masters, map(int, GOLDEN[prime][target].split())))
    outcome = reduce_at("trianglebox", [target], prime, paper_masters_only=True)
    assert outcome.reductions == {target: {master: value for master, value in coefficients.items() if value}}
    assert not outcome.unreduced and set(outcome.reductions[target]) <= set(outcome.masters)


# 4. masters ---------------------------------------------------------------------------------------------------------

# The numbers of a Laporta run with dots <= 1, s <= 2 (sunrise, banana3: dots <= 2, s <= 3); trianglebox:
# arXiv:2502.05121.
MASTERS = {
    "trianglebox": 16, "doublebox": 12, "doublebox-1m": 19, "nonplanar-doublebox": 16, "sunrise": 7, "pentabox": 62,
    "ladder3": 10, "banana3": 15, "box": 3, "bubble": 3,
}  # fmt: skip
QUICK = {"trianglebox", "sunrise", "box", "bubble"}


def masters_of(family, point, sectors=None):
    """Masters by sector, searched for at this point without any stored knowledge."""
    equations = evaluate_identities(derive_identities(family), point)
    nonzero = find_nonzero_sectors(equations, family.lines)
    return {bits: find_masters(nonzero, equations, bits).masters for bits in nonzero if sectors is None or bits in sectors}


@pytest.mark.parametrize("name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES])
def test_masters_found_from_scratch(name):
    family = BUILT_IN_FAMILIES[name]
    found = masters_of(family, generic_point(family))
    assert all(sector_of(master) == bits for bits, masters in found.items() for master in masters)
    masters = {master for masters in found.values() for master in masters}
    assert len(masters) == MASTERS[name]
    if name == "trianglebox":
        assert masters == set(family.paper_masters)
    if name == "box":  # the textbook basis: two bubbles and the box
        assert masters == {(1, 0, 1, 0), (0, 1, 0, 1), (1, 1, 1, 1)}


def test_masters_of_low_sectors_of_ladder3():
    """The massless three-loop banana has one master, and so has each product of bubbles; one line more on the banana
    gives none.
    """
    family = BUILT_IN_FAMILIES["ladder3"]
    banana, bubbles = 0b11100001, 0b00111111
    found = masters_of(family, generic_point(family), {banana, bubbles, banana | 0b10, banana | 0b1000})
    assert found == {
        banana: ((1, 0, 0, 0, 0, 1, 1, 1, 0),),
        bubbles: ((1, 1, 1, 1, 1, 1, 0, 0, 0),),
        banana | 0b10: (),
        banana | 0b1000: (),
    }


@needs_stored_rules
@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"trianglebox"}))
def test_masters_in_the_shipped_rules(name):
    family = BUILT_IN_FAMILIES[name]
    knowledge = Store(SHIPPED, read_only=True).load(family)
    assert knowledge.nonzero is not None and len(knowledge.nonzero) == NONZERO[name]
    masters = [master for bits in knowledge.nonzero for master in knowledge.sectors[bits].masters]
    assert len(set(masters)) == len(masters) == MASTERS[name]


@pytest.mark.parametrize("name", ["bubble", "box", "sunrise"])
@pytest.mark.parametrize("prime", OTHER_PRIMES)
def test_masters_do_not_depend_on_point_and_prime(name, prime):
    family = BUILT_IN_FAMILIES[name]
    invariants = {symbol: Fraction(10007 + 31 * i, 89) for i, (symbol, _) in enumerate(family.point)}
    assert masters_of(family, point_of(family, prime, d="377/19", **invariants)) == masters_of(family, generic_point(family))


# 5. laws ------------------------------------------------------------------------------------------------------------

# family, integrals whose sectors are quick to learn
SAMPLES = {
    "bubble": [(3, 2), (1, 4), (2, -3)],
    "box": [(2, 1, 1, 2), (3, 1, 1, 1), (2, -1, 1, 0)],
    "sunrise": [(2, 1, 1, -1, -1), (1, 1, 1, -2, -1), (0, 2, 1, -1, -1)],
    "trianglebox": [(1, 1, 1, 1, 1, 1, -2), (2, 1, 1, 1, 1, 0, -1), (1, 0, 2, 1, 1, 1, 0)],
    "doublebox": [(1, 0, 1, 1, 1, 0, 1, -1, 0), (0, 0, 1, 2, 1, 0, 0, 0, -1)],
    "doublebox-1m": [(1, 0, 1, 1, 0, 0, 1, -1, 0)],
    "nonplanar-doublebox": [(1, 0, 1, 1, 0, 1, 0, -1, 0)],
    "pentabox": [(0, 0, 1, 0, 0, 1, 0, 2, -1, 0, 0)],
    "ladder3": [(1, 1, 0, 0, 1, 1, 1, 1, -1), (2, 0, 0, 0, 0, 1, 1, 2, -1)],
    "banana3": [(2, 1, 1, 0, 0, -1, 0, 0, -1)],
}


@pytest.mark.parametrize("name", FAMILIES)
def test_masters_are_their_own_reduction(reduce_at, name):
    """Also: a reduction holds nothing but masters, and is the same when asked for again."""
    first = reduce_at(name, SAMPLES[name])
    assert set().union(*first.reductions.values()) <= set(first.masters)
    again = reduce_at(name, [*SAMPLES[name], *first.masters])
    assert again.reductions == first.reductions | {master: {master: 1} for master in first.masters}


@pytest.mark.parametrize("name", FAMILIES)
def test_scaleless_integrals_vanish(reduce_at, name):
    family = BUILT_IN_FAMILIES[name]
    live = any_kinematics(family).nonzero_sectors()
    draw = random.Random(name)
    zero = draw.sample([bits for bits in range(1 << family.lines) if bits not in live], 1 if name in ("bubble", "box") else 4)
    targets = [tuple(draw.randint(1, 4) if bits >> i & 1 else -draw.randint(0, 3) for i in range(family.n)) for bits in zero]
    outcome = reduce_at(name, targets)
    assert outcome.reductions == {target: {} for target in targets} and not outcome.masters


@pytest.mark.parametrize("name", FAMILIES)
def test_dimensional_analysis(reduce_at, name):
    """Invariants times 5: the coefficient of M in I is multiplied by 5^(sum of M's indices - sum of I's indices)."""
    family = BUILT_IN_FAMILIES[name]
    scaled = {symbol: 5 * Fraction(value) for symbol, value in family.point}
    here = reduce_at(name, SAMPLES[name]).reductions
    there = reduce_at(name, SAMPLES[name], point=point_of(family, **scaled)).reductions
    for target, expression in here.items():
        power = {master: residue(Fraction(5) ** (sum(master) - sum(target))) for master in expression}
        assert there[target] == {master: value * power[master] % P31 for master, value in expression.items()}


def test_rotated_box(reduce_at):
    """Rotating the massless box by one leg exchanges s and t."""
    box = BUILT_IN_FAMILIES["box"]
    targets = [(3, 1, 2, 1), (1, 4, 1, 1), (2, -1, 3, 1), (2, 1, -2, 1)]
    rotated = reduce_at(box, [(*t[1:], t[0]) for t in targets], point=point_of(box, s=7, t=3)).reductions
    assert rotated == {
        (*target[1:], target[0]): {(*master[1:], master[0]): value for master, value in expression.items()}
        for target, expression in reduce_at(box, targets, point=point_of(box, s=3, t=7)).reductions.items()
    }


def test_mirrored_bubble(reduce_at):
    """Equal masses: I[a, b] = I[b, a]."""
    targets = [(a, b) for a in range(-3, 5) for b in range(-3, 5)]
    found = reduce_at("bubble", targets).reductions
    for a, b in targets:
        assert found[b, a] == {(j, i): value for (i, j), value in found[a, b].items()}


LAW_TARGETS = [(1, 1, 1, 1, 1, 1, -2), (2, 1, 1, 1, 1, 0, -1), (1, 0, 2, 1, 1, 1, 0), (2, 2, 1, 1, 1, 1, -1)]


@pytest.fixture(scope="module")
def lawful(reduce_at):
    """What every way of doing it must give (to independent masters: corners of further sectors would leave it a
    choice).
    """
    return reduce_at("trianglebox", LAW_TARGETS, paper_masters_only=True).reductions


@pytest.mark.parametrize(
    ("constant", "value"), [("BLOCK", 1), ("BLOCK", 7), ("BLOCK", 10**5), ("REPLAY_ELEMENTS", 40), ("TARGETS_PER_PASS", 1)]
)
def test_portions_do_not_matter(reduce_at, lawful, monkeypatch, constant, value):
    monkeypatch.setattr(ibp_reduce, constant, value)
    assert reduce_at("trianglebox", LAW_TARGETS, paper_masters_only=True).reductions == lawful


@pytest.mark.parametrize("bits", [8, 30])
def test_packing_does_not_matter(reduce_at, lawful, monkeypatch, bits):
    """With 8 bits keys are Python integers; with 30 the roomy layout does not fit and the tight one is taken."""
    roomy = layout_for(LAW_TARGETS, 7)
    monkeypatch.setattr(ibp_reduce, "KEY_BITS", bits)
    layout = layout_for([*LAW_TARGETS, (2, 2, 2, 2, 2, 2, 0)], 7)
    assert roomy.dtype is np.int64 and (layout.dtype is object) == (bits == 8) and (layout.s_max < 24) == (bits == 30)
    assert (
        reduce_at("trianglebox", [*LAW_TARGETS, (1, 0, 5, 2, 2, 2, 0)], shelves=[], paper_masters_only=True).reductions.items()
        >= lawful.items()
    )


def test_targets_one_by_one(reduce_at, lawful):
    assert {target: reduce_at("trianglebox", [target], paper_masters_only=True).reductions[target] for target in LAW_TARGETS} == lawful


def test_processes_do_not_matter(reduce_at, lawful):
    with LocalExecutor(2) as executor:
        outcome = reduce_at("trianglebox", LAW_TARGETS, executor=executor, shelves=[], paper_masters_only=True)
    assert outcome.reductions == lawful and not outcome.unreduced


class Rearranged:
    """A shelf that holds what the session's shelves know about a family, with the rules of every sector put through
    `change`.
    """

    def __init__(self, shelves, change):
        self.shelves, self.change = shelves, change

    def load(self, family, point=None):
        knowledge = ibp_reduce.Knowledge()
        for shelf in self.shelves:
            knowledge.update(shelf.load(family))
        for bits, sector in knowledge.sectors.items():
            sector.rules = tuple(self.change(bits, list(sector.rules), family.n))
        return knowledge

    def merge(self, family, point, new):
        pass


def shuffled(bits, rules, n):
    random.Random(bits).shuffle(rules)
    return rules


def with_foreign_rules(bits, rules, n):
    """In front of the true rules: ones of random rows, true ones with the wrong pivots, and true ones with rows lost or
    in another order.
    """
    draw = random.Random(bits)

    def vector(reach):
        return tuple(draw.randint(-reach, reach) for _ in range(n))

    foreign = []
    for rule in rules[:6]:
        rows, pivots = list(rule.rows), list(rule.pivots)
        size = draw.randint(1, 6)
        other_operators = [((o + 1) % 9, seed) for o, seed in rows]
        other_seeds = [(o, tuple(x + (i == 0) for i, x in enumerate(seed))) for o, seed in rows]
        for wrong_rows, wrong_pivots in (
            ([(draw.randrange(9), vector(1)) for _ in range(size)], [vector(2) for _ in range(size - 1)]),
            (rows, [vector(1) for _ in pivots]),
            (rows, pivots[:-1]),
            (rows[1:] or rows, pivots[1:]),
            (rows[::-1], pivots),
            (other_operators, pivots),
            (other_seeds, pivots),
        ):
            foreign.append(dataclasses.replace(rule, rows=tuple(wrong_rows), pivots=tuple(wrong_pivots)))
    draw.shuffle(foreign)
    return foreign + rules


CHANGES = {
    "reversed": lambda bits, rules, n: rules[::-1],
    "shuffled": shuffled,
    "every other": lambda bits, rules, n: rules[::2],
    "foreign": with_foreign_rules,
    "only foreign": lambda bits, rules, n: with_foreign_rules(bits, rules, n)[: -len(rules)],
    "none": lambda bits, rules, n: [],
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("prime", [P31, 1009])
def test_rules_cost_time_only(reduce_at, shelves, lawful, change, prime):
    """Whatever rules a store holds and in whatever order, the result is the same."""
    expected = lawful if prime == P31 else reduce_at("trianglebox", LAW_TARGETS, prime, paper_masters_only=True).reductions
    outcome = reduce_at("trianglebox", LAW_TARGETS, prime, shelves=[Rearranged(shelves, CHANGES[change])], paper_masters_only=True)
    assert outcome.reductions == expected and not outcome.unreduced


def test_reduction_of_a_sector_is_linear():
    """Columns x, y and 3x + 5y of coefficients: so are the columns of everything that comes out, masters, unreduced and
    subsectors.
    """
    family = TRIANGLEBOX
    equations = evaluate_identities(derive_identities(family), point_of(family))
    nonzero = find_nonzero_sectors(equations, family.lines)
    integrals = [(1, 0, 1, 1, 1, 1, -2), (2, 0, 1, 1, 1, 1, 0), (1, -1, 1, 1, 2, 1, 0), (1, -2, 1, 1, 1, 1, -1)]
    layout = layout_for(integrals, family.n)
    keys = Sector(layout, 61).encode(np.array(integrals))
    x, y = np.random.default_rng(1).integers(0, P31, (2, len(keys)))
    coefficients = np.column_stack([x, y, (3 * x + 5 * y) % P31])
    generic = evaluate_identities(derive_identities(family), generic_point(family))
    nothing = ibp_reduce.SectorKnowledge()
    task = ibp_reduce.SectorTask(layout, 61, nonzero, equations, generic, nothing, ((1, 0, 1, 1, 1, 1, 0),), {}, keys, coefficients)
    result = ibp_reduce.reduce_sector(task)
    lines = [*result.masters.values(), *result.unreduced.values(), *(line for _, part in result.below.values() for line in part.tolist())]
    assert len(lines) > 10 and all((3 * a + 5 * b - c) % P31 == 0 for a, b, c in lines)


def reconstruct(value, modulus):
    """The fraction with numerator and denominator below sqrt(modulus / 2), by the extended Euclidean algorithm (Wang
    1981).
    """
    bound = math.isqrt(modulus // 2)
    (r0, s0), (r1, s1) = (modulus, 0), (value, 1)
    while r1 > bound:
        q = r0 // r1
        (r0, s0), (r1, s1) = (r1, s1), (r0 - q * r1, s0 - q * s1)
    return Fraction(r1, s1)


@pytest.mark.parametrize(
    ("name", "target"),
    [("trianglebox", (1, 1, 1, 1, 0, 1, -1)), ("trianglebox", (2, 0, 1, 1, 1, 0, 0)), ("sunrise", (2, 1, 2, -1, 0)), ("box", (2, 1, 2, 1))],
)
def test_small_primes_agree_with_exact_coefficients(reduce_at, name, target):
    """Exact coefficients from ten large primes, put modulo small primes, where pivots vanish by accident."""
    import sympy

    primes = list(itertools.islice((q for q in range(P31, 0, -2) if sympy.isprime(q)), 10))
    images = [reduce_at(name, [target], prime, paper_masters_only=True).reductions[target] for prime in primes]
    modulus = math.prod(primes)
    exact = {}
    for master in images[0]:
        value = sum(image[master] * (modulus // q) * pow(modulus // q, -1, q) for image, q in zip(images, primes)) % modulus
        exact[master] = reconstruct(value, modulus)
        assert max(abs(exact[master].numerator), exact[master].denominator) < 2**150  # accidental values would fill the bound, 2^154
    tested = 0
    for prime in (53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109, 113, 127, 131, 1009):
        if all(value.denominator % prime for value in exact.values()):
            outcome = reduce_at(name, [target], prime, paper_masters_only=True)
            if not outcome.unreduced:
                assert outcome.reductions[target] == {m: residue(v, prime) for m, v in exact.items() if residue(v, prime)}
                tested += 1
    assert tested >= 12


REINSERTION = [
    ("bubble", [3], 3, 2), ("box", [15, 7, 10], 2, 1), ("sunrise", [7, 3], 2, 2),
    ("trianglebox", [63, 61, 47, 30, 21], 2, 3),
    ("doublebox", [0b1011101], 1, 2), ("doublebox-1m", [0b1001101], 1, 2), ("nonplanar-doublebox", [0b0101101], 1, 2),
    ("pentabox", [0b10100100], 1, 2), ("ladder3", [0b11110011], 1, 2), ("banana3", [7, 11], 2, 2),
]  # fmt: skip


@pytest.mark.parametrize(("name", "sectors", "dots", "s"), REINSERTION, ids=[case[0] for case in REINSERTION])
def test_reductions_satisfy_the_identities(reduce_at, name, sectors, dots, s):
    """All integrals of every identity at random seeds are reduced, at a point with fractions; each identity must then
    vanish.
    """
    family = BUILT_IN_FAMILIES[name]
    invariants = {symbol: Fraction(29 + 6 * i, 7 + i) for i, (symbol, _) in enumerate(family.point)}
    operators = Kinematics(family, **invariants).identities("43/3")
    draw = random.Random(name)
    equations = []
    for bits in sectors:
        for seed in draw.sample(list(seeds_of(bits, family.n, dots, s)), 2):
            for terms in operators:
                values = {
                    tuple(map(int.__add__, seed, shift)): row[0] + sum(c * a for c, a in zip(row[1:], seed)) for shift, row in terms.items()
                }
                equations.append({term: residue(value) for term, value in values.items() if value})
    targets = sorted({term for equation in equations for term in equation})
    outcome = reduce_at(name, targets, point=point_of(family, d="43/3", **invariants), paper_masters_only=True)
    assert not outcome.unreduced
    assert sum(outcome.reductions[term] != {} for term in targets) > len(targets) // 3
    for equation in equations:
        assert combine(*((value, outcome.reductions[term]) for term, value in equation.items())) == {}


# 5. laws: parts against naive versions ------------------------------------------------------------------------------


@st.composite
def layout_and_integrals(draw):
    n = draw(st.integers(1, 11))
    r_max, s_max = draw(st.integers(n, n + 12)), draw(st.integers(0, 14))
    bits = draw(st.integers(1, 2**n - 1))

    def integral():
        left = {True: r_max - bits.bit_count(), False: s_max}
        indices = [0] * n
        for i in draw(st.permutations(range(n))):
            inside = bool(bits >> i & 1)
            size = draw(st.integers(0, left[inside]))
            left[inside] -= size
            indices[i] = 1 + size if inside else -size
        return tuple(indices)

    return Layout(n, r_max, s_max), bits, [integral() for _ in range(draw(st.integers(1, 12)))]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(layout_and_integrals(), st.sampled_from([62, 10]))
def test_keys(case, key_bits):
    """decode(encode(a)) = a, and keys have the order of the weight; the corner has key 0; also for keys of unlimited
    size.
    """
    layout, bits, integrals = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ibp_reduce, "KEY_BITS", key_bits)
        sector = Sector(layout, bits)
        keys = sector.encode(np.array(integrals))
        assert [tuple(row) for row in sector.decode(keys).tolist()] == integrals
        assert sector.encode(np.array([[bits >> i & 1 for i in range(layout.n)]]))[0] == 0
    assert sorted(integrals, key=oracle_weight) == [a for _, a in sorted(zip(keys.tolist(), integrals))]
    assert sorted(integrals, key=weight) == sorted(integrals, key=oracle_weight)
    assert all(sector_of(a) == bits_of(a) == bits for a in integrals)


PRIMES = st.sampled_from([3, 101, 1009, P31])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 6), st.integers(1, 4), PRIMES, st.randoms(use_true_random=False))
def test_null_vector(size, count, p, draw):
    """matrix @ x = 0 always, by Python integers; x is not zero where no leading principal minor vanishes."""
    import sympy

    matrix = np.array(
        [[[draw.choice([0, 1, p - 1, draw.randrange(p)]) for _ in range(size + 1)] for _ in range(size)] for _ in range(count)]
    )
    vectors = null_vector(matrix.copy(), p)
    assert vectors.shape == (count, size + 1) and ((vectors >= 0) & (vectors < p)).all()
    for rows, x in zip(matrix.tolist(), vectors.tolist()):
        assert all(sum(a * b for a, b in zip(row, x)) % p == 0 for row in rows)
        minors = [sympy.Matrix([row[:k] for row in rows[:k]]).det() % p for k in range(1, size + 1)]
        assert all(minors) <= any(x)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, P31 - 1), max_size=20), PRIMES)
def test_invert(values, p):
    values = [value % p or 1 for value in values]
    assert invert(np.array(values, np.int64), p).tolist() == [pow(value, -1, p) for value in values]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(-5, 5), st.integers(0, P31 - 1), st.integers(0, P31 - 1)), max_size=30), st.sampled_from([1, 2]), PRIMES
)
def test_sum_by_key(lines, columns, p):
    keys, values = [key for key, *_ in lines], [[v % p for v in line[: 1 + columns][1:]] for line in lines]
    totals = {key: [0] * columns for key in sorted(keys)}
    for key, line in zip(keys, values):
        totals[key] = [(a + b) % p for a, b in zip(totals[key], line)]
    expected = {key: line for key, line in totals.items() if any(line)}
    found_keys, found = sum_by_key(np.array(keys, np.int64), np.array(values, np.int64).reshape(-1, columns), p)
    assert found_keys.tolist() == list(expected) and found.tolist() == list(expected.values())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 12), st.integers(1, 3), PRIMES, st.randoms(use_true_random=False))
def test_propagate(count, columns, p, draw):
    """Edges go from heavier to lighter; the naive version takes the nodes in order.

    Parallel edges occur, and nodes without any.
    """
    edges = [(a, draw.randrange(a), draw.randrange(p)) for a in (draw.randrange(count) for _ in range(3 * count)) if a]
    block = [[draw.randrange(p) for _ in range(columns)] for _ in range(count)]
    expected = [list(line) for line in block]
    for node in reversed(range(count)):
        for source, target, value in edges:
            if source == node:
                expected[target] = [(a + value * b) % p for a, b in zip(expected[target], expected[source])]
    found = np.array(block, np.int64)
    source, target, value = (np.array([edge[i] for edge in edges], np.int64) for i in range(3))
    propagate(found, source, target, value, p)
    assert found.tolist() == expected


# 6. random families -------------------------------------------------------------------------------------------------

MASS = st.sampled_from(["0", "1", "3/7", "5", "11/2"])


def small_family(name, loops, legs, propagators, isps, kinematics, point):
    return Family(name, tuple(loops.split()), tuple(legs.split()), tuple(propagators), isps, tuple(kinematics), tuple(point))


def agrees_with_oracle(reduce_at, family, targets, dots, s):
    """target - reduction is a combination of identities, and no master is."""
    kinematics = Kinematics(family)
    live = any_kinematics(family).nonzero_sectors()
    oracle = Laporta(kinematics, {bits_of(target) for target in targets}, dots, s)
    outcome = reduce_at(family, targets, shelves=[])
    assert not outcome.unreduced
    for target in targets:
        if bits_of(target) not in live:
            assert outcome.reductions[target] == {}
        else:
            assert oracle.reduce(combine((1, {target: 1}), (-1, outcome.reductions[target]))) == {}
    for master in outcome.masters:
        assert oracle.reduce({master: 1}) == {master: 1}


@few_examples
@given(st.tuples(MASS, MASS), st.sampled_from(["s", "0", "1"]), st.tuples(st.integers(-2, 4), st.integers(-2, 4)))
def test_random_bubbles(reduce_at, masses, square, target):
    """Two masses, momentum off shell, light-like or of square 1 (on shell or at a threshold for some of the masses)."""
    propagators = zip(("k1", "k1+p"), masses)
    family = small_family("bubble", "k1", "p", propagators, 0, [("p*p", square)], [("s", "10007/89")])
    agrees_with_oracle(reduce_at, family, [target], 10, 8)


@few_examples
@given(st.tuples(MASS, MASS, MASS), st.tuples(*[st.sampled_from(["0", "u", "v", "w"])] * 3), st.tuples(*[st.integers(-1, 2)] * 3))
def test_random_triangles(reduce_at, masses, squares, target):
    a, b, c = squares
    kinematics = [("p1*p1", a), ("p2*p2", b), ("p1*p2", f"(x+{c})/2")]
    point = [("u", "10007/89"), ("v", "-337"), ("w", "911/5"), ("x", "40009/3")]
    family = small_family("triangle", "k1", "p1 p2", zip(("k1", "k1+p1", "k1+p1+p2"), masses), 0, kinematics, point)
    agrees_with_oracle(reduce_at, family, [target], 5, 4)


@few_examples
@given(st.tuples(MASS, MASS, MASS), st.tuples(*[st.integers(-1, 3)] * 3))
def test_random_two_loop_vacuum(reduce_at, masses, target):
    """No external momentum, no invariant."""
    family = small_family("vacuum", "k1 k2", "", zip(("k1", "k2", "k1+k2"), masses), 0, [], [])
    agrees_with_oracle(reduce_at, family, [target], 6, 4)


@few_examples
@given(st.tuples(MASS, MASS, MASS), st.tuples(*[st.integers(0, 2)] * 3, *[st.integers(-1, 0)] * 2))
def test_random_sunrises(reduce_at, masses, target):
    family = small_family(
        "sunrise",
        "k1 k2",
        "p",
        [*zip(("k1", "k2", "k1-k2+p"), masses), ("k1-p", "0"), ("k2+p", "2")],
        2,
        [("p*p", "s")],
        [("s", "10007/89")],
    )
    agrees_with_oracle(reduce_at, family, [target], 3, 4)


@few_examples
@given(st.tuples(MASS, MASS), st.sampled_from(["2*k1*p", "-1*k1*p"]), st.tuples(st.integers(-2, 3), st.integers(-2, 3)))
def test_random_linear_propagators(reduce_at, masses, linear, target):
    """One loop with a heavy-quark line, a product of two momenta that is not squared."""
    family = small_family("heavy", "k1", "p", zip(("k1", linear), masses), 0, [("p*p", "s")], [("s", "10007/89")])
    agrees_with_oracle(reduce_at, family, [target], 8, 8)


@pytest.mark.parametrize("target", [(1, 1, 1, 2, 1), (2, 0, 1, 1, 1), (1, 2, 0, 1, 2), (0, 1, 1, 2, 1)])
def test_two_loop_linear_propagators(reduce_at, tmp_path, target):
    """The heavy-quark self-energy at two loops, from a JSON file."""
    definition = {
        "name": "heavy2", "loop_momenta": ["k1", "k2"], "external_momenta": ["p"], "isps": 0,
        "kinematics": {"p*p": "1"}, "invariants": {"w": 5},
        "propagators": ["k1", "k2", "k1-k2", ["2*k1*p", "w"], ["2*k2*p", "w"]],
    }  # fmt: skip
    path = tmp_path / "heavy2.json"
    path.write_text(json.dumps(definition))
    agrees_with_oracle(reduce_at, load_family(str(path)), [target], 3, 2)


def test_on_shell_self_energy(reduce_at):
    """p^2 = m^2: the two-loop on-shell family with two massive lines, symbols shared by masses and kinematics."""
    family = small_family(
        "onshell",
        "k1 k2",
        "p",
        [("k1", "0"), ("k2", "0"), ("k1+p", "m"), ("k2+p", "m"), ("k1+k2+p", "m")],
        0,
        [("p*p", "m")],
        [("m", "13/4")],
    )
    agrees_with_oracle(reduce_at, family, [(1, 1, 1, 1, 1), (1, 1, 0, 0, 2), (2, 1, -1, 0, 1), (1, 1, 1, 0, 1)], 2, 2)


# 7. preferred masters -----------------------------------------------------------------------------------------------


PREFERRED = [
    ("bubble", (3, 2), [(2, 0), (1, 2)]),
    ("sunrise", (1, 1, 1, -2, -1), [(2, 1, 1, 0, 0), (1, 2, 1, 0, 0), (1, 1, 2, 0, 0), (1, 1, 1, 0, 0)]),
    ("trianglebox", (2, 1, 1, 1, 1, 0, -1), [(1, 0, 2, 0, 1, 0, 0), (1, 0, 1, 2, 1, 0, 0), (2, 1, 0, 1, 1, 0, 0), (1, 1, 1, 1, 1, 0, -1)]),
]


@pytest.mark.parametrize(("name", "target", "preferred"), PREFERRED, ids=[case[0] for case in PREFERRED])
def test_preferred_masters(reduce_at, name, target, preferred):
    """Re-expanding the preferred integrals gives the standard reduction; they are in use, and each replaces one
    standard master.
    """
    standard = reduce_at(name, [target, *preferred], paper_masters_only=True)
    outcome = reduce_at(name, [target], paper_masters_only=True, preferred_masters=tuple(preferred))
    rewritten = outcome.reductions[target]
    assert set(rewritten) & set(preferred) and set(rewritten) <= set(outcome.masters)
    assert combine(*((value, standard.reductions.get(term, {term: 1})) for term, value in rewritten.items())) == standard.reductions[target]
    kept = set(outcome.masters) - set(preferred)
    assert kept <= set(standard.masters) and len(kept & set(standard.masters)) <= len(standard.masters) - len(
        set(preferred) - set(standard.masters)
    )


@pytest.mark.parametrize(
    ("name", "preferred"),
    [
        ("bubble", [(1, 1), (2, 0), (3, 0)]),
        ("sunrise", [(2, 1, 1, 0, 0), (1, 2, 1, 0, 0), (1, 1, 2, 0, 0), (1, 1, 1, -1, 0), (1, 1, 1, 0, -1),
             (1, 1, 0, 0, 0), (0, 1, 1, 0, 0), (1, 0, 1, 0, 0)]),
        ("trianglebox", [(1, 0, 2, 0, 1, 0, 0), (2, 0, 1, 0, 1, 0, 0)]),
        ("trianglebox", [(1, 1, 0, 0, 0, 0, 0)]),
    ],
)  # fmt: skip
def test_dependent_preferred_masters(reduce_at, name, preferred):
    """More integrals than masters, two of a sector with one master, and an integral that is zero."""
    with pytest.raises(InputError, match="linear"):
        reduce_at(name, preferred[:1], preferred_masters=tuple(preferred))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 5), st.integers(0, 4), st.sampled_from([101, P31]), st.randoms(use_true_random=False))
def test_change_basis_is_invertible(size, chosen, p, draw):
    """Random reductions: rewritten ones, with the preferred integrals expanded again, are the given ones."""
    import sympy

    masters = [(1, -i) for i in range(size)]
    preferred = [(2, -i) for i in range(min(chosen, size))]
    integrals = [*masters, *preferred, (3, 0), (3, -1)]
    reductions = {a: {m: v for m in masters if (v := draw.choice([0, 1, draw.randrange(p)]))} for a in integrals[size:]}
    reductions |= {m: {m: 1} for m in masters}
    rank_rows = sympy.Matrix([[reductions[a].get(m, 0) for m in masters] for a in preferred]) if preferred else None
    independent = not preferred or sympy.polys.matrices.DomainMatrix.from_Matrix(rank_rows).convert_to(sympy.GF(p)).rank() == len(preferred)
    if not independent:
        with pytest.raises(InputError):
            ibp_reduce.change_basis(reductions, preferred, p)
        return
    rewritten = ibp_reduce.change_basis(reductions, preferred, p)
    used = {term for expression in rewritten.values() for term in expression}
    assert len(used) <= size and all(rewritten[a] == {a: 1} for a in preferred)
    for integral, expression in rewritten.items():
        assert combine(*((value, reductions[term]) for term, value in expression.items()), p=p) == reductions[integral]


# 8. where the search finds nothing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("neighbourhoods", [(), (Neighbourhood(1, (-1, -1), (-1, 0), 2),), (Neighbourhood(1, (-1, -1), (-1, 1), 3),)])
def test_unreduced_integrals_are_named(reduce_at, monkeypatch, neighbourhoods):
    """Too narrow a search leaves integrals; what is said about the target stays true, and nothing unreduced passes for
    a master.
    """
    targets = [(1, 1, 1, 1, 1, 1, -2), (1, 1, 1, 1, 1, 0, -1)]
    full = reduce_at("trianglebox", targets, paper_masters_only=True)
    with monkeypatch.context() as patch:
        patch.setattr(ibp_reduce, "NEIGHBOURHOODS", neighbourhoods)
        outcome = reduce_at("trianglebox", targets, paper_masters_only=True, shelves=[])
    assert outcome.unreduced and not set(outcome.unreduced) & set(outcome.masters)
    assert set().union(*outcome.reductions.values()) <= set(outcome.masters) | set(outcome.unreduced)
    assert set(outcome.unreduced) <= set().union(*outcome.reductions.values())
    assert set(outcome.masters) == set(full.masters)
    rest = reduce_at("trianglebox", outcome.unreduced, paper_masters_only=True)
    assert not rest.unreduced
    for target in targets:
        inserted = combine(*((value, rest.reductions.get(term, {term: 1})) for term, value in outcome.reductions[target].items()))
        assert inserted == full.reductions[target]


# =====================================================================================================================
# Reduction: the program from outside
# =====================================================================================================================

SMALL = "1,1,1,1,1,1,-3"  # trianglebox: a second with empty store
PUBLISHED = ["--integral", SMALL, "--paper-masters-only"]  # to independent masters, so that coefficients are unique
BUBBLE = ["--family", "bubble", "--integral", "3,2"]  # a tenth of a second, with search for masters


# helpers ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty current directory, and no shipped rules, so that what is found depends on nothing else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ibp_reduce, "DATA", tmp_path / "nothing shipped")
    return tmp_path


@pytest.fixture(scope="session")
def bare(tmp_path_factory):
    """A copy of the two source files alone, in a directory whose name a careless command line would break."""
    directory = tmp_path_factory.mktemp("bare") / 'it\'s a "copy"'
    directory.mkdir()
    for name in ("ibp_reduce.py", "condor_worker.py"):
        shutil.copy(HERE / name, directory)
    return directory


def program(bare, place, *words, **more):
    command = [sys.executable, str(bare / "ibp_reduce.py"), *map(str, words)]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=DEADLINE_S, **more)


def python(bare, place, code, *words):
    """Run a script that can import the copied program, nothing of this directory."""
    environment = os.environ | {"PYTHONPATH": str(bare)}
    return subprocess.run(
        [sys.executable, "-c", code, *words], cwd=place, env=environment, capture_output=True, text=True, timeout=DEADLINE_S
    )


def start_python(bare, place, code, *words):
    environment = os.environ | {"PYTHONPATH": str(bare)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def exit_code(words):
    try:
        return ibp_reduce.main(words)
    except SystemExit as end:
        return end.code


def reduced(*words):
    """The result of a run that succeeds, in this process and in the current directory."""
    assert exit_code([*words, "--quiet", "--output", "r.pkl"]) == 0
    return ibp_reduce.load_builtins(Path("r.pkl").read_bytes())


def snapshot(directory):
    """Every path below a directory, with the bytes of files."""
    return {path.relative_to(directory): path.read_bytes() if path.is_file() else None for path in directory.rglob("*")}


def family_as_json(family):
    return {
        "name": family.name,
        "loop_momenta": list(family.loop_momenta),
        "external_momenta": list(family.external_momenta),
        "propagators": [list(pair) for pair in family.propagators],
        "isps": family.isps,
        "kinematics": dict(family.kinematics),
        "invariants": {name: int(value) for name, value in family.point},
    }


BUBBLE_JSON = family_as_json(BUILT_IN_FAMILIES["bubble"])


def default_point(family, prime=1009):
    return Point(Fraction(family.d), tuple((name, Fraction(value)) for name, value in family.point), prime)


def known(path, family=TRIANGLEBOX, point=None):
    """What a store holds; it must say nothing, that is, be sound."""
    said = []
    knowledge = Store(path, say=said.append).load(family, point)
    assert said == []
    return knowledge


def rules_in(knowledge):
    return {(bits, rule) for bits, sector in knowledge.sectors.items() for rule in sector.rules}


# bad input ----------------------------------------------------------------------------------------------------------

INPUT_FILES = {
    "good.txt": "1,1,1,1,1,1,-1\n",
    "empty.txt": "",
    "comments.txt": "# nothing\n\n",
    "short.txt": "1,1,1,1,1,1,-1\n# a comment\n1,1,1\n",
    "word.txt": "1,1,1,1,1,1,-1\n\nhello\n",
    "other.txt": "trianglebox[1,1,1,1,1,1,-1]\ndoublebox[1,1,1,1,1,1,1,0,0]\n",
    "positive.txt": "1,1,1,1,1,1,1\n",
    "nul.txt": "1,1,1,1,1,1,-1\n1,1,1,1,1,1,\0\n",
    "binary.txt": bytes(range(256)),
    "bubble.json": json.dumps(BUBBLE_JSON),
    "a file": "kept",
}

# words of the command: what the line on stderr must contain
BAD_COMMANDS = {
    # integrals
    "--integral=1,1": ("--integral", "2 indices", "has 7"),
    "--integral=1,1,1,1,1,1,1,1": ("--integral", "8 indices", "has 7"),
    "--integral=1.5,1,1,1,1,1,0": ("--integral", "1.5", "integer"),
    "--integral=a,1,1,1,1,1,0": ("--integral", "a,1,1"),
    "--integral=": ("--integral",),
    '--integral ""': ("--integral",),
    '--integral=" "': ("--integral",),
    "--integral": ("--integral", "argument"),
    "--integral=1,1,1,1,1,1,": ("--integral", "integer"),
    "--integral=1,1,1,,1,1,0": ("--integral", "integer"),
    '--integral="1 1 1 1 1 1 0"': ("--integral", "integer"),
    '--integral="1,1,1,1,1,1 1,0"': ("--integral", "integer"),
    "--integral=1_0,1,1,1,1,1,0": ("--integral", "1_0"),  # a slip for 1,0 must not become ten
    "--integral=0x1,1,1,1,1,1,0": ("--integral", "integer"),
    "--integral=1e0,1,1,1,1,1,0": ("--integral", "integer"),
    "--integral=\u22121,1,1,1,1,1,0": ("--integral", "integer"),  # a typographic minus
    "--integral=1,1,1,1,1,1,--3": ("--integral", "integer"),
    "--integral=1,1,1,1,1,1,1": ("--integral", "index 7", "must not be positive"),
    "--integral=101,1,1,1,1,1,0": ("--integral", "100"),
    "--integral=1,1,1,1,1,1,-101": ("--integral", "100"),
    "--integral=[1,1,1,1,1,1,-3": ("--integral", "not a list of indices"),
    "--integral=doublebox[1,1,1,1,1,1,-3]": ("--integral", "doublebox", "trianglebox", "--family"),
    # the point
    "--kinematics=m4=1": ("--kinematics", "m4", "m1, m2, m3"),
    "--kinematics=d=4": ("--kinematics", "d=4", "m1, m2, m3"),
    "--kinematics=m1": ("--kinematics", "m1", "NAME=VALUE"),
    "--kinematics==1": ("--kinematics", "NAME=VALUE"),
    "--kinematics=m1=": ("m1", "integer or a fraction"),
    "--kinematics=m1=a": ("m1", "integer or a fraction"),
    '--kinematics="m1=1;m2=2"': ("m1", "integer or a fraction"),
    "--kinematics=m1=nan": ("m1", "integer or a fraction"),
    "--kinematics=m1=1/0": ("m1", "integer or a fraction"),
    "--kinematics=m1=1/1009": ("m1", "division by zero", "1009"),
    "--kinematics=m1=1/7 --prime=7": ("m1", "division by zero", "7"),
    "--kinematics=m1=1,m1=2": ("--kinematics", "m1"),  # which of the two?
    "--kinematics=m1=1e5000": ("m1",),
    "--d=a": ("d", "integer or a fraction"),
    "--d=4-2*eps": ("d", "integer or a fraction"),
    "--d=1/1009": ("d", "division by zero", "1009"),
    "--d=1e5000": ("d",),
    # the prime
    "--prime=1": ("--prime", "prime number"),
    "--prime=0": ("--prime", "prime number"),
    "--prime=-7": ("--prime", "prime number"),
    "--prime=2": ("--prime", "prime number"),
    "--prime=1001": ("--prime", "prime number"),
    "--prime=2147483648": ("--prime", "prime number"),
    "--prime=2147483659": ("--prime", "2147483647"),
    "--prime=" + "9" * 40: ("--prime", "2147483647"),
    "--prime=1009.0": ("--prime", "1009.0"),
    "--prime=": ("--prime",),
    "--prime=5 --integral=1,1,1,1,1,1,-5": ("--prime", "largest index"),
    "--prime=7 --integral=7,1,1,1,1,1,0": ("--prime", "larger prime"),
    # numbers of other options
    "--local=0": ("--local", "at least 1"),
    "--local=-3": ("--local", "at least 1"),
    "--local=many": ("--local", "many"),
    "--straggler-timeout=0": ("--straggler-timeout", "above 0"),
    "--straggler-timeout=-1": ("--straggler-timeout", "above 0"),
    "--straggler-timeout=nan": ("--straggler-timeout",),
    "--straggler-timeout=inf --local=2": ("--straggler-timeout",),
    "--straggler-timeout=1e30 --local=2": ("--straggler-timeout",),
    # what contradicts itself, or does not exist
    "--integral=1,1,1,1,1,1,-1 --integrals=good.txt": ("--integral", "--integrals", "one of them"),
    "--integral= --integrals=good.txt": ("--integral",),
    "--benchmark --integral=1,1,1,1,1,1,-1": ("--benchmark", "--integral"),
    "--benchmark --integrals=good.txt": ("--benchmark", "--integral"),
    "--benchmark=-1": ("--benchmark -1",),
    "--no-such-option": ("--no-such-option",),
    "--integ=1,1,1,1,1,1,-1": ("--integ",),
    "1,1,1,1,1,1,-1": ("1,1,1,1,1,1,-1",),
    "--family=triangle": ("'triangle'", "trianglebox", "bubble"),
    "--family=": ("family", "trianglebox"),
    "--family=missing.json": ("missing.json",),
    "--family=bubble": ("bubble", "--integral"),
    "--family=" + "x" * 300: ("family",),
    # files of integrals
    "--integrals=missing.txt": ("--integrals", "missing.txt", "No such file"),
    "--integrals=": ("--integrals",),
    "--integrals=.": ("--integrals", "directory"),
    "--integrals=empty.txt": ("--integrals", "empty.txt", "no integrals"),
    "--integrals=comments.txt": ("--integrals", "comments.txt", "no integrals"),
    "--integrals=short.txt": ("--integrals", "short.txt", "line 3", "3 indices"),
    "--integrals=word.txt": ("--integrals", "word.txt", "line 3", "hello"),
    "--integrals=other.txt": ("--integrals", "other.txt", "line 2", "doublebox"),
    "--integrals=positive.txt": ("--integrals", "line 1", "must not be positive"),
    "--integrals=nul.txt": ("--integrals", "line 2", "integer"),
    "--integrals=binary.txt": ("--integrals", "binary.txt", "not readable"),
    '--integrals="two\nlines"': ("--integrals", "lines"),
    "--masters=missing.txt": ("--masters", "missing.txt"),
    "--masters=empty.txt": ("--masters", "no integrals"),
    "--masters=short.txt": ("--masters", "line 3"),
    # where nothing can be written
    '--output="a file/r.pkl"': ("--output", "a file"),
    "--output=directory": ("--output", "directory"),
    "--output=": ("--output",),
    "--output=" + "x" * 300: ("output",),
    "--output=pipe": ("--output", "pipe"),
    '--work-dir="a file"': ("--work-dir", "a file"),
    '--work-dir="a file/work"': ("--work-dir", "a file"),
    "--work-dir=" + "x" * 300: ("work",),
    "--store=directory": ("--store", "directory"),
    '--store="a file/store"': ("--store", "a file"),
    "--store=" + "x" * 300: ("store",),
    # outputs that would overwrite an input, or each other
    "--output=good.txt --integrals=good.txt": ("--output", "good.txt"),
    "--output=bubble.json --family=bubble.json --integral=2,1": ("--output", "bubble.json"),
    "--output=same --store=same": ("--output", "--store"),
    "--output=same --work-dir=same": ("--output", "--work-dir"),
}


def write_input_files(directory):
    for name, content in INPUT_FILES.items():
        (directory / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (directory / "directory").mkdir()
    os.mkfifo(directory / "pipe")


def check_refused(words, directory, capsys, fragments):
    """Exit code 2, one line that says why, nothing written."""
    before = snapshot(directory)
    capsys.readouterr()
    code = exit_code(words)
    printed, said = capsys.readouterr()
    assert (code, printed) == (2, ""), said
    lines = said.splitlines()
    if lines[0].startswith("usage: "):  # from argparse: usage, then one line
        assert [line for line in lines if not line.startswith(("usage: ", " "))] == lines[-1:]
        assert lines[-1].startswith("ibp_reduce.py: error: ")
    else:
        assert len(lines) == 1 and lines[0].startswith("ibp_reduce: "), said[:2000]
        assert len(said) < 1000, f"{len(said)} characters"
    assert [part for part in fragments if part not in lines[-1]] == [], lines[-1]
    assert snapshot(directory) == before


@pytest.mark.parametrize("command", BAD_COMMANDS, ids=lambda command: ascii(command)[1:60])
def test_bad_command_is_refused_in_one_line_and_nothing_is_written(command, place, capsys):
    write_input_files(place)
    complete = any(word in command for word in ("--integ", "--benchmark", "--family"))
    default = [] if complete else ["--integral=1,1,1,1,1,1,-1"]
    check_refused(shlex.split(command) + default, place, capsys, BAD_COMMANDS[command])


@pytest.mark.parametrize("option, path", [("--output", "locked/r.pkl"), ("--work-dir", "locked/work"), ("--store", "locked/deep/s")])
def test_directory_without_write_permission_is_refused(option, path, place, capsys, monkeypatch):
    (place / "locked").mkdir()
    allowed = os.access
    # a stand-in for chmod, which does not bind root
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "locked" and allowed(path, mode))
    check_refused([*BUBBLE, option, path], place, capsys, [option, "locked"])


CODE = '__import__("os").system("touch broken-out")'
DROP = object()

# changes to the definition of a bubble: what the line on stderr must contain
BAD_FAMILIES = {
    **{f"without {key}": ({key: DROP}, [key, "missing"]) for key in BUBBLE_JSON},
    "unknown key": ({"propagator": []}, ["'propagator'", "known"]),
    "name a number": ({"name": 7}, ["name", "str"]),
    "loop momenta a string": ({"loop_momenta": "k1"}, ["loop_momenta", "list"]),
    "loop momenta an object": ({"loop_momenta": {"k1": 1}}, ["loop_momenta", "list"]),
    "loop momenta numbers": ({"loop_momenta": [1]}, ["'1'", "name"]),
    "loop momenta null": ({"loop_momenta": [None]}, ["k1"]),
    "no loop momentum": ({"loop_momenta": []}, ["0 loop"]),
    "a thousand loop momenta": ({"loop_momenta": [f"k{i}" for i in range(1, 1001)]}, ["1000 loop"]),
    "external momenta nested": ({"external_momenta": [["p"]]}, ["name"]),
    "propagators an object": ({"propagators": {"k1": "m"}}, ["propagators", "list"]),
    "isps a float": ({"isps": 0.0}, ["isps", "int"]),
    "isps a string": ({"isps": "0"}, ["isps", "int"]),
    "isps a bool": ({"isps": False}, ["isps", "int"]),
    "isps negative": ({"isps": -1}, ["isps = -1", "0 <= isps"]),
    "isps all": ({"isps": 2}, ["isps = 2", "isps < propagators"]),
    "isps astronomical": ({"isps": 10**30}, ["isps"]),
    "kinematics a list": ({"kinematics": ["p*p"]}, ["kinematics", "dict"]),
    "invariants a list": ({"invariants": ["s", "m"]}, ["invariants", "dict"]),
    # names
    "momentum twice": ({"loop_momenta": ["k1", "k1"]}, ["'k1'", "twice"]),
    "loop momentum is external": ({"external_momenta": ["k1"]}, ["'k1'", "twice"]),
    "invariant is a momentum": ({"invariants": {"s": 7, "m": 3, "p": 1}}, ["'p'", "twice"]),
    "d as invariant": ({"invariants": {"s": 7, "m": 3, "d": 4}}, ["'d'"]),
    "invariant no name": ({"invariants": {"s": 7, "m": 3, "2m": 6}}, ["'2m'", "name"]),
    "invariant empty name": ({"invariants": {"s": 7, "m": 3, "": 6}}, ["''", "name"]),
    "name of the family over two lines": ({"name": "two\nlines"}, ["name", "letters"]),
    # propagators
    "too few propagators": ({"propagators": ["k1"]}, ["1 propagators", "exactly 2"]),
    "too many propagators": ({"propagators": ["k1", "k1+p", "k1-p"]}, ["3 propagators", "exactly 2"]),
    "dependent propagators": ({"propagators": [["k1", "m"], ["-k1", "0"]]}, ["linearly dependent"]),
    "propagator without loop momentum": ({"propagators": ["k1", "p"]}, ["linearly dependent"]),
    "undefined momentum": ({"propagators": ["k1", "k1+q"]}, ["'q'", "'k1+q'", "known"]),
    "undefined mass": ({"propagators": ["k1", ["k1+p", "M"]]}, ["'M'", "known"]),
    "momentum as mass": ({"propagators": ["k1", ["k1+p", "p"]]}, ["'p'", "known"]),
    "cubic propagator": ({"propagators": ["k1", "k1*k1*p"]}, ["'k1*k1*p'", "neither"]),
    "constant propagator": ({"propagators": ["k1", "1"]}, ["'1'", "neither"]),
    "vanishing propagator": ({"propagators": ["k1", "p-p"]}, ["'p-p'", "neither"]),
    "mixed propagator": ({"propagators": ["k1", "k1*p+k1"]}, ["'k1*p+k1'", "neither"]),
    "mass within a propagator": ({"propagators": ["k1", "(k1+p)**2-m"]}, ["(k1+p)**2-m", "masses"]),
    "quotient of momenta": ({"propagators": ["k1", "k1/p"]}, ["'k1/p'"]),
    "inverse momentum": ({"propagators": ["k1", "1/k1"]}, ["'1/k1'"]),
    "propagator a number": ({"propagators": ["k1", 2]}, ["'2'"]),
    "propagator null": ({"propagators": ["k1", None]}, ["'None'"]),
    "propagator an object": ({"propagators": ["k1", {"p": "m"}]}, ["arithmetic"]),
    "propagator of three parts": ({"propagators": ["k1", ["k1", "p", "m"]]}, ["propagator"]),
    "propagator of no part": ({"propagators": ["k1", []]}, ["propagator"]),
    "empty propagator": ({"propagators": ["k1", ""]}, ["arithmetic"]),
    "mass not whole": ({"propagators": ["k1", ["k1+p", 1.5]]}, ["'1.5'", "arithmetic"]),
    "mass null": ({"propagators": ["k1", ["k1+p", None]]}, ["'None'", "arithmetic"]),
    "mass divided by zero": ({"propagators": ["k1", ["k1+p", "m/(s-s)"]]}, ["division by zero", "m/(s-s)"]),
    # kinematic rules
    "missing kinematic rule": ({"kinematics": {}}, ["p*p"]),
    "double kinematic rule": ({"kinematics": {"p*p": "s", "p**2": "s"}}, ["two", "p*p"]),
    "rule for unknown momenta": ({"kinematics": {"p*p": "s", "q*q": "0"}}, ["'q*q'", "external momenta p"]),
    "rule for a loop momentum": ({"kinematics": {"p*p": "s", "k1*p": "0"}}, ["'k1*p'"]),
    "rule for a triple product": ({"kinematics": {"p*p*p": "s"}}, ["'p*p*p'"]),
    "rule without momenta": ({"kinematics": {"p*p": "s", "": "0"}}, ["''"]),
    "undefined invariant": ({"kinematics": {"p*p": "u"}}, ["'u'", "known"]),
    "division by zero": ({"kinematics": {"p*p": "s/0"}}, ["division by zero", "s/0"]),
    "value null": ({"kinematics": {"p*p": None}}, ["arithmetic"]),
    "value a list": ({"kinematics": {"p*p": ["s"]}}, ["arithmetic"]),
    "value not whole": ({"kinematics": {"p*p": 3.5}}, ["'3.5'", "arithmetic"]),
    "value empty": ({"kinematics": {"p*p": ""}}, ["arithmetic"]),
    # default values
    "invariant null": ({"invariants": {"s": None, "m": 3}}, ["s = 'None'"]),
    "invariant a list": ({"invariants": {"s": [7], "m": 3}}, ["s = "]),
    "invariant a formula": ({"invariants": {"s": "2*m", "m": 3}}, ["s = '2*m'"]),
    "d null": ({"d": None}, ["d"]),
    "d a formula": ({"d": "4-2*eps"}, ["'4-2*eps'"]),
    # what is no arithmetic
    "code in a propagator": ({"propagators": ["k1", CODE]}, ["arithmetic"]),
    "code in a mass": ({"propagators": ["k1", ["k1+p", CODE]]}, ["arithmetic"]),
    "code in a rule": ({"kinematics": {"p*p": CODE}}, ["arithmetic"]),
    "attribute": ({"propagators": ["k1", "k1.__class__"]}, ["arithmetic"]),
    "lambda": ({"propagators": ["k1", "(lambda: p)()"]}, ["arithmetic"]),
    "assignment": ({"propagators": ["k1", "(k1 := p)"]}, ["arithmetic"]),
    "string": ({"propagators": ["k1", '"p"']}, ["arithmetic"]),
    "caret": ({"propagators": ["k1", "(k1+p)^2"]}, ["arithmetic"]),
    "typographic minus": ({"propagators": ["k1", "k1\u2212p"]}, ["arithmetic"]),
    "NUL": ({"propagators": ["k1", "k1\0"]}, ["arithmetic"]),
    # too much of it
    "deep parentheses": ({"propagators": ["k1", "(" * 5000 + "p" + ")" * 5000]}, []),
    "many minus signs": ({"propagators": ["k1", "-" * 20_000 + "p"]}, []),
    "long sum": ({"propagators": ["k1", "+".join(["p"] * 20_000)]}, []),
    "number of 5000 digits": ({"kinematics": {"p*p": "1" * 5000}}, []),
    "high power": ({"propagators": ["k1", "k1**1000000"]}, []),
    "tower of powers": ({"propagators": ["k1", "2**9**9**9*k1"]}, []),
    "product of powers": ({"kinematics": {"p*p": "s*" + "(" * 5 + "7" + "**16)" * 5}}, []),
}


@pytest.mark.parametrize("case", BAD_FAMILIES)
def test_bad_family_is_refused_in_one_line_and_nothing_is_written(case, place, capsys):
    changes, fragments = BAD_FAMILIES[case]
    content = {key: value for key, value in (BUBBLE_JSON | changes).items() if value is not DROP}
    (place / "f.json").write_text(json.dumps(content))
    check_refused(["--family", "f.json", "--integral", "2,1"], place, capsys, fragments)


BAD_FAMILY_FILES = {
    "empty": b"",
    "text": b"name: bubble",
    "cut off": json.dumps(BUBBLE_JSON).encode()[:-10],
    "binary": bytes(range(256)),
    "another encoding": json.dumps(BUBBLE_JSON).encode("utf-16"),
    "list": json.dumps([BUBBLE_JSON]).encode(),
    "string": b'"bubble"',
    "null": b"null",
    "nested lists": b"[" * 100_000,
    "nested objects": b'{"name":' * 100_000,
    "double key": json.dumps(BUBBLE_JSON).replace('"isps": 0', '"isps": 1, "isps": 0').encode(),
    "double rule": json.dumps(BUBBLE_JSON).replace('"p*p": "s"', '"p*p": "s", "p*p": "0"').encode(),
}


@pytest.mark.parametrize("case", BAD_FAMILY_FILES)
def test_file_that_is_no_family_is_refused(case, place, capsys):
    (place / "f.json").write_bytes(BAD_FAMILY_FILES[case])
    check_refused(["--family", "f.json", "--integral", "2,1"], place, capsys, ["f.json"])


def test_family_that_is_a_directory_is_refused(place, capsys):
    (place / "f.json").mkdir()
    check_refused(["--family", "f.json", "--integral", "2,1"], place, capsys, ["'f.json'"])


@pytest.mark.parametrize(
    "rule, values, more",
    [
        ("s/(x-2)", {"x": 2}, []),
        ("s/(x-2)", {"x": 1011}, []),
        ("s/(x-2)", {"x": 5}, ["--kinematics=x=2"]),
        ("s/(d-4)", {"x": 0}, ["--d=4"]),
        ("s/1009", {"x": 0}, []),
    ],
)
def test_point_where_the_kinematics_have_a_pole_is_refused(rule, values, more, place, capsys):
    (place / "f.json").write_text(json.dumps(BUBBLE_JSON | {"kinematics": {"p*p": rule}, "invariants": {"s": 7, "m": 3} | values}))
    check_refused(["--family", "f.json", "--integral", "2,1", *more], place, capsys, ["division by zero", "1009", "another"])


@pytest.mark.parametrize("preferred", ["1,1\n2,1\n1,0\n0,1\n", "1,1\n0,0\n", "1,1\n-1,0\n"])
def test_dependent_masters_are_refused(preferred, place, capsys):
    (place / "m.txt").write_text(preferred)
    last = preferred.split()[-1]
    check_refused([*BUBBLE, "--masters", "m.txt"], place, capsys, ["master", f"I[{last}]", "depends"])


# command line -------------------------------------------------------------------------------------------------------


def test_integral_that_begins_with_minus_needs_no_equals_sign(place):
    results = [
        reduced(*words)["reductions"]
        for words in (["--integral", "-1,1,1,1,1,0,0"], ["--integral=-1,1,1,1,1,0,0"], ["--integral", "trianglebox[-1, 1, 1, 1, 1, 0, 0]"])
    ]
    assert list(results[0]) == [(-1, 1, 1, 1, 1, 0, 0)]
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize(
    "option, value",
    [("work-dir", "w"), ("straggler-timeout", "7"), ("paper-masters-only", None), ("dry-run", None), ("list-families", None)],
)
def test_options_are_spelled_with_hyphen_or_underscore(option, value):
    more = [] if value is None else [value]
    parse = ibp_reduce.parse_options
    assert parse([f"--{option}", *more]) == parse([f"--{option.replace('-', '_')}", *more]) != parse([])


def test_help_mentions_every_option_and_the_exit_codes(capsys):
    assert exit_code(["--help"]) == 0
    text, said = capsys.readouterr()
    assert said == ""
    options = {f"--{name.replace('_', '-')}" for name in vars(ibp_reduce.Options())} | {"--version", "--help"}
    assert {option for option in options if option not in text} == set()
    assert "130" in text


def test_version_and_families_are_shown(place, capsys):
    assert exit_code(["--version"]) == 0
    assert capsys.readouterr().out.strip() == ibp_reduce.__version__
    assert exit_code(["--list-families"]) == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} >= set(BUILT_IN_FAMILIES)
    assert snapshot(place) == {}


@pytest.mark.parametrize("store", [None, b"", b"no store"], ids=["no store", "empty file", "damaged store"])
def test_dry_run_writes_nothing(store, place, capsys):
    if store is not None:
        (place / "ibp_work").mkdir()
        (place / "ibp_work/store.shelf").write_bytes(store)
    before = snapshot(place)
    assert exit_code(["--dry-run", "--integral", SMALL]) == 0
    assert f"I[{SMALL}]" in capsys.readouterr().out
    assert snapshot(place) == before


def test_dry_run_leaves_a_good_store_as_it_is(place, capsys):
    reduced("--integral", SMALL)
    before = snapshot(place)
    assert exit_code(["--dry-run", "--integral", SMALL]) == 0
    assert snapshot(place) == before


def test_default_run_is_the_published_integral_in_the_published_masters(place):
    result = reduced()
    assert result["original_integral"] == (3, 2, 1, 3, 2, 2, -6)
    assert set(result["final_expr"]) == set(TRIANGLEBOX.paper_masters) and len(result["final_expr"]) == 16
    assert (result["family"], result["prime"], result["d"]) == ("trianglebox", 1009, 41)
    assert result["kinematics"] == {"m1": 1, "m2": 31, "m3": 47}


def test_corners_of_other_sectors_count_as_masters_unless_told_otherwise(place):
    target = tuple(map(int, SMALL.split(",")))
    with_corners = reduced("--integral", SMALL)["final_expr"]
    corners = set(with_corners) - set(TRIANGLEBOX.paper_masters)
    assert (1, 1, 1, 1, 1, 1, 0) in corners and all(set(corner) == {0, 1} for corner in corners)
    Path("t.txt").write_text("\n".join(",".join(map(str, integral)) for integral in [target, *corners]))
    published = reduced("--integrals", "t.txt", "--paper-masters-only")["reductions"]
    assert all(set(expression) <= set(TRIANGLEBOX.paper_masters) for expression in published.values())
    total = {}
    for integral, value in with_corners.items():
        for master, factor in published.get(integral, {integral: 1}).items():
            total[master] = (total.get(master, 0) + value * factor) % 1009
    assert {master: value for master, value in total.items() if value} == published[target]


def test_integrals_of_a_file_reduce_as_they_do_alone(place):
    Path("t.txt").write_text(
        "# targets\n\n2,1\nbubble[1,2]   # as another program writes it\n  I[3,1],\n2,1\n0,0\nbubble[ 2, 1 ]\r\n-1,2\n"
    )
    together = reduced("--family", "bubble", "--integrals", "t.txt")
    assert list(together["reductions"]) == [(2, 1), (1, 2), (3, 1), (0, 0), (-1, 2)]
    assert not {"original_integral", "final_expr"} & set(together)
    for integral, expression in together["reductions"].items():
        alone = reduced("--family", "bubble", f"--integral={','.join(map(str, integral))}")
        assert alone["reductions"] == {integral: expression}
    assert together["reductions"][0, 0] == {}


@pytest.mark.parametrize("name, integral", [("bubble", "3,2"), ("box", "2,1,1,2"), ("sunrise", "2,1,1,-1,0")])
def test_family_file_gives_what_the_built_in_family_gives(name, integral, place):
    Path("f.json").write_text(json.dumps(family_as_json(BUILT_IN_FAMILIES[name]) | {"name": "mine"}))
    keys = ("reductions", "masters", "unreduced", "kinematics", "d")
    built_in = reduced("--family", name, "--integral", integral, "--store", "a")
    mine = reduced("--family", "f.json", "--integral", f"mine[{integral}]", "--store", "b")
    assert [mine[key] for key in keys] == [built_in[key] for key in keys]
    assert mine["family"] == "mine"


def test_fractions_decimals_and_explicit_defaults_are_the_same_point(place):
    half = reduced(*BUBBLE, "--kinematics", "s=7/2", "--d", "9/2")
    assert (half["kinematics"], half["d"]) == ({"s": "7/2", "m": 3}, "9/2")
    assert reduced(*BUBBLE, "--kinematics", " s = 3.5 , m = 3 ", "--d", "4.5")["final_expr"] == half["final_expr"]
    assert reduced(*BUBBLE, "--kinematics", "s=7,m=3", "--d", "41")["final_expr"] == reduced(*BUBBLE)["final_expr"] != half["final_expr"]


def test_preferred_masters_that_are_the_usual_ones_change_nothing(place):
    usual = reduced(*BUBBLE)
    Path("m.txt").write_text("\n".join(",".join(map(str, master)) for master in usual["masters"]))
    assert reduced(*BUBBLE, "--masters", "m.txt")["final_expr"] == usual["final_expr"]


def test_what_does_not_reduce_is_listed_and_the_exit_code_is_1(place, capsys, monkeypatch):
    monkeypatch.setattr(ibp_reduce, "NEIGHBOURHOODS", ibp_reduce.NEIGHBOURHOODS[:1])
    assert exit_code(["--cold", "--integral", SMALL, "--output", "r.pkl"]) == 1
    printed, said = capsys.readouterr()
    result = ibp_reduce.load_builtins(Path("r.pkl").read_bytes())
    left = result["unreduced"]
    assert left and result["success"] is False
    assert set(left) <= set(result["final_expr"]) <= set(left) | set(result["masters"])
    assert not set(left) & set(result["masters"])
    assert said.count("\n") == 1 and str(len(left)) in said and "r.pkl" in said
    assert f"NOT REDUCED ({len(left)})" in printed


def test_nothing_on_stderr_and_a_summary_on_stdout_when_not_a_terminal(bare, place):
    run = program(bare, place, *BUBBLE)
    assert (run.returncode, run.stderr) == (0, "")
    assert "I[3,2]" in run.stdout and "written to" in run.stdout
    assert program(bare, place, *BUBBLE, "--quiet").stdout == ""


def test_two_files_alone_work_in_a_directory_with_an_awkward_name(bare):
    target = bare / "runs"
    target.mkdir()
    run = program(bare, target, "--local", "2", "--integral", "1,1,1,1,1,1,-1", "--paper-masters-only")
    assert (run.returncode, run.stderr) == (0, "")
    result = ibp_reduce.load_builtins((target / "results/reduction.pkl").read_bytes())
    assert result["success"] and result["statistics"]["rules"] > 0
    assert len(rules_in(known(target / "ibp_work/store.shelf"))) == result["statistics"]["rules"]


@pytest.mark.parametrize(
    "words", [["--help"], ["--list-families"], [*BUBBLE, "--family", "x"], ["--integral=101,1,1,1,1,1,0"]], ids=" ".join
)
def test_terminal_that_knows_only_ascii_gets_no_traceback(words, bare, place):
    run = program(bare, place, *words, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert "Traceback" not in run.stderr and run.returncode in (0, 2)


@pytest.mark.parametrize("words", [["--list-families"], BUBBLE], ids=" ".join)
def test_reader_of_stdout_that_goes_away_gets_no_traceback(words, bare, place):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        run = subprocess.run(
            [sys.executable, str(bare / "ibp_reduce.py"), *words],
            cwd=place,
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
            timeout=DEADLINE_S,
        )
    assert "Traceback" not in run.stderr


# result pickle ------------------------------------------------------------------------------------------------------

RECORD = {
    "format": int,
    "success": bool,
    "family": str,
    "prime": int,
    "d": int,
    "kinematics": dict,
    "reductions": dict,
    "masters": list,
    "unreduced": list,
    "steps": int,
    "time": float,
    "peak_memory_kb": int,
    "statistics": dict,
    "version": str,
}
SINGLE = {"original_integral": tuple, "final_expr": dict}


class NothingButBuiltins(pickle.Unpickler):
    def find_class(self, module, name):
        raise AssertionError(f"the pickle names {module}.{name}")


def types_within(value):
    """Exact types of a value and of everything in it."""
    found = {type(value)}
    for part in [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
        found |= types_within(part)
    return found


@pytest.mark.parametrize("single", [True, False], ids=["one integral", "two integrals"])
@pytest.mark.parametrize("local", ["1", "2"])
def test_pickle_has_the_documented_keys_and_types(single, local, place):
    Path("t.txt").write_text("2,1\n1,2")
    which = ["--integral", "2,1"] if single else ["--integrals", "t.txt"]
    assert exit_code(["--family", "bubble", *which, "--output", "r.pkl", "--quiet", "--local", local]) == 0
    result = NothingButBuiltins(io.BytesIO(Path("r.pkl").read_bytes())).load()
    assert {key: type(value) for key, value in result.items()} == RECORD | (SINGLE if single else {})
    assert types_within(result) <= {dict, list, tuple, int, float, str, bool}
    assert (result["format"], result["success"], result["unreduced"]) == (1, True, [])
    coefficients = [value for expression in result["reductions"].values() for value in expression.values()]
    assert coefficients and all(1 <= value < 1009 for value in coefficients)
    assert all(set(expression) <= set(result["masters"]) for expression in result["reductions"].values())
    assert len(set(result["masters"])) == len(result["masters"])
    if single:
        assert result["reductions"] == {result["original_integral"]: result["final_expr"]}


def test_pickle_is_read_where_the_project_cannot_be_imported(place):
    reduced(*BUBBLE)
    code = 'import pickle; r = pickle.load(open("r.pkl", "rb")); print(r["original_integral"], sorted(r["final_expr"]))'
    run = subprocess.run([sys.executable, "-I", "-S", "-c", code], cwd=place, capture_output=True, text=True, timeout=DEADLINE_S)
    assert run.stdout == "(3, 2) [(0, 1), (1, 0), (1, 1)]\n", run.stderr


@pytest.mark.parametrize("failure, code", [(OSError(28, "No space left on device"), 1), (KeyboardInterrupt(), 130)])
def test_failing_write_leaves_the_old_result_and_no_temporary_file(failure, code, place, capsys, monkeypatch):
    reduced(*BUBBLE)
    before = {path: data for path, data in snapshot(place).items() if path.suffix == ".pkl"}

    def fail(*_):
        raise failure

    monkeypatch.setattr(os, "replace", fail)
    capsys.readouterr()
    assert exit_code(["--family", "bubble", "--integral", "2,1", "--output", "r.pkl"]) == code
    assert capsys.readouterr().err.count("\n") == 1
    assert {path: data for path, data in snapshot(place).items() if "r.pkl" in path.name} == before


def test_result_in_a_new_directory_and_over_an_old_one(place):
    for _ in range(2):
        assert exit_code([*BUBBLE, "--quiet", "--output", "a/b/r.pkl"]) == 0
    assert [path.name for path in (place / "a/b").iterdir()] == ["r.pkl"]


# store --------------------------------------------------------------------------------------------------------------


def test_second_run_finds_nothing_new_and_says_the_same(bare, place):
    assert program(bare, place, *PUBLISHED, "--output", "first.pkl").returncode == 0
    again = reduced(*PUBLISHED)  # another process, the same store
    first = ibp_reduce.load_builtins(Path("first.pkl").read_bytes())
    assert first["statistics"]["rules"] > 0 == again["statistics"]["rules"]
    assert first["final_expr"] == again["final_expr"]
    cold = reduced(*PUBLISHED, "--cold", "--store", "another")
    assert cold["statistics"]["rules"] > 0 and cold["final_expr"] == first["final_expr"]


def test_shipped_rules_are_used_and_left_alone(place, monkeypatch):
    expected = reduced(*PUBLISHED, "--store", "shipped/rules.shelf")["final_expr"]
    (place / "shipped/rules.shelf").chmod(0o444)
    monkeypatch.setattr(ibp_reduce, "DATA", place / "shipped")
    before = snapshot(place / "shipped")
    result = reduced(*PUBLISHED)
    assert (result["statistics"]["rules"], result["final_expr"]) == (0, expected)
    assert snapshot(place / "shipped") == before


@pytest.mark.parametrize("other", [["--prime", "2147483647"], ["--kinematics", "s=8"], ["--d", "40"], ["--cold"]], ids=" ".join)
def test_stored_steps_serve_their_own_point_only(other, place):
    right = reduced("--family", "bubble", "--integral", "2,1", *other, "--store", "elsewhere")["final_expr"]
    family = BUILT_IN_FAMILIES["bubble"]
    marked = Knowledge(steps={3: {(2, 1): {(1, 1): 5}}})  # false, so that its use shows
    Store("s").merge(family, default_point(family), marked)
    assert reduced("--family", "bubble", "--integral", "2,1", "--store", "s")["final_expr"] == {(1, 1): 5}
    assert reduced("--family", "bubble", "--integral", "2,1", "--store", "s", *other)["final_expr"] == right


def test_steps_of_large_integrals_do_not_pass_for_steps_of_small_ones(place):
    reduced("--integral", "0,1,1,1,0,0,-20", "--store", "s")
    small = ["--integral", "-1,2,1,1,0,0,-4"]
    assert reduced(*small, "--store", "s")["final_expr"] == reduced(*small, "--store", "empty")["final_expr"]


def test_results_do_not_depend_on_what_ran_before(place):
    """Targets of very different size in one sector, in both orders, against empty stores."""
    targets = ["0,1,1,1,-9,-9,-9", "0,1,1,1,0,-18,0", "0,3,2,1,-2,-1,-1", "-3,1,2,1,0,0,-1", "0,1,1,4,0,0,0", "-2,1,1,2,0,-3,-1"]
    alone = [reduced(f"--integral={target}", "--store", f"s{i}")["final_expr"] for i, target in enumerate(targets)]
    for order in (list(range(len(targets))), list(range(len(targets)))[::-1]):
        found = {i: reduced(f"--integral={targets[i]}", "--store", f"shared{order[0]}")["final_expr"] for i in order}
        assert [found[i] for i in range(len(targets))] == alone


@functools.lru_cache
def rule_of(seed, rows=3, n=7):
    draw = random.Random(seed)
    vectors = [tuple(draw.randint(-3, 3) for _ in range(n)) for _ in range(2 * rows)]
    return Rule(tuple((draw.randrange(9), vector) for vector in vectors[:rows]), tuple(vectors[rows:-1]), seed % 3)


@pytest.mark.parametrize("more", [[], ["--paper-masters-only"]], ids=["corners", "published masters"])
def test_same_run_gives_the_same_numbers_whatever_the_store_holds(more, place):
    first, second = ["--integral", "1,1,1,1,1,1,-1", *more], ["--integral", "1,1,1,1,1,2,0", *more]
    alone = reduced(*second, "--store", "empty")["final_expr"]
    reduced(*first, "--store", "s")
    assert reduced(*second, "--store", "s")["final_expr"] == alone


def test_merge_keeps_what_others_wrote_and_repeats_nothing(place):
    point, rules = default_point(TRIANGLEBOX), [rule_of(seed) for seed in range(6)]
    first, second = Store("s"), Store("s")
    first.load(TRIANGLEBOX, point)

    def knows(*numbers, masters=None, steps=None):
        return Knowledge(sectors={63: SectorKnowledge(masters, tuple(rules[i] for i in numbers))}, steps=steps or {})

    second.merge(TRIANGLEBOX, point, knows(0, 1, steps={63: {(1,) * 6 + (-1,): {(1,) * 6 + (0,): 3}}}))
    first.merge(TRIANGLEBOX, point, knows(1, 2, masters=((1,) * 6 + (0,),), steps={63: {(2,) * 6 + (-1,): {}}}))
    second.merge(TRIANGLEBOX, point, knows(2, 0, 3))
    for _ in range(2):  # what is there already changes nothing
        second.merge(TRIANGLEBOX, point, Knowledge(sectors={7: SectorKnowledge((), (rules[4],))}))
    second.merge(TRIANGLEBOX, point, Knowledge())
    knowledge = known("s", point=point)
    assert list(knowledge.sectors[63].rules) == rules[:4]
    assert knowledge.sectors[63].masters == ((1,) * 6 + (0,),)
    assert knowledge.sectors[7] == SectorKnowledge((), (rules[4],))
    assert knowledge.steps == {63: {(1,) * 6 + (-1,): {(1,) * 6 + (0,): 3}, (2,) * 6 + (-1,): {}}}
    assert known("s", BUILT_IN_FAMILIES["doublebox"]) == Knowledge()
    assert known("s", point=default_point(TRIANGLEBOX, 2003)).steps == {}
    assert known("s").steps == {}


def test_store_that_receives_only_is_not_read(place):
    Store("s").merge(TRIANGLEBOX, default_point(TRIANGLEBOX), Knowledge(sectors={63: SectorKnowledge(None, (rule_of(1),))}))
    cold = Store("s", write_only=True)
    assert cold.load(TRIANGLEBOX) == Knowledge()
    cold.merge(TRIANGLEBOX, default_point(TRIANGLEBOX), Knowledge(sectors={63: SectorKnowledge(None, (rule_of(2),))}))
    assert set(known("s").sectors[63].rules) == {rule_of(1), rule_of(2)}


def test_store_with_an_awkward_name(place):
    name = 'a dir/100% "it\'s"?mode=ro#x;.shelf'
    assert reduced(*BUBBLE, "--store", name)["final_expr"] == reduced(*BUBBLE, "--store", name)["final_expr"]
    assert {path.name for path in (place / "a dir").iterdir()} >= {Path(name).name}


def vectors(n):
    return st.tuples(*[st.integers(-128, 127)] * n)


@st.composite
def rules(draw, n=7):
    rows = draw(st.lists(st.tuples(st.integers(0, TRIANGLEBOX.operators - 1), vectors(n)), min_size=1, max_size=5))
    pivots = tuple(draw(vectors(n)) for _ in rows[1:])
    return Rule(tuple(rows), pivots, draw(st.integers(0, len(ibp_reduce.NEIGHBOURHOODS) - 1)))


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        st.integers(1, 63),
        st.tuples(
            st.none() | st.lists(vectors(7), unique=True, max_size=3).map(tuple),
            st.lists(rules(), unique=True, max_size=4).map(tuple),
            st.frozensets(st.tuples(st.integers(0, 5), st.binary(min_size=7, max_size=7)), max_size=3),
        ),
        max_size=3,
    )
)
def test_rules_come_back_as_they_were_stored(sectors):
    written = {bits: SectorKnowledge(*parts) for bits, parts in sectors.items()}
    with tempfile.TemporaryDirectory() as directory:
        store = Store(Path(directory) / "s")
        store.merge(TRIANGLEBOX, default_point(TRIANGLEBOX), Knowledge(sectors=written))
        assert store.load(TRIANGLEBOX).sectors == written


plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
keys = st.integers() | st.text() | st.tuples(st.integers(), st.integers())
values = st.recursive(plain, lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(keys, inner), max_leaves=20)


@settings(max_examples=100, deadline=None)
@given(values, st.integers(3, 5))  # before 3, bytes are a call
def test_builtin_values_survive_the_restricted_unpickler(value, protocol):
    assert ibp_reduce.load_builtins(pickle.dumps(value, protocol)) == value


class Touches:
    """Unpickled without care, it makes a file."""

    def __reduce__(self):
        return os.mkdir, ("broken-out",)


@pytest.mark.parametrize(
    "value",
    [Touches(), Fraction(1, 2), Path("x"), rule_of(1), len, int, print, range(3), slice(1, 2), [{"deep": (Touches(),)}], ValueError("x")],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("protocol", range(2, 6))
def test_restricted_unpickler_refuses_everything_that_names_something(value, protocol, place):
    with pytest.raises(pickle.UnpicklingError, match="only builtin types"):
        ibp_reduce.load_builtins(pickle.dumps(value, protocol))
    assert snapshot(place) == {}


@pytest.mark.parametrize(
    "text",
    [b"cos\nsystem\n(S'touch broken-out'\ntR.", b"(S'touch broken-out'\nios\nsystem\n.", b"\x82\x01.", b"Pid\n."],
    ids=["global", "instance", "extension", "persistent id"],
)
def test_restricted_unpickler_refuses_old_opcodes(text, place):
    with pytest.raises((pickle.UnpicklingError, ValueError)):
        ibp_reduce.load_builtins(text)
    assert snapshot(place) == {}


# damaged stores -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def good_store(tmp_path_factory):
    """Bytes of a store with the bubble's rules, and what it gives."""
    directory = tmp_path_factory.mktemp("good")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.setattr(ibp_reduce, "DATA", directory / "nothing shipped")
        expected = reduced(*BUBBLE, "--store", "s")["final_expr"]
    return (directory / "s").read_bytes(), expected


def record(value):
    """An entry of a store with a right checksum."""
    data = zlib.compress(pickle.dumps(value, 4))
    return pickle.dumps((hashlib.sha256(data).digest()[:16], data), 4)


def sql(*statements):
    """Damage done with SQLite to a good store."""

    def change(path, good):
        path.write_bytes(good)
        database = sqlite3.connect(path)
        with contextlib.closing(database), database:
            for statement, *parameters in statements:
                assert database.execute(statement, parameters).rowcount

    return change


def entry(name):
    return b"format" if name == "format" else f"{BUILT_IN_FAMILIES['bubble'].identifier}/{name}".encode()


def replaced(name, value):
    return sql(("UPDATE Dict SET value = ? WHERE key = ?", value, entry(name)))


def altered(name, **changes):
    """A sector's entry with some of its parts changed, its checksum right."""

    def change(path, good):
        path.write_bytes(good)
        database = sqlite3.connect(path)
        with contextlib.closing(database), database:
            ((value,),) = database.execute("SELECT value FROM Dict WHERE key = ?", (entry(name),)).fetchall()
            parts = pickle.loads(zlib.decompress(pickle.loads(value)[1]))
            parts |= {part: function(parts[part]) for part, function in changes.items()}
            database.execute("UPDATE Dict SET value = ? WHERE key = ?", (record(parts), entry(name)))

    return change


def raw(change):
    return lambda path, good: path.write_bytes(change(good))


def database_with(*statements):
    def create(path, _):
        database = sqlite3.connect(path)
        with contextlib.closing(database), database:
            for statement in statements:
                database.execute(statement)

    return create


def flipped(data, offset, mask=0xFF):
    return data[:offset] + bytes([data[offset] ^ mask]) + data[offset + 1 :]


HALVE = "UPDATE Dict SET value = substr(value, 1, length(value) / 2) WHERE key = ?"
FLIP = (
    "UPDATE Dict SET value = CAST(substr(value, 1, length(value) - 9) || x'aa' || substr(value, length(value) - 7) AS BLOB) WHERE key = ?"
)
RENAME = "UPDATE Dict SET key = ? WHERE key = ?"
TABLE = "CREATE TABLE Dict (key BLOB UNIQUE NOT NULL, value BLOB NOT NULL)"
DAMAGES = {
    "garbage": raw(lambda good: random.Random(1).randbytes(5000)),
    "text": raw(lambda good: b"hello"),
    "zeros": raw(lambda good: bytes(8192)),
    "half a file": raw(lambda good: good[: len(good) // 2]),
    "header only": raw(lambda good: good[:100]),
    "last byte missing": raw(lambda good: good[:-1]),
    "schema format": raw(lambda good: flipped(good, 47)),
    "another program": database_with("CREATE TABLE notes (text)", "INSERT INTO notes VALUES ('mine')"),
    "another shelf": database_with(TABLE, "INSERT INTO Dict VALUES (x'61', x'62')"),
    "other columns": database_with("CREATE TABLE Dict (word)", "INSERT INTO Dict VALUES ('mine')"),
    "other columns, empty": database_with("CREATE TABLE Dict (word)"),
    "format missing": sql(("DELETE FROM Dict WHERE key = ?", b"format")),
    "format of the future": replaced("format", pickle.dumps({"program": "ibp_reduce", "format": 2})),
    "key no text": sql(("INSERT INTO Dict VALUES (?, ?)", b"\xff\xfe", b"x")),
    "key a number": sql(("INSERT INTO Dict VALUES (?, ?)", 5, b"x")),
    "key no sector": sql(("INSERT INTO Dict VALUES (?, ?)", entry("sector/x"), record(None))),
    "entries exchanged": sql(
        (RENAME, b"kept", entry("sector/1")), (RENAME, entry("sector/1"), entry("sector/3")), (RENAME, entry("sector/3"), b"kept")
    ),
    "identities without end": replaced("identities", record(([], []))),
    "masters no integers": altered("sector/3", masters=lambda masters: (("a", "b"),)),
    "masters of another shape": altered("sector/3", masters=lambda masters: ((1, 1, 1),)),
    "rules cut off": altered("sector/3", rows=lambda rows: rows[:-1]),
    "rules missing": altered("sector/3", rows=lambda rows: b""),
    "unknown operator": altered("sector/3", rows=lambda rows: b"\x63" + rows[1:]),
    **{
        f"{name} {what}": function(name)
        for name in ("format", "identities", "sector/3")
        for what, function in {
            "flipped": lambda name: sql((FLIP, entry(name))),
            "truncated": lambda name: sql((HALVE, entry(name))),
            "empty": lambda name: replaced(name, b""),
            "text": lambda name: replaced(name, "text"),
            "number": lambda name: replaced(name, 5),
            "None": lambda name: replaced(name, pickle.dumps(None)),
            "names a class": lambda name: replaced(name, pickle.dumps(Touches())),
            "checked, names a class": lambda name: replaced(name, record(Touches())),
            "checked, None": lambda name: replaced(name, record(None)),
            "of a newer protocol": lambda name: replaced(name, flipped(pickle.dumps(None, 4), 1)),
        }.items()
    },
}


def run_on_store(capsys, path="s"):
    """Lines said, and the result, of a run on a store."""
    capsys.readouterr()
    result = reduced(*BUBBLE, "--store", path)
    return capsys.readouterr().err.splitlines(), result


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_store_is_set_aside_and_made_anew(case, place, capsys, good_store):
    good, expected = good_store
    DAMAGES[case](place / "s", good)
    damaged = (place / "s").read_bytes()
    lines, result = run_on_store(capsys)
    assert result["final_expr"] == expected
    assert len(lines) == 1 and "s.damaged-1" in lines[0], lines
    assert (place / "s.damaged-1").read_bytes() == damaged
    lines, result = run_on_store(capsys)
    assert lines == [] and result["final_expr"] == expected
    assert known("s", BUILT_IN_FAMILIES["bubble"]).nonzero
    assert not (place / "broken-out").exists()


def test_each_damaged_store_is_kept(place, capsys):
    for number in (1, 2, 3):
        (place / "s").write_bytes(b"damage %d" % number)
        assert f"s.damaged-{number}" in run_on_store(capsys)[0][0]
    assert [(place / f"s.damaged-{number}").read_bytes() for number in (1, 2, 3)] == [b"damage 1", b"damage 2", b"damage 3"]


def test_empty_file_becomes_a_store(place, capsys, good_store):
    (place / "s").touch()
    assert len(run_on_store(capsys)[0]) <= 1
    assert known("s", BUILT_IN_FAMILIES["bubble"]).nonzero


def test_flipped_bytes_give_the_right_answer_and_at_most_one_line(place, capsys, good_store):
    """Anywhere in the file; each byte of the header is tried, the others by lot."""
    good, expected = good_store
    draw = random.Random(5)
    trouble = []
    anywhere = [draw.randrange(100, len(good)) for _ in range(60)]
    at_the_keys = draw.sample(range(len(good) - 700, len(good)), 80)
    for offset in [*range(16, 100), *anywhere, *at_the_keys]:
        for old in place.glob("s*"):
            old.unlink()
        (place / "s").write_bytes(flipped(good, offset, draw.choice([0xFF, 1, 2, 16, 64])))
        try:
            lines, result = run_on_store(capsys)
            assert result["final_expr"] == expected and len(lines) <= 1, lines
        except (Exception, AssertionError) as error:
            trouble.append(f"byte {offset}: {error!r:.200}")
    assert trouble == []


@pytest.mark.parametrize(
    "case",
    [
        "empty",
        "garbage",
        "half a file",
        "another program",
        "other columns",
        "format names a class",
        "sector/3 flipped",
        "sector/3 truncated",
        "key no text",
        "format empty",
        "directory",
    ],
)
def test_damaged_shipped_store_is_ignored_with_one_line(case, place, capsys, good_store, monkeypatch):
    good, expected = good_store
    path = place / "shipped/rules.shelf"
    path.parent.mkdir()
    if case == "directory":
        path.mkdir()
    else:
        (DAMAGES | {"empty": raw(lambda good: b"")})[case](path, good)
    monkeypatch.setattr(ibp_reduce, "DATA", path.parent)
    before = snapshot(path.parent)
    lines, result = run_on_store(capsys)
    assert result["final_expr"] == expected
    assert len(lines) == 1 and "rules.shelf" in lines[0], lines
    assert snapshot(path.parent) == before and not (place / "broken-out").exists()


def test_task_beyond_its_time_limit_is_run_again_with_more_processes(place):
    words = ["--output", "r.pkl", "--paper-masters-only", "--cold", "--quiet"]
    assert exit_code(words) == 0
    expected = ibp_reduce.load_builtins(Path("r.pkl").read_bytes())
    assert exit_code([*words, "--local", "2", "--straggler-timeout", "0.02", "--straggler-cpus", "2"]) == 0
    result = ibp_reduce.load_builtins(Path("r.pkl").read_bytes())
    assert result["reductions"] == expected["reductions"]
    assert (expected["statistics"]["stragglers"], result["statistics"]["stragglers"] > 0) == (0, True)


def test_locked_store_is_given_up_with_one_line(place, capsys, monkeypatch):
    import filelock

    monkeypatch.setattr(ibp_reduce, "LOCK_TIMEOUT_S", 0.2)
    with filelock.FileLock("s.lock"):
        assert exit_code([*BUBBLE, "--store", "s"]) in (1, 2)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--store" in said


def test_locked_store_does_not_cost_the_result(place, capsys, monkeypatch):
    import filelock

    monkeypatch.setattr(ibp_reduce, "LOCK_TIMEOUT_S", 0.2)
    with filelock.FileLock("s.lock"):
        assert exit_code([*BUBBLE, "--store", "s", "--quiet", "--output", "kept.pkl"]) == 1
    assert "kept.pkl" in capsys.readouterr().err
    kept = ibp_reduce.load_builtins(Path("kept.pkl").read_bytes())
    assert kept["final_expr"] == reduced(*BUBBLE, "--store", "other")["final_expr"]


# processes that share or leave a store ------------------------------------------------------------------------------

# the program, which says 'done' after each search for masters, or each time that it has learned something
ANNOUNCING = """
import sys, ibp_reduce
_, when, ibp_reduce.FLUSH_INTERVAL_S, *words = sys.argv

def announced(function):
    def call(*arguments):
        result = function(*arguments)
        print('done', flush=True)
        return result
    call.__module__, call.__qualname__ = 'ibp_reduce', function.__qualname__  # pickles by name, as the original does
    return call

ibp_reduce.FLUSH_INTERVAL_S = float(ibp_reduce.FLUSH_INTERVAL_S)
if when == 'searched':
    ibp_reduce.find_masters = announced(ibp_reduce.find_masters)
else:
    ibp_reduce.Progress.advance = announced(ibp_reduce.Progress.advance)
sys.argv = ['ibp_reduce.py', *words]
sys.exit(ibp_reduce.main())
"""

# stores a rule of sector 1, 2, 3, … of trianglebox, each in a transaction, and says so
WRITING = """
import sys, ibp_reduce
from fractions import Fraction
first, last = int(sys.argv[1]), int(sys.argv[2])
family = ibp_reduce.BUILT_IN_FAMILIES['trianglebox']
point = ibp_reduce.Point(Fraction(41), tuple((name, Fraction(value)) for name, value in family.point), 1009)
store = ibp_reduce.Store('s', say=print)
for bits in range(first, last + 1):
    rules = tuple(ibp_reduce.Rule(((number, (bits, 0, 0, 0, 0, 0, 0)),), (), 0) for number in range(9))
    store.merge(family, point, ibp_reduce.Knowledge(sectors={bits: ibp_reduce.SectorKnowledge(None, rules)}))
    print(bits, flush=True)
"""


@contextlib.contextmanager
def ended(process):
    """Whatever happens, the process outlives neither the test nor the deadline, at which reading from it ends."""
    watchdog = threading.Timer(DEADLINE_S, process.kill)
    watchdog.start()
    try:
        yield process
    finally:
        watchdog.cancel()
        process.kill()
        process.communicate()


INTERRUPTED = {
    "sectors": ("trianglebox", "learned", ["--paper-masters-only", "--integral", "3,2,1,3,2,2,-6"]),
    "sectors in two processes": ("trianglebox", "learned", ["--paper-masters-only", "--local", "2", "--integral", "3,2,1,3,2,2,-6"]),
    "masters": ("doublebox", "searched", ["--integral", "1,1,1,1,1,1,1,-1,-1"]),
    "masters in two processes": ("doublebox", "learned", ["--local", "2", "--integral", "1,1,1,1,1,1,1,-1,-1"]),
}


@pytest.mark.parametrize("phase", INTERRUPTED)
def test_interrupted_run_keeps_its_rules_and_says_how_to_go_on(phase, bare, place):
    name, when, words = INTERRUPTED[phase]
    with ended(start_python(bare, place, ANNOUNCING, when, 3600, "--cold", "--family", name, *words)) as run:
        for _ in range(4):
            assert run.stdout.readline() == "done\n"
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=DEADLINE_S)
        assert (run.returncode, said.count("\n")) == (130, 1), said
    assert "interrupted" in said and words[-1] in said
    knowledge = known(place / "ibp_work/store.shelf", BUILT_IN_FAMILIES[name])
    assert knowledge.operators and knowledge.nonzero
    assert any(sector.rules for sector in knowledge.sectors.values())


def test_command_of_an_interrupted_run_can_be_pasted_and_uses_the_rules_found(bare, place):
    code = (
        "import runpy, sys, ibp_reduce\n"
        "def stop(*_): raise KeyboardInterrupt\n"
        "ibp_reduce.write_pickle = stop\n"
        "sys.argv = [sys.argv[1], '--cold', '--paper-masters-only', '--integral', '" + SMALL + "']\n"
        "sys.exit(ibp_reduce.main())"
    )
    run = python(bare, place, code, str(bare / "ibp_reduce.py"))
    assert run.returncode == 130, run.stderr
    command = run.stderr.strip().partition("go on with: ")[2]
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    again = subprocess.run(command, shell=True, cwd=place, env=environment, capture_output=True, text=True, timeout=DEADLINE_S)
    assert again.returncode == 0, f"{command}: {again.stderr}"
    assert ibp_reduce.load_builtins((place / "results/reduction.pkl").read_bytes())["statistics"]["rules"] == 0, command


@pytest.mark.parametrize("after", [1, 3, 6])
def test_killed_run_leaves_a_sound_store(after, bare, place):
    with ended(start_python(bare, place, ANNOUNCING, "learned", 0, "--cold", *PUBLISHED)) as run:
        for _ in range(after):
            assert run.stdout.readline() == "done\n"
        run.kill()
        run.wait(DEADLINE_S)
    path = place / "ibp_work/store.shelf"
    before = rules_in(known(path))
    assert before
    assert reduced(*PUBLISHED)["final_expr"] == reduced(*PUBLISHED, "--store", "empty")["final_expr"]
    assert rules_in(known(path)) > before


def test_writers_killed_again_and_again_lose_nothing_that_was_committed(bare, place):
    draw = random.Random(11)
    committed = 0
    for _ in range(5):
        with ended(start_python(bare, place, WRITING, committed, 10_000)) as run:
            for _ in range(draw.randrange(1, 12)):
                committed = int(run.stdout.readline()) + 1
            run.kill()  # in the midst of the next transactions
            run.wait(DEADLINE_S)
            left = run.stdout.read().split()
            committed = int(left[-1]) + 1 if left else committed
        sectors = known("s").sectors
        assert set(sectors) >= set(range(committed)) and len(sectors) <= committed + 1
        assert all(len(sector.rules) == 9 for sector in sectors.values())


def test_death_within_a_transaction_changes_nothing(bare, place):
    assert python(bare, place, WRITING, "0", "3").returncode == 0
    before = known("s").sectors
    dying = (
        "import os, signal, ibp_reduce\n"
        "original = ibp_reduce.RuleShelf.__setitem__\n"
        "def write(self, key, value):\n"
        "    original(self, key, value)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "ibp_reduce.RuleShelf.__setitem__ = write\n"
    )
    assert python(bare, place, dying + WRITING, "2", "9").returncode == -signal.SIGKILL
    assert known("s").sectors == before
    assert python(bare, place, WRITING, "4", "4").returncode == 0
    assert set(known("s").sectors) == {0, 1, 2, 3, 4}


def test_four_writers_at_once_all_get_their_rules_in(bare, place):
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(ended(start_python(bare, place, WRITING, 20 * i, 20 * i + 29))) for i in range(4)]
        ends = [(*writer.communicate(timeout=DEADLINE_S), writer.returncode) for writer in writers]
    assert [(said, code) for _, said, code in ends] == [("", 0)] * 4
    sectors = known("s").sectors
    assert set(sectors) == set(range(90))
    assert all(len(sector.rules) == len(set(sector.rules)) == 9 for sector in sectors.values())


def test_four_programs_at_once_share_one_store(bare, place):
    runs = [
        ["--family", "bubble", "--integral", "2,3"],
        ["--family", "box", "--integral", "2,1,1,1"],
        ["--paper-masters-only", "--integral", "1,1,1,1,1,1,-1"],
        ["--paper-masters-only", "--integral", "1,1,1,1,1,2,0"],
    ]
    with contextlib.ExitStack() as stack:
        command = [sys.executable, str(bare / "ibp_reduce.py"), "--cold", "--quiet", "--store", "s"]
        started = [
            stack.enter_context(ended(subprocess.Popen([*command, *words, "--output", f"{i}.pkl"], cwd=place, stderr=subprocess.PIPE)))
            for i, words in enumerate(runs)
        ]
        ends = [(run.communicate(timeout=DEADLINE_S)[1], run.returncode) for run in started]
    assert ends == [(b"", 0)] * 4
    shared = known("s")
    for i, words in enumerate(runs):
        together = ibp_reduce.load_builtins(Path(f"{i}.pkl").read_bytes())
        alone = reduced(*words, "--cold", "--store", f"s{i}")
        assert together["reductions"] == alone["reductions"] and together["statistics"]["rules"] == alone["statistics"]["rules"]
        again = reduced(*words, "--store", "s")
        assert again["reductions"] == alone["reductions"] and again["statistics"]["rules"] == 0
        assert rules_in(shared) >= rules_in(known(f"s{i}"))


# imports ------------------------------------------------------------------------------------------------------------

WATCHED_RUN = """
import atexit, sys
heavy = {'torch', 'sympy', 'matplotlib', 'pandas', 'scipy', 'tqdm'}
atexit.register(lambda: print('LOADED', sorted(heavy & set(sys.modules))))
import ibp_reduce
sys.exit(ibp_reduce.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["--list-families"], ["--integral", SMALL], ["--integral=1,1"]], ids=" ".join)
def test_help_and_stored_rules_need_no_heavy_imports(words, bare, place):
    reduced("--integral", SMALL)
    run = python(bare, place, WATCHED_RUN, *words)
    assert run.returncode in (0, 2)
    assert run.stdout.splitlines()[-1] == "LOADED []", run.stdout + run.stderr


OBSERVED_IMPORT = """
import os, signal, sys, threading, warnings
import numpy
warnings.simplefilter('error')
sys.dont_write_bytecode = True

def state():
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    return (dict(os.environ), os.getcwd(), handlers, threading.enumerate(), sys.getrecursionlimit(), sys.stdout,
            sys.excepthook, numpy.geterr(), list(sys.path))

before = state()
import ibp_reduce, condor_worker
assert state() == before
"""


def test_import_has_no_side_effects(bare, place):
    run = python(bare, place, OBSERVED_IMPORT)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert snapshot(place) == {}


# =====================================================================================================================
# Symmetries and cuts
# =====================================================================================================================

# family: unique sectors, masters with symmetries. In the literature: doublebox 8 (arXiv:1304.1806), pentabox 61 (arXiv:1511.05409),
# equal-mass sunrise 2 and banana 3 in the top sector, and the tadpole. See also test_number_of_masters_by_feynman_parameters.
SYMMETRIC = {
    "trianglebox": (19, 15), "doublebox": (18, 8), "doublebox-1m": (39, 18), "nonplanar-doublebox": (23, 12), "sunrise": (2, 3),
    "pentabox": (102, 61), "ladder3": (16, 5), "banana3": (2, 4), "box": (5, 3), "bubble": (2, 2),
}  # fmt: skip
NEEDS_SHIPPED_RULES = {"doublebox", "doublebox-1m", "nonplanar-doublebox", "pentabox", "ladder3", "banana3"}


def families_with_rules(names=FAMILIES):
    return [pytest.param(name, marks=needs_stored_rules) if name in NEEDS_SHIPPED_RULES else name for name in names]


@functools.cache
def symmetries_of(name):
    family = BUILT_IN_FAMILIES[name]
    geometry = ibp_reduce.Geometry(family)
    nonzero = any_kinematics(family).nonzero_sectors()
    found = ibp_reduce.find_symmetries(geometry, nonzero)
    return geometry, nonzero, found


# oracle: U and F as Gaussian integrals ------------------------------------------------------------------------------


class FeynmanParameters:
    """U and F of a family's sectors modulo p at numbers for the parameters: the quadratic form sum x_i D_i, with the loop
    momenta eliminated one by one.
    """

    def __init__(self, family):
        kinematics = any_kinematics(family)
        momenta = kinematics.momenta
        self.loops = len(kinematics.loops)
        self.gram = [[residue(kinematics.products[x, y]) for y in kinematics.legs] for x in kinematics.legs]
        self.forms = [[[residue(form.get((x, y), 0)) for y in momenta] for x in momenta] for form in kinematics.forms]
        self.masses = [residue(mass) for mass in kinematics.masses]

    def values(self, numbers):
        """(U, F) with these numbers {line: x}."""
        size = len(self.forms[0])
        form = [[sum(x * self.forms[i][a][b] for i, x in numbers.items()) % P31 for b in range(size)] for a in range(size)]
        u = 1
        for k in range(self.loops):
            u = u * form[k][k] % P31
            inverse = pow(form[k][k], -1, P31)
            form = [[(v - form[a][k] * inverse * form[k][b]) % P31 for b, v in enumerate(row)] for a, row in enumerate(form)]
        external = [row[self.loops :] for row in form[self.loops :]]
        rest = sum(v * g for row, products in zip(external, self.gram) for v, g in zip(row, products))
        return u, u * (rest - sum(x * self.masses[i] for i, x in numbers.items())) % P31

    def ways(self, bits):
        """{(U, F): the orders of the lines that give it} for all ways to give the lines some fixed numbers."""
        lines = [i for i in range(len(self.forms)) if bits >> i & 1]
        numbers = random.Random(len(lines)).sample(range(1, P31), len(lines))
        found = {}
        for order in itertools.permutations(lines):
            found.setdefault(self.values(dict(zip(order, numbers))), []).append(order)
        return found


@pytest.mark.parametrize("name", FAMILIES)
def test_equivalent_sectors_are_those_with_the_same_u_and_f(name):
    """All permutations of the Feynman parameters, at random numbers; up to six lines."""
    _, nonzero, found = symmetries_of(name)
    parameters = FeynmanParameters(BUILT_IN_FAMILIES[name])
    representative, classes = {}, {}
    for bits in sorted((bits for bits in nonzero if bits.bit_count() <= (5 if name == "pentabox" else 6)), key=sector_order):
        representative[bits] = classes.setdefault((bits.bit_count(), min(parameters.ways(bits))), bits)
    assert {bits: found.maps[bits].target if bits in found.maps else bits for bits in representative} == representative
    assert not found.unshifted
    assert len(nonzero) - len(found.maps) == SYMMETRIC[name][0]


# oracle: momenta as vectors -----------------------------------------------------------------------------------------


class Momenta:
    """Vectors of rational numbers with the products that the kinematics of a family asks for.

    The external momenta are the first unit vectors, with their products as the metric; loop momenta have random components, also in further
    directions.
    """

    def __init__(self, family):
        draw = random.Random(family.name)
        self.invariants = {name: Fraction(draw.randrange(10**4, 10**6)) for name, _ in family.point}
        self.kinematics = Kinematics(family, **self.invariants)
        legs, loops = self.kinematics.legs, self.kinematics.loops
        size = len(legs) + len(loops)
        self.metric = np.full((size, size), Fraction(0))
        for (a, x), (b, y) in itertools.product(enumerate(legs), repeat=2):
            self.metric[a, b] = self.kinematics.products[x, y]
        for a in range(len(legs), size):
            self.metric[a, a] = Fraction(1)
        self.vectors = {leg: np.array([Fraction(i == place) for i in range(size)]) for place, leg in enumerate(legs)}
        self.vectors |= {loop: np.array([Fraction(draw.randrange(-99, 99)) for _ in range(size)]) for loop in loops}

    def product(self, x, y):
        return x @ self.metric @ y

    def propagators(self, vectors):
        forms = zip(self.kinematics.forms, self.kinematics.masses)
        return [sum(c * self.product(vectors[x], vectors[y]) for (x, y), c in form.items()) - mass for form, mass in forms]

    def shifted(self, texts, vectors):
        """Vectors after a shift such as 'k1 -> -k1+(1/2)*p1'."""
        names = vectors | self.invariants | {"Fraction": Fraction}
        result = dict(vectors)
        for name, text in (text.split(" -> ") for text in texts):
            result[name] = eval(re.sub(r"(?<![\w.])\d+", r"Fraction(\g<0>)", text), {"__builtins__": {}}, names)
        return result

    def value(self, polynomial):
        symbols = [Fraction(0), *self.invariants.values()]  # d does not occur
        return sum(factor * math.prod(map(pow, symbols, exponents)) for exponents, factor in polynomial)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "pentabox"] + [pytest.param("pentabox", marks=pytest.mark.slow)])
def test_every_map_holds_for_vectors(name):
    """The shift keeps the invariants and the measure, turns every propagator into what the map says, and lines into lines."""
    geometry, nonzero, found = symmetries_of(name)
    momenta = Momenta(geometry.family)
    legs, loops = momenta.kinematics.legs, momenta.kinematics.loops
    own = [shift for bits in nonzero if bits not in found.maps for shift in ibp_reduce.own_maps(geometry, bits)]
    assert found.maps and own
    before = [*momenta.propagators(momenta.vectors), Fraction(1)]
    for shift in [*found.maps.values(), *own]:
        after = momenta.shifted(shift.shift, momenta.vectors)
        for x, y in itertools.product(legs, repeat=2):
            assert momenta.product(after[x], after[y]) == momenta.kinematics.products[x, y]
        rows = [{j: momenta.value(above) / momenta.value(below) for j, above, below in row} for row in shift.rows]
        assert momenta.propagators(after) == [sum(c * before[j - 1] for j, c in row.items()) for row in rows]
        assert all(rows[i - 1] == {j: 1} for i, j in shift.lines)
        assert (sum(1 << i - 1 for i, _ in shift.lines), sum(1 << j - 1 for _, j in shift.lines)) == (shift.source, shift.target)
        units = {q: np.eye(len(loops), dtype=int)[loops.index(q)] if q in loops else np.zeros(len(loops), int) for q in (*loops, *legs)}
        moved = momenta.shifted(shift.shift, units)
        assert abs(np.linalg.det(np.array([moved[k] for k in loops], float))) == pytest.approx(1)
        assert not any(moved[leg].any() for leg in legs)


def test_a_shift_that_is_none_is_not_proved():
    """Wrong in the measure, an invariant, or a line."""
    geometry, _, found = symmetries_of("doublebox")
    shift = next(shift for shift in found.maps.values() if shift.shift[0] == "k1 -> k1+p1+p2")
    pairs = [(i - 1, j - 1) for i, j in shift.lines]
    good = next(iter(ibp_reduce.find_shifts(geometry, geometry, pairs)))
    assert good.lines == shift.lines
    names = geometry.names
    matrix = np.array([[exact_number(i == j) for j in range(len(names))] for i in range(len(names))], object)
    same = [(i, i) for i in range(7)]
    assert ibp_reduce._prove(geometry, geometry, same, matrix).shift == ()
    for place, value in (((0, 0), 2), ((0, 2), 1), ((2, 2), 2), ((2, 3), 1), ((2, 0), 1)):
        wrong = matrix.copy()
        wrong[place] = exact_number(value)
        assert ibp_reduce._prove(geometry, geometry, same, wrong) is None


def exact_number(value):
    import sympy

    return sympy.QQ(int(value))


def test_symmetries_between_two_families():
    """The same lines in another order and with other loop momenta: maps lead from the one family to the other."""
    box = BUILT_IN_FAMILIES["box"]
    moved = dataclasses.replace(box, propagators=(("k1-p1-p2-p3", "0"), ("k1-p3", "0"), ("k1-p1-p2-2*p3", "0"), ("k1-p1-p3", "0")))
    source, target = ibp_reduce.Geometry(box), ibp_reduce.Geometry(moved)
    (form, orders), (other, others) = source.canonical(15), target.canonical(15)
    assert form == other
    shifts = [shift for order in others for shift in ibp_reduce.find_shifts(source, target, list(zip(orders[0], order)))]
    assert len(shifts) == len(orders) and {len(row) for shift in shifts for row in shift.rows} == {1}


# masters ------------------------------------------------------------------------------------------------------------

# an integral below which everything is
TOP = {
    "trianglebox": (1, 1, 1, 1, 1, 1, -2), "doublebox": (1, 1, 1, 1, 1, 1, 1, -1, -1), "doublebox-1m": (1, 1, 1, 1, 1, 1, 1, 0, -2),
    "nonplanar-doublebox": (1, 1, 1, 1, 1, 1, 1, 0, -2), "sunrise": (2, 1, 1, -1, -2), "pentabox": (1, 1, 1, 1, 1, 1, 1, 1, 0, -1, 0),
    "ladder3": (1, 1, 1, 1, 1, 1, 1, 1, -2), "banana3": (2, 1, 1, 1, -1, -1, 0, 0, 0), "box": (2, 1, 3, 1), "bubble": (2, 3),
}  # fmt: skip


@pytest.mark.parametrize("name", families_with_rules())
def test_with_symmetries_is_without_and_masters_mapped(reduce_at, name):
    targets = [TOP[name], *SAMPLES[name]]
    without = reduce_at(name, targets, paper_masters_only=True)
    outcome = reduce_at(name, targets, symmetries=True)
    mapped = reduce_at(name, without.masters, symmetries=True).reductions
    assert not outcome.unreduced and set(outcome.masters) <= set(without.masters)
    assert len(outcome.masters) == SYMMETRIC[name][1]
    for target in targets:
        assert combine(*((value, mapped[master]) for master, value in without.reductions[target].items())) == outcome.reductions[target]
    assert all(set(expression) <= set(outcome.masters) for expression in outcome.reductions.values())
    assert {master: mapped[master] for master in outcome.masters} == {master: {master: 1} for master in outcome.masters}


@pytest.mark.parametrize(
    "name", families_with_rules(["box", "bubble", "sunrise", "doublebox", "nonplanar-doublebox", "ladder3", "banana3"])
)
def test_number_of_masters_by_feynman_parameters(reduce_at, name):
    """Integrals without numerators depend on U and F alone, so permutations that keep these relate dotted integrals. Reduced without
    symmetries, and eliminated, these equations leave as many masters as the program does.
    """
    family = BUILT_IN_FAMILIES[name]
    masters = reduce_at(name, [TOP[name]]).masters
    parameters = FeynmanParameters(family)
    sectors = {bits: parameters.ways(bits) for bits in {sector_of(master) for master in masters} if bits.bit_count() < 7}
    dots = 2 if name in ("sunrise", "banana3") else 1
    equal = set()
    for (a, ways), (_, others) in itertools.combinations_with_replacement(sectors.items(), 2):
        for values in ways.keys() & others.keys():
            for order, up in itertools.product(others[values], compositions(dots, a.bit_count())):
                powers = [{line: 1 + x for line, x in zip(lines, up)} for lines in (ways[values][0], order)]
                equal.add(tuple(tuple(power.get(i, 0) for i in range(family.n)) for power in powers))
    found = reduce_at(name, sorted({integral for pair in equal for integral in pair})).reductions
    rows = [combine((1, found[a]), (-1, found[b])) for a, b in equal]
    rank = 0
    while rows := [row for row in rows if row]:
        pivot = rows.pop()
        lead = max(pivot, key=oracle_weight)
        inverse = pow(pivot[lead], -1, P31)
        rows = [combine((1, row), (-row.get(lead, 0) * inverse, pivot)) for row in rows]
        rank += 1
    assert len(masters) == MASTERS[name] and len(masters) - rank == SYMMETRIC[name][1]


@pytest.mark.parametrize("light", [0, 99])
@pytest.mark.parametrize("name", families_with_rules(["sunrise", "trianglebox", "doublebox", "doublebox-1m", "nonplanar-doublebox"]))
def test_mapping_integrals_or_masters_is_the_same(reduce_at, monkeypatch, name, light):
    """Also where propagators become long sums: numerators of the integrals are mapped, or those of the masters."""
    expected = reduce_at(name, [TOP[name], *SAMPLES[name]], symmetries=True)
    monkeypatch.setattr(ibp_reduce, "LIGHT_MAP", light)
    outcome = reduce_at(name, [TOP[name], *SAMPLES[name]], symmetries=True)
    assert outcome.reductions == expected.reductions and outcome.masters == expected.masters
    assert (outcome.statistics["mapped"] > 0) == (light == 99)


def test_mapped_integrals_in_portions(reduce_at, monkeypatch):
    expected = reduce_at("sunrise", [TOP["sunrise"]], shelves=[], symmetries=True).reductions
    monkeypatch.setattr(ibp_reduce, "MAPPED_BLOCK", 2)
    with LocalExecutor(2) as executor:
        assert reduce_at("sunrise", [TOP["sunrise"]], shelves=[], executor=executor, symmetries=True).reductions == expected


def test_symmetries_leave_no_trace_in_a_store(reduce_at, tmp_path):
    """What a run with symmetries learns serves one without, and the other way round."""
    store = [Store(tmp_path / "store.shelf")]
    targets = [TOP["sunrise"], *SAMPLES["sunrise"]]
    plain, symmetric = (reduce_at("sunrise", targets, shelves=[], symmetries=with_them) for with_them in (False, True))
    for with_them in (True, False, True):
        outcome = reduce_at("sunrise", targets, shelves=store, symmetries=with_them)
        expected = symmetric if with_them else plain
        assert outcome.reductions == expected.reductions and outcome.masters == expected.masters


def test_preferred_masters_in_a_mapped_sector(reduce_at):
    """A tadpole of other lines than the representative's, in the place of it."""
    (target,) = targets = [TOP["sunrise"]]
    outcome = reduce_at("sunrise", targets, symmetries=True, preferred_masters=((1, 0, 1, 0, 0),))
    assert (1, 0, 1, 0, 0) in outcome.masters and (1, 1, 0, 0, 0) not in outcome.masters
    back = reduce_at("sunrise", list(outcome.masters), symmetries=True).reductions
    expected = reduce_at("sunrise", targets, symmetries=True).reductions[target]
    assert combine(*((value, back[master]) for master, value in outcome.reductions[target].items())) == expected


def test_symmetries_of_unequal_masses():
    """Symmetries are those of the invariants, not of the numbers they have."""
    family = dataclasses.replace(
        BUILT_IN_FAMILIES["bubble"], propagators=(("k1", "m"), ("k1+p", "q")), point=(("s", "7"), ("m", "3"), ("q", "3"))
    )
    found = ibp_reduce.find_symmetries(ibp_reduce.Geometry(family), (1, 2, 3))
    assert not found.maps and not ibp_reduce.own_maps(ibp_reduce.Geometry(family), 3)


HEAVY_QUARKS = Family(
    "heavy-quarks", ("k1", "k2"), ("v",), (("k1", "0"), ("k2", "0"), ("k1-k2", "0"), ("2*k1*v", "w"), ("2*k2*v", "w")), 0, (("v*v", "1"),),
    (("w", "3"),),
)  # fmt: skip


def test_symmetries_of_linear_propagators(reduce_at):
    """Two loops on a heavy line: k1 <-> k2 exchanges linear propagators, k -> -k must not without reversing v as well."""
    geometry = ibp_reduce.Geometry(HEAVY_QUARKS)
    found = ibp_reduce.find_symmetries(geometry, any_kinematics(HEAVY_QUARKS).nonzero_sectors())
    assert {bits: shift.target for bits, shift in found.maps.items()} == {21: 14, 23: 15, 30: 29} and not found.unshifted
    targets = [(2, 1, 1, 1, 2), (1, 2, 1, 1, 1), (0, 2, 1, 1, 1), (1, 0, 1, -1, 2)]
    without, outcome = (reduce_at(HEAVY_QUARKS, targets, symmetries=symmetries) for symmetries in (False, True))
    mapped = reduce_at(HEAVY_QUARKS, without.masters, symmetries=True).reductions
    for target in targets:
        assert combine(*((value, mapped[master]) for master, value in without.reductions[target].items())) == outcome.reductions[target]
    assert (len(without.masters), len(outcome.masters)) == (3, 2)


def test_symmetries_where_momenta_are_lightlike(reduce_at):
    """No reflection is needed, and none can be made, where the external momentum has no length."""
    family = dataclasses.replace(BUILT_IN_FAMILIES["sunrise"], kinematics=(("p*p", "0"),), point=(("m", "3"),))
    found = ibp_reduce.find_symmetries(ibp_reduce.Geometry(family), (3, 5, 6, 7))
    assert {bits: shift.target for bits, shift in found.maps.items()} == {5: 3, 6: 3}


# cuts ---------------------------------------------------------------------------------------------------------------


def line_mask(*lines):
    return sum(1 << line - 1 for line in lines)


@pytest.mark.parametrize("name", families_with_rules(["sunrise", "trianglebox", "doublebox", "pentabox", "ladder3"]))
def test_spanning_cuts_make_the_whole(reduce_at, name):
    """Each cut gives the coefficients of the masters with its lines; together they are the direct reduction."""
    targets = [TOP[name], *SAMPLES[name]]
    direct = reduce_at(name, targets)
    nonzero = any_kinematics(BUILT_IN_FAMILIES[name]).nonzero_sectors()
    cuts = ibp_reduce.lowest_sectors(nonzero, [sector_of(target) for target in targets])
    parts = [reduce_at(name, targets, cut=cut) for cut in cuts]
    assert len(cuts) > 1
    for cut, part in zip(cuts, parts):
        for target, expression in direct.reductions.items():
            assert part.reductions[target] == {master: v for master, v in expression.items() if sector_of(master) & cut == cut}
    merged = ibp_reduce.merge_cuts(cuts, parts)
    assert merged.reductions == direct.reductions and merged.masters == direct.masters and not merged.unreduced


def test_a_cut_leaves_no_trace_in_a_store(reduce_at, tmp_path):
    """One-step results without what a cut drops must not be taken for whole ones, nor the other way round."""
    targets = [(2, 1, 1, -1, -2), (1, 3, 1, 0, -1)]
    direct = reduce_at("sunrise", targets, shelves=[])
    cut = reduce_at("sunrise", targets, shelves=[], cut=line_mask(1, 2, 3))
    assert cut.reductions != direct.reductions
    for order in ((0, 7, 0), (7, 0, 7)):
        store = [Store(tmp_path / f"{order}.shelf")]
        for mask in order:
            outcome = reduce_at("sunrise", targets, shelves=store, cut=mask)
            assert outcome.reductions == (cut if mask else direct).reductions


def test_cuts_that_contradict_are_refused(reduce_at):
    target = (2, 1, 1, -1, -2)
    part = reduce_at("sunrise", [target], cut=line_mask(1, 2))
    other = dataclasses.replace(part, reductions={target: part.reductions[target] | {(1, 1, 1, 0, 0): 1}})
    for parts in ([part, other], [part, dataclasses.replace(part, reductions={target: {}})]):
        with pytest.raises(ReductionError, match="different coefficients"):
            ibp_reduce.merge_cuts([line_mask(1, 2)] * 2, parts)


# from outside -------------------------------------------------------------------------------------------------------

SUNRISE = ["--family", "sunrise", "--integral", "2,1,1,-1,-2", "--prime", str(P31)]


def test_symmetries_and_cuts_from_outside(place, capsys):
    direct, symmetric = reduced(*SUNRISE), reduced(*SUNRISE, "--symmetries")
    assert len(direct["masters"]) == 7 and len(symmetric["masters"]) == 3 and symmetric["symmetries"] and "symmetries" not in direct
    for more in (["--batch", "auto"], ["--batch", "2"], ["--local", "2"], ["--cold"]):
        again = reduced(*SUNRISE, "--symmetries", *more)
        assert again["final_expr"] == symmetric["final_expr"] and again["masters"] == symmetric["masters"]
    for cuts in (["--cut", "spanning"], ["--cut", "1,2", "--cut", "1,3", "--cut", "2,3"]):
        whole = reduced(*SUNRISE, *cuts)
        assert whole["final_expr"] == direct["final_expr"] and whole["cuts"] == [[1, 2], [1, 3], [2, 3]]
    part = reduced(*SUNRISE, "--cut", "3,1", "--batch", "3")
    assert part["final_expr"] == {m: v for m, v in direct["final_expr"].items() if m[0] == m[2] == 1} and part["cuts"] == [[1, 3]]
    capsys.readouterr()
    assert exit_code([*SUNRISE, "--cut", "1,2"]) == 0
    assert "left out, such as those of the lines 1,3 | 2,3" in capsys.readouterr().out
    assert exit_code([*SUNRISE, "--cut", "spanning"]) == 0
    assert "this is the whole reduction" in capsys.readouterr().out


def test_list_symmetries(place, capsys):
    assert exit_code(["--family", "box", "--list-symmetries"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "box: 7 non-zero sectors, 5 unique, 7 maps of 5 sectors into themselves"
    assert sum(re.fullmatch(r"  (\d+) -> (?!\1 )\d+ .*", line) is not None for line in lines) == 2
    assert sum(re.fullmatch(r"  (\d+) -> \1 .*", line) is not None for line in lines) == 7


def test_family_without_symmetries(place, capsys):
    data = BUBBLE_JSON | {"propagators": [["k1", "m"], ["k1+p", "q"]], "invariants": {"s": 7, "m": 3, "q": 3}}
    Path("two.json").write_text(json.dumps(data))
    assert exit_code(["--family", "two.json", "--list-symmetries"]) == 0
    assert capsys.readouterr().out.splitlines() == ["bubble: 3 non-zero sectors, 3 unique, 0 maps of 0 sectors into themselves"]
    words = ["--family", "two.json", "--integral", "3,2"]
    with_them, without = reduced(*words, "--symmetries"), reduced(*words)
    assert with_them["final_expr"] == without["final_expr"] and with_them["masters"] == without["masters"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--cut", "1,4"], "propagator 4 of sunrise is an irreducible scalar product"),
        (["--cut", "1,6"], "lines from 1 to 3"),
        (["--cut", "0"], "lines from 1 to 3"),
        (["--cut", "1,1"], "different lines"),
        (["--cut", ""], "different lines"),
        (["--cut", "a"], "different lines"),
        (["--cut", "-1"], "--cut"),
        (["--cut", "1", "--cut", "spanning"], "give it alone"),
        (["--cut", "1", "--symmetries"], "contradict"),
        (["--cut", "1", "--masters", "m.txt"], "contradict"),
        (["--cut", "1,2", "--cut", "1,3", "--batch", "auto"], "one --cut"),
        (["--cut", "spanning", "--batch", "auto"], "one --cut"),
        (["--symmetries", "--paper-masters-only"], "contradict"),
        (["--integral", "1,1,-1,0,0", "--cut", "3"], "line 3 has no positive index in I[1,1,-1,0,0]"),
        (["--integrals", "two.txt", "--cut", "3"], "I[1,1,-1,0,0] has the lines of none of the cuts"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_symmetries_and_cuts_are_one_line(place, capsys, words, says):
    Path("m.txt").write_text("1,1,1,0,0\n")
    Path("two.txt").write_text("1,1,1,-1,0\n1,1,-1,0,0\n")
    target = [] if words[0].startswith("--integral") else ["--integral", "2,1,1,-1,-2"]
    assert exit_code(["--family", "sunrise", *target, *words, "--dry-run"]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert says in said[-1] and not list(Path().glob("results*"))


def test_list_symmetries_of_propagators_that_are_no_basis(place, capsys):
    Path("double.json").write_text(json.dumps(BUBBLE_JSON | {"propagators": [["k1", "m"], ["-k1", "0"]]}))
    assert exit_code(["--family", "double.json", "--list-symmetries"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "linearly dependent" in line


# =====================================================================================================================
# One-step tasks
# =====================================================================================================================


def run_steps(work, name, targets, batch=None, job_seconds=1.0, executor=None, shelves=(), said=None, **options):
    """Outcome of a run of one-step tasks in a work directory, where its journal stays."""
    family = BUILT_IN_FAMILIES[name]
    problem = Problem(family, point_of(family, options.pop("prime", P31)), tuple(targets), **options)
    directory, progress = RunDirectory(Path(work)), Progress(quiet=True)
    directory.path.mkdir(exist_ok=True)
    progress.say = (said if said is not None else []).append
    with contextlib.closing(Journal(directory.journal, problem.name, progress.say)) as journal:
        plan = BatchPlan(batch, job_seconds)
        return StepController(problem, executor or InlineExecutor(), shelves, progress, directory, journal, plan).run()


def said_by(outcome):
    return outcome.reductions, outcome.masters, outcome.unreduced


class Observed(InlineExecutor):
    """Remembers the calls of one-step tasks, with None after each round; `change` may put another result in place, or an exception.

    left: calls that an earlier controller is said to have left, each perhaps with what changes its result.
    """

    def __init__(self, change=lambda args, result: result, left=()):
        super().__init__()
        self.change, self.left, self.rounds = change, left, []

    def submit(self, fn, /, *args, **kwargs):
        self.rounds.append(args)
        return self._changed_result(super().submit(fn, *args, **kwargs), args, self.change)

    def _changed_result(self, done, args, change):
        future = concurrent.futures.Future()
        try:
            future.set_result(change(args, done.result()))
        except Exception as error:
            future.set_exception(error)
        return future

    def recover(self):
        return [(self._changed_result(super(Observed, self).submit(reduce_steps, *args), args, change), reduce_steps, args, {})
                for args, change in self.left]  # fmt: skip

    def forget(self, future):
        self.rounds.append(None)

    @property
    def calls(self):
        return [args for args in self.rounds if args is not None]

    @property
    def keys(self):
        """All that was asked for: [(sector, key)]."""
        return [pair for args in self.calls for pair in pairs(args[2])]


class OutOfTime(Observed):
    """The time of each task is up after its first wave."""

    def submit(self, fn, /, *args):
        return super().submit(fn, *args[:4], -1.0)


def pairs(packed):
    return [(bits, key) for bits, keys in packed.items() for key in unpack_keys(keys).tolist()]


def records_of(journal):
    """The whole records of a journal, read without the program; [] if not even its header is whole."""
    data, found = Path(journal).read_bytes(), []
    while len(data) >= 20:
        length, _ = struct.unpack("<I16s", data[:20])
        if len(data) < 20 + length:
            break
        found.append(pickle.loads(zlib.decompress(data[20 : 20 + length])))
        data = data[20 + length :]
    return found[1:]


def done_in(journal):
    return [pair for record in records_of(journal) if "done" in record for pair in pairs({record["sector"]: record["done"]})]


# laws of whole runs -------------------------------------------------------------------------------------------------

# family, targets and options of problems; ways to run them: batch, job_seconds, processes, constants
PROBLEMS = {
    "trianglebox": ("trianglebox", [(1, 1, 1, 1, 1, 1, -1), LAW_TARGETS[2], (1, 0, 0, 0, 1, 0, -1)], {"paper_masters_only": True}),
    "trianglebox, corners stay": ("trianglebox", [LAW_TARGETS[2], (1, 1, 1, 1, 1, 2, -1)], {}),
    "trianglebox, preferred": ("trianglebox", [PREFERRED[2][1]], {"paper_masters_only": True, "preferred_masters": tuple(PREFERRED[2][2])}),
    "sunrise, preferred": ("sunrise", [PREFERRED[1][1], (0, 2, 1, -1, -1)], {"preferred_masters": tuple(PREFERRED[1][2])}),
    "doublebox": ("doublebox", [*SAMPLES["doublebox"], (0, 0, 1, 1, 1, 0, 0, 0, 0)], {}),
    "box": ("box", SAMPLES["box"], {}),
}
WAYS = {
    "one by one": (1, 1.0, 1, {"TARGETS_PER_PASS": 1}),
    "by sevens": (7, 1.0, 1, {}),
    "auto": (None, 1.0, 1, {}),
    "auto, no time": (None, 1e-3, 1, {}),
    "auto, work is left": (None, 0.1, 1, {"BLOCK": 2}),
    "python integers": (7, 1.0, 1, {"KEY_BITS": 8}),
    "python integers, auto": (None, 1e-2, 1, {"KEY_BITS": 8}),
    "two processes": (7, 1.0, 2, {}),
    "two processes, auto": (None, 1e-2, 2, {}),
}


@pytest.fixture(scope="module")
def by_sectors(reduce_at):
    """What the other controller gives for a problem, once for all."""
    kept = {}

    def run(problem):
        if problem not in kept:
            name, targets, options = PROBLEMS[problem]
            kept[problem] = reduce_at(name, targets, **options)
        return kept[problem]

    return run


SLOW_WAYS = {"one by one", "auto, no time", "python integers, auto"}  # the first problem shows them


@pytest.mark.parametrize(
    ("problem", "way"), [(p, way) for number, p in enumerate(PROBLEMS) for way in WAYS if number == 0 or way not in SLOW_WAYS]
)
def test_one_step_tasks_give_what_sectors_give(problem, way, by_sectors, shelves, pool, tmp_path, monkeypatch):
    name, targets, options = PROBLEMS[problem]
    expected = by_sectors(problem)
    batch, job_seconds, processes, constants = WAYS[way]
    for constant, value in constants.items():
        monkeypatch.setattr(ibp_reduce, constant, value)
    executor = pool if processes == 2 else OutOfTime() if "BLOCK" in constants else Observed()
    outcome = run_steps(tmp_path / "run", name, targets, batch, job_seconds, executor, shelves, **options)
    assert said_by(outcome) == said_by(expected) and not outcome.unreduced
    if "BLOCK" in constants:  # what tasks had left came again in later ones
        assert len(executor.keys) > len(set(executor.keys)) > 0
    assert outcome.statistics["hits"] == outcome.statistics["references"] - outcome.statistics["integrals"]
    done = done_in(tmp_path / "run/run.journal")
    assert len(done) == len(set(done)) == outcome.statistics["integrals"] > 0


CORNER_TARGETS = [(1, 1, 1, 1, 1, 2, -1), (2, 1, 1, 1, 1, 0, -1), (1, 1, 0, 1, 1, 1, -1), (1, 0, 2, 1, 1, 1, 0)]


@pytest.fixture(scope="module")
def alone(reduce_at):
    return {target: reduce_at("trianglebox", [target]).reductions[target] for target in CORNER_TARGETS}


@pytest.mark.parametrize("way", ["controller", "by sevens", "auto, work is left", "two processes, auto", "few, backwards"])
def test_where_corners_stay_an_expression_depends_on_its_integral_only(way, alone, reduce_at, pool, tmp_path, monkeypatch):
    if way == "controller":
        assert reduce_at("trianglebox", CORNER_TARGETS[::-1]).reductions == alone
        return
    batch, job_seconds, processes, constants = WAYS.get(way, (3, 1.0, 1, {}))
    for constant, value in constants.items():
        monkeypatch.setattr(ibp_reduce, constant, value)
    targets = CORNER_TARGETS[2:0:-1] if way == "few, backwards" else CORNER_TARGETS
    executor = pool if processes == 2 else OutOfTime() if "BLOCK" in constants else None
    outcome = run_steps(tmp_path / "run", "trianglebox", targets, batch, job_seconds, executor)
    assert outcome.reductions == {target: alone[target] for target in targets}
    extra = {term for expression in alone.values() for term in expression} - set(TRIANGLEBOX.paper_masters)
    assert extra and extra == {corner(sector_of(term), 7) for term in extra}  # else it would say nothing


def test_where_corners_stay_targets_that_are_zero_but_large_change_nothing(alone, reduce_at, tmp_path):
    """They make keys so large that they are Python integers, and the steps between them exceed 62 bits."""
    targets = [*CORNER_TARGETS[:2], (100, 100, -100, -100, 100, 100, -100), (1, *[-100] * 6)]
    assert layout_for(targets, 7).dtype is object
    expected = {target: alone.get(target, {}) for target in targets}
    assert run_steps(tmp_path / "run", "trianglebox", targets, 20).reductions == expected
    assert reduce_at("trianglebox", targets).reductions == expected


@pytest.mark.parametrize("batch", [1, 4, 50])
def test_each_integral_is_reduced_once_and_the_heavier_first(batch, shelves, tmp_path):
    observed = Observed()
    name, targets, options = PROBLEMS["trianglebox"]
    outcome = run_steps(tmp_path / "run", name, targets, batch, executor=observed, shelves=shelves, **options)
    assert len(observed.keys) == len(set(observed.keys)) == outcome.statistics["integrals"]
    assert sorted(observed.keys) == sorted(done_in(tmp_path / "run/run.journal"))
    assert outcome.statistics["tasks"] == len(observed.calls) and (batch > 1 or len(observed.calls) == len(observed.keys))
    references = sum(len(unpack_keys(record["terms"][0])) for record in records_of(tmp_path / "run/run.journal"))
    assert outcome.statistics["hits"] == references - len(observed.keys) > 0
    ends = [-1, *(number for number, args in enumerate(observed.rounds) if args is None), len(observed.rounds)]
    rounds = [observed.rounds[a + 1 : b] for a, b in zip(ends, ends[1:]) if b > a + 1]
    assert len(rounds) > 5
    for calls in rounds:
        keys = [(sector_order(bits), key) for args in calls for bits, key in pairs(args[2])[::-1]]
        assert keys == sorted(keys, reverse=True)
        assert all(len(pairs(args[2])) <= batch for args in calls)


# parts against naive versions ---------------------------------------------------------------------------------------

LAYOUT = layout_for([(3, 3, 3)], 3)
STOPS = {7: ((1, 1, 1), (2, 1, 1)), 3: (), 1: ((1, 0, 0),)}
STOP_KEYS = {bits: set(Sector(LAYOUT, bits).encode(np.array(some)).tolist()) if some else set() for bits, some in STOPS.items()}
some_keys = st.tuples(st.sampled_from(sorted(STOPS)), st.lists(st.integers(0, 12), max_size=6))
laws = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def state(table):
    return {bits: keys.tolist() for bits, keys in table.items() if len(keys)}


@laws
@given(st.lists(st.tuples(st.sampled_from(["meet", "note", "take"]), some_keys, st.integers(1, 4)), max_size=15))
def test_frontier_equals_one_of_sets(actions):
    """Also: met only grows, what waits is met, stops never are, and the heaviest are taken."""
    frontier, met, waiting = Frontier(LAYOUT, STOPS), {}, {}
    for action, (bits, keys), count in actions:
        keys = np.array(keys, np.int64)
        new = set(keys.tolist()) - met.get(bits, set()) - STOP_KEYS[bits]
        if action == "take":
            if bits in frontier.waiting:
                heaviest = sorted(waiting[bits])[-count:]
                assert frontier.take(bits, count).tolist() == heaviest
                waiting[bits] -= set(heaviest)
        else:
            met[bits] = met.get(bits, set()) | new
            if action == "meet":
                frontier.meet(bits, keys)
                waiting[bits] = waiting.get(bits, set()) | new
            else:
                assert frontier.note(bits, keys).tolist() == sorted(new)
        assert state(frontier.met) == {bits: sorted(some) for bits, some in met.items() if some}
        assert state(frontier.waiting) == {bits: sorted(some) for bits, some in waiting.items() if some}
        assert set(frontier.waiting) == set(state(frontier.waiting))  # a sector in which nothing waits is not there


@laws
@given(st.lists(some_keys, max_size=6), st.randoms(use_true_random=False))
def test_order_of_meeting_does_not_matter(meetings, draw):
    first, second = Frontier(LAYOUT, STOPS), Frontier(LAYOUT, STOPS)
    for frontier, order in (first, meetings), (second, draw.sample(meetings * 2, 2 * len(meetings))):
        for bits, keys in order:
            frontier.meet(bits, np.array(keys, np.int64))
    assert state(first.met) == state(second.met) == state(first.waiting) == state(second.waiting)


@laws
@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 10**6), st.floats(0, 1e4)), max_size=12),
    st.floats(1e-6, 1e4),
    st.floats(1, 100),
    st.integers(1, 3),
)
def test_batch_plan(notes, job_seconds, factor, bits):
    plan, longer, fixed = BatchPlan(None, job_seconds), BatchPlan(None, factor * job_seconds), BatchPlan(5, job_seconds)
    for used in plan, longer, fixed:
        for note in notes:
            used.note(*note)
    assert fixed.size(bits) == 5
    assert 0 < plan.exploring_seconds <= job_seconds and (plan.exploring_seconds < job_seconds) == (len(notes) < ibp_reduce.FIRST_JOBS)
    own = [note for note in notes if note[0] == bits] or notes
    integrals, seconds = sum(note[1] for note in own), sum(note[2] for note in own)
    if not integrals:
        assert plan.size(bits) is None
        return
    assert 1 <= plan.size(bits) <= longer.size(bits) <= ibp_reduce.LARGEST_BATCH
    size = job_seconds * integrals / max(seconds, 1e-3)  # what takes the wanted time, if it is a possible number
    assert abs(plan.size(bits) - min(max(size, 1), ibp_reduce.LARGEST_BATCH)) <= 1


int64 = st.integers(-(2**63), 2**63 - 1)


@laws
@given(st.lists(int64, unique=True), st.lists(int64, unique=True), st.integers(0, 2**200))
def test_packed_keys_come_back_and_merged_keys_are_sorted(a, b, large):
    for dtype, more in (np.int64, []), (object, [large]):
        keys = np.array([*a, *more], dtype)
        packed = pickle.loads(pickle.dumps(pack_keys(keys)))
        back = unpack_keys(packed)
        assert back.tolist() == keys.tolist() and back.dtype == dtype and ibp_reduce.load_builtins(pickle.dumps(packed)) == packed
        one, other = np.array(sorted(a), dtype), np.array(sorted({*b, *more} - set(a)), dtype)
        assert merge(one, other).tolist() == sorted({*a, *one.tolist(), *other.tolist()})


@laws
@given(
    st.integers(2, 10),
    st.integers(1, 3),
    st.sampled_from([3, 1009, P31]),
    st.sampled_from([np.int64, object]),
    st.randoms(use_true_random=False),
)
def test_carry_sector_equals_substitution(count, columns, p, dtype, draw):
    """Integrals 0 … count-1 of sector 7, of which the lightest are stops; one-step results lead down, also to sectors 3 and 1."""
    scale = 2**80 if dtype is object else 1
    stops = range(draw.randint(0, count // 2))
    steps = {
        key: [((7, draw.randrange(key)) if key and draw.random() < 0.6 else (draw.choice([3, 1]), draw.randrange(4)), draw.randrange(1, p))
              for _ in range(draw.randint(0, 4))]
        for key in range(len(stops), count)
    }  # fmt: skip
    arriving = [(draw.randrange(count), [draw.randrange(p) for _ in range(columns)]) for _ in range(draw.randint(1, 5))]
    carried = {}
    for key, line in arriving:
        carried[7, key] = [(a + b) % p for a, b in zip(carried.get((7, key), [0] * columns), line)]
    for key in reversed(range(len(stops), count)):
        line = carried.pop((7, key), [0] * columns)
        for term, value in steps[key]:
            carried[term] = [(a + value * b) % p for a, b in zip(carried.get(term, [0] * columns), line)]
    terms = [(scale * key, scale * term, bits, value) for key, some in steps.items() for (bits, term), value in some]
    draw.shuffle(terms)
    source, key, sector, value = (list(column) for column in zip(*terms)) if terms else ([], [], [], [])
    tables = {"source": (source, dtype), "key": (key, dtype), "sector": (sector, np.int64), "value": (value, np.int64)}
    given_terms = Terms(**{name: np.array(*table) for name, table in tables.items()})
    keys, coefficients = np.array([scale * key for key, _ in arriving], dtype), np.array([line for _, line in arriving], np.int64)
    lines, below = carry_sector(7, given_terms, keys, coefficients, np.array([scale * key for key in stops], dtype), p)
    found = {(7, key): line.tolist() for key, line in lines.items()}
    found |= {(bits, key): line for bits, (some, block) in below.items() for key, line in zip(some.tolist(), block.tolist())}
    assert found == {(bits, scale * key): line for (bits, key), line in carried.items() if any(line)}


# results that come twice, overlap or belong elsewhere ---------------------------------------------------------------


@pytest.fixture
def complete(shelves, tmp_path):
    """complete(problem, batch): the calls of a run and its journal, made anew with its first records only."""

    def run(problem, batch, keep):
        name, targets, options = PROBLEMS[problem]
        observed = Observed()
        run_steps(tmp_path / "run", name, targets, batch, executor=observed, shelves=shelves, **options)
        shorten(tmp_path / "run/run.journal", keep)
        return name, targets, options, observed.calls

    return run


def shorten(journal, keep):
    """Leave the header of a journal and the first records."""
    data, end = journal.read_bytes(), 0
    for _ in range(keep + 1):
        end += 20 + struct.unpack("<I", data[end : end + 4])[0]
    journal.write_bytes(data[:end])


@pytest.mark.parametrize("keep", [0, 6, 25])
def test_tasks_of_an_earlier_controller_are_taken_over_even_twice(keep, complete, by_sectors, shelves, tmp_path):
    name, targets, options, calls = complete("trianglebox", 4, keep)
    before = done_in(tmp_path / "run/run.journal")
    taken = calls[::3] + calls[::6]  # some of them in the journal already, some twice
    observed, said = Observed(left=[(args, lambda _, result: result) for args in taken]), []
    outcome = run_steps(tmp_path / "run", name, targets, 4, executor=observed, shelves=shelves, said=said, **options)
    assert said_by(outcome) == said_by(by_sectors("trianglebox"))
    assert len(set(done_in(tmp_path / "run/run.journal"))) == len(done_in(tmp_path / "run/run.journal")) == outcome.statistics["integrals"]
    assert not set(observed.keys) & (set(before) | {pair for args in taken for pair in pairs(args[2])})
    assert said == [f"going on: {len(before):,} integrals are done already, {len(taken)} tasks are taken over"]


@pytest.mark.parametrize("batch", [2, None])
def test_tasks_that_do_more_than_they_were_asked_change_nothing(batch, by_sectors, shelves, tmp_path):
    name, targets, options = PROBLEMS["trianglebox"]
    everything = tuple(range(64))

    def do_all(args, result):
        setting, known, keys, *_ = args
        return reduce_steps(setting, known, keys, tuple(bits for bits in everything if bits in setting.get().stops), math.inf)

    outcome = run_steps(tmp_path / "run", name, targets, batch, 1e-3, Observed(do_all), shelves, **options)
    assert said_by(outcome) == said_by(by_sectors("trianglebox"))
    usual = run_steps(tmp_path / "usual", name, targets, 2, shelves=shelves, **options).statistics
    assert {name: outcome.statistics[name] for name in ("integrals", "references")} == {
        name: usual[name] for name in ("integrals", "references")
    }


def test_tasks_of_another_run_are_not_taken_for_ones_of_this(by_sectors, shelves, tmp_path):
    """The journal was lost, or damaged at its beginning; what is left belongs to another prime."""
    name, targets, options = PROBLEMS["trianglebox"]
    observed = Observed()
    run_steps(tmp_path / "run", name, targets, 4, executor=observed, shelves=shelves, prime=1009, **options)
    (tmp_path / "run/run.journal").write_bytes(b"damaged")
    left = Observed(left=[(args, lambda _, result: result) for args in observed.calls])
    try:
        outcome = run_steps(tmp_path / "run", name, targets, 4, executor=left, shelves=shelves, **options)
    except ReductionError:
        return
    assert said_by(outcome) == said_by(by_sectors("trianglebox"))


@pytest.mark.parametrize("first", ["reduced", "unreduced"])
def test_an_integral_that_one_task_reduces_and_another_one_does_not(first, complete, by_sectors, reduce_at, shelves, tmp_path):
    """Whichever comes first: what is said of the targets stays true."""
    name, targets, options, calls = complete("trianglebox", 4, 0)
    args = calls[5]
    bits, key = pairs(args[2])[0]

    def give_up(_, result):
        found = result["sectors"][bits]
        done, terms = unpack_keys(found["done"]), [unpack_keys(column) for column in found["terms"]]
        integral = tuple(Sector(args[0].get().layout, bits).decode(np.array([key]))[0].tolist())
        less = {"done": pack_keys(done[done != key]), "terms": tuple(pack_keys(column[terms[0] != key]) for column in terms)}
        return result | {"sectors": result["sectors"] | {bits: found | less | {"unreduced": [integral]}}}

    left = [(args, lambda _, result: result), (args, give_up)]
    observed = Observed(left=left if first == "reduced" else left[::-1])
    outcome = run_steps(tmp_path / "run", name, targets, 4, executor=observed, shelves=shelves, **options)
    rest = reduce_at(name, outcome.unreduced or targets[:1], **options).reductions
    inserted = {
        target: combine(*((value, rest.get(term, {term: 1})) for term, value in expression.items()))
        for target, expression in outcome.reductions.items()
    }
    assert inserted == by_sectors("trianglebox").reductions


@pytest.mark.parametrize("way", ["one by one", "by sevens", "auto", "auto, work is left", "python integers"])
@pytest.mark.parametrize("levels", [0, 1])
def test_unreduced_integrals_are_the_same_in_both_schemes(levels, way, reduce_at, tmp_path, monkeypatch):
    targets = [(1, 1, 1, 1, 1, 1, -2), (1, 1, 1, 1, 1, 0, -1)]
    batch, job_seconds, _, constants = WAYS[way]
    for constant, value in {**constants, "NEIGHBOURHOODS": ibp_reduce.NEIGHBOURHOODS[:levels]}.items():
        monkeypatch.setattr(ibp_reduce, constant, value)
    for more in {}, {"paper_masters_only": True}:
        expected = reduce_at("trianglebox", targets, shelves=[], **more)
        work = tmp_path / f"run{len(more)}"
        outcome = run_steps(work, "trianglebox", targets, batch, job_seconds, **more)
        assert said_by(outcome) == said_by(expected)
        assert outcome.unreduced and not set(outcome.unreduced) & set(outcome.masters)
        observed = Observed()  # and again from the journal alone
        again = run_steps(work, "trianglebox", targets, batch, job_seconds, observed, **more)
        assert said_by(again) == said_by(expected) and not set(observed.keys) & set(done_in(work / "run.journal"))


# tasks that fail ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 5, None])
def test_a_failing_task_costs_itself_only_and_a_second_run_makes_up_for_it(batch, by_sectors, shelves, tmp_path):
    name, targets, options = PROBLEMS["trianglebox"]
    unlucky = []

    def fail_once(args, result):
        if not unlucky and len(observed.calls) > (3 if batch is None else 12):
            unlucky.extend(pairs(args[2]))
            raise RuntimeError("the node is on fire")
        return result

    observed = Observed(fail_once)
    work = tmp_path / "run"
    with pytest.raises(ReductionError, match="1 tasks failed.*the node is on fire.*run again"):
        run_steps(work, name, targets, batch, 1e-2, observed, shelves, **options)
    kept = set(done_in(work / "run.journal"))
    assert set(observed.keys) - set(unlucky) <= kept and unlucky and len(observed.calls) > (4 if batch is None else 20)
    second = Observed()
    outcome = run_steps(work, name, targets, batch, 1e-2, second, shelves, **options)
    assert said_by(outcome) == said_by(by_sectors("trianglebox"))
    assert not set(second.keys) & kept and set(unlucky) <= set(done_in(work / "run.journal"))
    if batch is not None:
        assert set(second.keys) >= set(unlucky)


def test_five_failures_at_the_start_end_the_run(shelves, tmp_path):
    def fail(args, result):
        if observed.calls[0] is not args or not lucky:
            raise ValueError("no such library")
        return result

    targets = [(a, 1, 1, b) for a in range(2, 5) for b in range(1, 4)]
    for lucky, text in (False, "the first 5 tasks failed.*no such library"), (True, "tasks failed, the first one: no such library"):
        observed = Observed(fail)
        with pytest.raises(ReductionError, match=text):
            run_steps(tmp_path / f"run{lucky}", "box", targets, 1, executor=observed, shelves=shelves)
        assert bool(done_in(tmp_path / f"run{lucky}/run.journal")) == lucky


# =====================================================================================================================
# Journal
# =====================================================================================================================

BOX = ("box", SAMPLES["box"])


@pytest.fixture(scope="module")
def written(reduce_at, shelves, tmp_path_factory):
    """Bytes of the journal of a whole run, where its records begin, and the answer."""
    work = tmp_path_factory.mktemp("journal")
    outcome = run_steps(work, *BOX, 2, shelves=shelves)
    assert said_by(outcome) == said_by(reduce_at(*BOX))
    data, starts = (work / "run.journal").read_bytes(), [0]
    while starts[-1] < len(data):
        starts.append(starts[-1] + 20 + struct.unpack("<I", data[starts[-1] : starts[-1] + 4])[0])
    return data, starts, said_by(outcome)


@pytest.fixture
def go_on(written, shelves, tmp_path):
    """go_on(bytes of a journal): the run gives the right answer; whole are the integrals that it had done, and the lines that it said."""
    work = tmp_path / "run"
    work.mkdir()

    def run(data, batch=2):
        (work / "run.journal").write_bytes(data)
        observed, said = Observed(), []
        assert said_by(run_steps(work, *BOX, batch, executor=observed, shelves=shelves, said=said)) == written[2]
        after = done_in(work / "run.journal")
        assert len(after) == len(set(after))
        return set(after) - set(observed.keys), said

    return run


def test_journal_cut_off_anywhere(written, go_on):
    data, starts, _ = written
    assert len(starts) > 8
    ends = {end for start in starts for end in (start - 1, start, start + 1, start + 19, start + 20, start + 21) if 0 <= end <= len(data)}
    for end in sorted(random.Random(1).sample(sorted(ends), 30) + [*range(0, len(data), len(data) // 20), *starts[:4]]):
        kept, said = go_on(data[:end])
        assert kept == set(done_in_bytes(data, starts, end)), end
        assert bool(kept) == any("going on" in line for line in said)
        assert any("not a whole record" in line or "damaged" in line for line in said) == (end not in starts), (end, said)


def done_in_bytes(data, starts, end):
    """Integrals in the records that are whole before this position."""
    for start, stop in zip(starts[1:], starts[2:]):
        if stop <= end:
            record = pickle.loads(zlib.decompress(data[start + 20 : stop]))
            yield from pairs({record["sector"]: record["done"]})


def test_journal_with_a_flipped_byte(written, go_on):
    """What is before the damage stays; the answer is right."""
    data, starts, _ = written
    draw = random.Random(3)
    for offset in sorted({*draw.sample(range(len(data)), 25), *(start + i for start in starts[1:4] for i in (0, 2, 4, 20))}):
        kept, _ = go_on(flipped(data, offset, draw.choice([0xFF, 1, 64])))
        assert kept == (set(done_in_bytes(data, starts, offset)) if offset >= starts[1] else set()), offset


def test_flipped_length_costs_no_memory(written, tmp_path):
    """A length of gigabytes in the head of a record is refused before it is allocated."""
    data, starts, _ = written
    (tmp_path / "j").write_bytes(flipped(data, starts[2] + 3, 0xF0))
    limit = resource.getrlimit(resource.RLIMIT_AS)
    journal = Journal(tmp_path / "j", problem_of(*BOX).name)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if sys.platform == "linux" else 2**33
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, limit[1]))
    try:
        assert len(list(journal.records())) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)
        journal.close()


def problem_of(name, targets, **options):
    return Problem(BUILT_IN_FAMILIES[name], point_of(BUILT_IN_FAMILIES[name]), tuple(targets), **options)


def checked_record(value):
    data = zlib.compress(pickle.dumps(value, 4))
    return struct.pack("<I16s", len(data), ibp_reduce.hashlib.sha256(data).digest()[:16]) + data


@pytest.mark.parametrize(
    "tail",
    [b"\0", b"\0" * 20, b"\0" * 5000, random.Random(1).randbytes(3000), checked_record(Touches()), checked_record({"sector": Touches()})],
    ids=["a zero", "a head of zeros", "zeros", "garbage", "a class", "a class within"],
)
def test_what_is_appended_to_a_journal_is_dropped(tail, written, go_on, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, starts, _ = written
    for end in starts[4], starts[-1]:
        kept, said = go_on(data[:end] + tail)
        assert kept == set(done_in_bytes(data, starts, end))
        assert [f"{len(tail)} bytes" in line for line in said] == [True, False]
    assert not (tmp_path / "broken-out").exists()


@pytest.mark.parametrize(
    "header", [checked_record({"program": "ibp_reduce", "run": "another"}), checked_record(["x"]), checked_record("x")]
)
def test_journal_of_another_run_is_refused_and_left_alone(header, written, tmp_path):
    data, starts, _ = written
    (tmp_path / "run.journal").write_bytes(header + data[starts[1] :])
    with pytest.raises(InputError, match=r"(another|another program); .*--fresh"):
        run_steps(tmp_path, *BOX)
    assert (tmp_path / "run.journal").read_bytes() == header + data[starts[1] :]


NAMED_APART = {
    "target": lambda p: dataclasses.replace(p, targets=p.targets[:1]),
    "order of the targets": lambda p: dataclasses.replace(p, targets=p.targets[::-1]),
    "prime": lambda p: dataclasses.replace(p, point=point_of(p.family, 1009)),
    "kinematics": lambda p: dataclasses.replace(p, point=point_of(p.family, s="5")),
    "dimension": lambda p: dataclasses.replace(p, point=point_of(p.family, d="40")),
    "masters": lambda p: dataclasses.replace(p, preferred_masters=((2, 1, 1, 1),)),
    "published": lambda p: dataclasses.replace(p, paper_masters_only=True),
    "family": lambda p: dataclasses.replace(p, family=BUILT_IN_FAMILIES["doublebox"]),
}


@pytest.mark.parametrize("change", NAMED_APART)
def test_other_problems_have_other_journals(change, tmp_path):
    mine = problem_of(*BOX)
    Journal(tmp_path / "j", mine.name).close()
    with pytest.raises(InputError, match=re.escape(f"the unfinished run of {mine.name}")):
        Journal(tmp_path / "j", NAMED_APART[change](mine).name)
    assert mine.name.startswith("I[2,1,1,2] and 2 more of box modulo 2147483647 (")


@contextlib.contextmanager
def file_size_limit(size):
    """No file may grow beyond; a write stops there, as on a full disk."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


@pytest.mark.parametrize("size", [300, 20_000], ids=["within the buffer", "beyond the buffer"])
@pytest.mark.parametrize("room", [0, 15, 20, 200])
def test_journal_on_a_full_disk_stays_usable(room, size, tmp_path):
    large = random.Random(1).randbytes(size)
    journal = Journal(tmp_path / "j", "mine")
    first = journal.append("first")
    with file_size_limit(journal.end + room), pytest.raises(ReductionError, match="j: File too large; make room"):
        journal.append(large)
    second = journal.append("second")
    assert [journal.read(first), journal.read(second)] == ["first", "second"]
    journal.sync()
    journal.close()
    with contextlib.closing(Journal(tmp_path / "j", "mine")) as again:
        assert [value for _, value in again.records()] == ["first", "second"]


@pytest.mark.parametrize("appends", [1, 4, 9])
def test_run_on_a_full_disk_ends_in_one_line_and_goes_on_later(appends, go_on, shelves, tmp_path, monkeypatch):
    original, count = Journal.append, [0]

    def append(self, value):
        count[0] += 1
        with file_size_limit(self.end + 30) if count[0] > appends else contextlib.nullcontext():
            return original(self, value)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", append)
        with pytest.raises(ReductionError, match="run.journal: File too large; make room, then go on with the same command"):
            run_steps(tmp_path / "full", *BOX, 2, shelves=shelves)
    kept, _ = go_on((tmp_path / "full/run.journal").read_bytes())
    assert kept or appends == 1


def test_record_that_changes_while_the_run_goes_on_is_an_error(written, shelves, tmp_path, monkeypatch):
    """Between the reduction and the last step, which reads the journal again."""
    original = StepController._carry_down

    def carry_down(self, targets):
        with open(self.journal.path, "r+b") as file:
            file.seek(written[1][3] + 25)
            file.write(b"???")
        return original(self, targets)

    monkeypatch.setattr(StepController, "_carry_down", carry_down)
    with pytest.raises(ReductionError, match="the record at byte [0-9]+ has changed; run again"):
        run_steps(tmp_path, *BOX, 2, shelves=shelves)
    monkeypatch.undo()
    assert said_by(run_steps(tmp_path, *BOX, 2, shelves=shelves)) == written[2]


# =====================================================================================================================
# Stragglers
# =====================================================================================================================


def with_cpus(cpus, fn, *args):
    value, error = condor_worker.load_outcome(condor_worker.perform(pickle.dumps((fn, args, {})), cpus=cpus))
    assert error is None, error
    return value


@pytest.mark.parametrize("more", [{}, {"paper_masters_only": True}], ids=["corners", "published"])
def test_more_processors_give_the_same_one_step_results(more, tmp_path):
    """Without any rules, so that there is much to search for."""
    observed = Observed()
    run_steps(tmp_path / "run", "trianglebox", [(1, 0, 1, 1, 1, 1, -1)], None, 60.0, observed, **more)
    one, three = (with_cpus(cpus, reduce_steps, *observed.calls[0]) for cpus in (1, 3))
    assert one["sectors"] == three["sectors"] and one["counts"] == three["counts"] and one["counts"]["integrals"] > 10
    assert any(found["learned"] for found in one["sectors"].values()) == bool(more)


def test_more_processors_give_the_same_sector():
    family = TRIANGLEBOX
    equations = ibp_reduce.evaluate_identities(ibp_reduce.derive_identities(family), point_of(family))
    generic = ibp_reduce.evaluate_identities(ibp_reduce.derive_identities(family), ibp_reduce.generic_point(family))
    nonzero = ibp_reduce.find_nonzero_sectors(equations, family.lines)
    target = (1, 0, 1, 1, 1, 1, -2)
    layout = layout_for([target], 7)
    task = ibp_reduce.SectorTask(
        layout, 61, nonzero, equations, generic, ibp_reduce.SectorKnowledge(), ((1, 0, 1, 1, 1, 1, 0),), {},
        Sector(layout, 61).encode(np.array([target])), np.ones((1, 1), np.int64),
    )  # fmt: skip
    one, three = (with_cpus(cpus, ibp_reduce.reduce_sector, task) for cpus in (1, 3))
    assert one.learned.rules and (one.masters, one.unreduced, one.learned) == (three.masters, three.unreduced, three.learned)
    below = [{bits: (keys.tolist(), lines.tolist()) for bits, (keys, lines) in result.below.items()} for result in (one, three)]
    assert below[0] == below[1] != {}


def test_stragglers_change_nothing_and_are_counted(reduce_at, shelves, tmp_path, monkeypatch):
    monkeypatch.setattr(condor_worker, "POLL_S", 1e-3)
    targets = [(2, 1, 1, -1, -1)]
    with LocalExecutor(2, stragglers=TimeLimits(1e-3), straggler_cpus=2, describe=ibp_reduce.describe_task) as executor:
        masters = ibp_reduce.Knowledge()  # known, so that only one-step tasks are run; no rules
        for shelf in shelves:
            masters.update(shelf.load(BUILT_IN_FAMILIES["sunrise"]))
        for sector in masters.sectors.values():
            sector.rules, sector.hopeless = (), frozenset()
        (tmp_path / "run").mkdir()
        store = ibp_reduce.Store(tmp_path / "s")
        store.merge(BUILT_IN_FAMILIES["sunrise"], point_of(BUILT_IN_FAMILIES["sunrise"]), masters)
        outcome = run_steps(tmp_path / "run", "sunrise", targets, None, 600.0, executor, [store])
    assert said_by(outcome) == said_by(reduce_at("sunrise", targets))
    assert outcome.statistics["stragglers"] >= 1 and outcome.statistics["failed"] == 0


# =====================================================================================================================
# From outside
# =====================================================================================================================

STEPS = [*PUBLISHED, "--batch", "3", "--quiet", "--output", "r.pkl", "--store", "s", "--work-dir", "it's work"]
OTHER = ["--integral=1,1,1,1,1,1,-1", "--paper-masters-only", *STEPS[3:]]
ANSWER = dict(zip(TRIANGLEBOX.paper_masters, map(int, GOLDEN[1009][1, 1, 1, 1, 1, 1, -3].split())))


def answer():
    result = ibp_reduce.load_builtins(Path("r.pkl").read_bytes())
    assert result["final_expr"] == ANSWER and result["success"]
    return result["statistics"]


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A store with the rules for STEPS, which saves the time of the search."""
    directory = tmp_path_factory.mktemp("learned")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.setattr(ibp_reduce, "DATA", directory / "nothing shipped")
        reduced(*PUBLISHED, "--store", "s")
    return directory / "s"


@pytest.fixture
def ready(place, learned):
    shutil.copy(learned, place / "s")
    return place


def start(command, place):
    return subprocess.Popen(command, cwd=place, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_killed_again_and_again_nothing_is_lost_or_done_twice(bare, place):
    journal = place / "it's work/run.journal"
    command, before = [sys.executable, str(bare / "ibp_reduce.py"), *STEPS, "--local", "2"], 0
    for growth in 1, 8_000, 30_000:
        with ended(start(command, place)) as run:
            size = journal.stat().st_size if journal.exists() else 0
            wait_until(lambda: run.poll() is not None or (journal.exists() and journal.stat().st_size >= size + growth))  # noqa: B023
            assert run.poll() is None, run.stderr.read()
            run.kill()
            said = run.communicate()[1]
        assert (f"going on: {before:,} integrals" in said) == (before > 0), said
        done = done_in(journal)
        assert len(done) == len(set(done)) >= before
        before = len(done)
    assert before > 100
    with ended(start(command, place)) as run:
        said = run.communicate(timeout=DEADLINE_S)[1]
    assert run.returncode == 0 and f"going on: {before:,} integrals are done already" in said, said
    statistics = answer()
    assert statistics["tasks"] <= statistics["integrals"] - before
    assert {path.name for path in journal.parent.iterdir()} & {"run.journal", "shared", "condor", "stop.request"} == set()


# the program, which stops after so many additions to its journal until it gets a line
HELD = """
import sys, ibp_reduce
program, count, *words = sys.argv[1:]
original, left, ibp_reduce.STATUS_INTERVAL_S = ibp_reduce.Journal.append, int(count), 0.01

def append(self, value):
    global left
    position, left = original(self, value), left - 1
    if left == 0:
        print('held', flush=True)
        sys.stdin.readline()
    return position

ibp_reduce.Journal.append = append
sys.argv = [program, *words]
sys.exit(ibp_reduce.main())
"""


@pytest.fixture
def held(bare, ready):
    """held(words): a run of the copied program that is in the midst of its work."""
    with contextlib.ExitStack() as stack:

        def run(*words, after=30):
            environment = os.environ | {"PYTHONPATH": str(bare)}
            command = [sys.executable, "-c", HELD, str(bare / "ibp_reduce.py"), str(after), *words]
            pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
            process = stack.enter_context(ended(subprocess.Popen(command, cwd=ready, env=environment, text=True, **pipes)))
            assert process.stdout.readline() == "held\n", process.communicate()
            return process

        yield run


def said(capsys, words, code):
    """What the program says in this process."""
    capsys.readouterr()
    assert exit_code(words) == code
    printed, line = capsys.readouterr()
    return printed if code == 0 else line


STATUS = ["--status", "--work-dir", "it's work"]
STOP = ["--stop", "--work-dir", "it's work"]


def test_a_run_is_watched_refuses_others_and_is_stopped(held, bare, place, capsys):
    run = held(*STEPS)
    status = said(capsys, STATUS, 0)
    where = f"pid {run.pid} on {socket.gethostname()}"
    assert f"{where}, at work" in status and f"I[{SMALL}] of trianglebox" in status and re.search("[0-9]+ done of [0-9]+ met", status)
    for words in STEPS, OTHER, [*STEPS, "--resume"], [*STEPS, "--fresh"]:
        refusal = said(capsys, words, 2)
        assert refusal.count("\n") == 1 and str(run.pid) in refusal and socket.gethostname() in refusal
    kept = done_in("it's work/run.journal")
    with ended(start([sys.executable, str(bare / "ibp_reduce.py"), *STOP], place)) as stop:
        wait_until(Path("it's work/stop.request").exists)
        printed, line = run.communicate("\n", timeout=DEADLINE_S)
        assert (run.returncode, printed, line.count("\n")) == (130, "", 1) and "--work-dir" in line
        assert stop.communicate(timeout=DEADLINE_S) == ("", "") and stop.returncode == 0
    assert not Path("it's work/stop.request").exists()
    assert "GONE" in said(capsys, STATUS, 0)
    refusal = said(capsys, OTHER, 2)
    assert refusal.count("\n") == 1 and f"I[{SMALL}] of trianglebox modulo 1009" in refusal and "--fresh" in refusal
    before = set(done_in("it's work/run.journal"))
    assert before >= set(kept) and kept
    assert f"going on: {len(before):,} integrals" in run_and_hear(capsys, [*STEPS, "--resume"])
    assert answer()["tasks"] <= answer()["integrals"] - len(before)
    assert "finished" in said(capsys, STATUS, 0)
    refusal = said(capsys, [*STEPS, "--resume"], 2)
    assert refusal.count("\n") == 1 and "no unfinished run" in refusal
    assert said(capsys, STOP, 0) == ""  # nobody is there to be stopped


def run_and_hear(capsys, words):
    capsys.readouterr()
    assert exit_code(words) == 0
    return capsys.readouterr().err


def test_killed_run_is_known_to_be_gone_and_fresh_drops_it(held, place, capsys):
    run = held(*STEPS, "--local", "2")
    run.kill()
    run.wait(DEADLINE_S)
    status = said(capsys, STATUS, 0)
    assert f"pid {run.pid}" in status and "GONE" in status and "same command" in status
    assert done_in("it's work/run.journal")
    line = run_and_hear(capsys, [*OTHER, "--fresh"])
    assert "going on" not in line
    small = reduced("--integral=1,1,1,1,1,1,-1", "--paper-masters-only", "--store", "elsewhere")["final_expr"]
    assert run_and_hear(capsys, OTHER) == "" and ibp_reduce.load_builtins(Path("r.pkl").read_bytes())["final_expr"] == small


@pytest.mark.parametrize("local", ["1", "2"])
def test_interrupted_run_prints_a_command_that_goes_on(local, held, place):
    run = held(*STEPS, "--local", local, "--fresh")
    run.send_signal(signal.SIGINT)
    printed, line = run.communicate(timeout=DEADLINE_S)
    assert (run.returncode, printed, line.count("\n")) == (130, "", 1), line
    command = line.strip().partition("go on with: ")[2]
    kept = len(done_in("it's work/run.journal"))
    again = subprocess.run(command, shell=True, cwd=place, capture_output=True, text=True, timeout=DEADLINE_S)
    assert again.returncode == 0 and f"going on: {kept:,} integrals" in again.stderr, f"{command}: {again.stderr}"
    assert kept and answer()["tasks"] <= answer()["integrals"] - kept


def test_status_of_a_short_run_is_its_own(ready, capsys):
    """Also of one that ends before the first writing is due, and after another run in the same directory."""
    for words, integral in (STEPS, SMALL), (OTHER, "1,1,1,1,1,1,-1"):
        run_and_hear(capsys, words)
        status = said(capsys, STATUS, 0)
        assert f"I[{integral}] of trianglebox" in status and "finished" in status
        done, met = re.search("([0-9,]+) done of ([0-9,]+) met", status).groups()
        assert done == met


def test_directory_is_not_given_away_before_the_result_is_safe(ready, monkeypatch):
    """Another controller that started meanwhile would lose its journal when this one clears up."""
    original, refused = ibp_reduce.write_pickle, []

    def write(record, path):
        try:
            with claim_directory("it's work"):
                refused.append(False)
        except DirectoryRefused:
            refused.append(True)
        original(record, path)

    monkeypatch.setattr(ibp_reduce, "write_pickle", write)
    assert exit_code(STEPS) == 0 and refused == [True]
    answer()


def test_work_directory_that_others_may_write_to_is_refused(place, capsys, monkeypatch):
    monkeypatch.setattr(ibp_reduce, "STOP_PATIENCE_S", 1.0)
    monkeypatch.setattr(ibp_reduce.time, "sleep", lambda seconds: pytest.fail("waits in vain"))
    Path("it's work").mkdir()
    Path("it's work").chmod(0o770)
    for words in STEPS, [*PUBLISHED, "--work-dir", "it's work"], STOP:
        line = said(capsys, words, 2)
        assert line.count("\n") == 1 and "it's work" in line and "chmod" in line
    assert not Path("it's work/run.journal").exists()


def test_steps_and_sectors_write_the_same_result(place):
    """And share a store: the rules that one finds spare the other the search."""
    small = ["--integral=1,1,1,1,1,0,-1", "--paper-masters-only"]
    by_steps = reduced(*small, "--batch", "auto", "--job-seconds", "0.05", "--local", "2")
    by_sectors = reduced(*small, "--batch", "sector")
    for key in ("final_expr", "masters", "unreduced", "kinematics", "success"):
        assert by_steps[key] == by_sectors[key]
    assert by_steps["statistics"]["rules"] > 0 == by_sectors["statistics"]["rules"]


USAGE_ERRORS = {
    "--batch 0": ("--batch 0",),
    "--batch x": ("--batch x", "sector, auto"),
    "--batch -3": ("--batch",),
    "--batch 1.5": ("--batch 1.5",),
    "--batch 1e3": ("--batch 1e3",),
    "--batch=": ("--batch",),
    "--condor --local 2": ("--condor", "--local", "one of them"),
    "--condor --batch sector": ("--batch sector", "--condor"),
    "--resume --fresh": ("--resume", "--fresh", "one of them"),
    "--batch auto --job-seconds 0": ("--job-seconds 0",),
    "--batch auto --job-seconds nan": ("--job-seconds nan",),
    "--batch auto --job-seconds inf": ("--job-seconds inf",),
    "--job-seconds soon": ("--job-seconds", "soon"),
    "--straggler-timeout never": ("--straggler-timeout never", "auto"),
    "--straggler-timeout 2000000 --local 2": ("--straggler-timeout",),
    "--straggler-cpus 0": ("--straggler-cpus 0",),
    "--check-interval 0": ("--check-interval 0",),
    "--request-memory -1": ("--request-memory -1",),
    "--max-jobs 0": ("--max-jobs 0",),
    "--condor --condor-option foo": ("--condor-option 'foo'", "KEY=VALUE"),
    "--status --work-dir nowhere": ("nowhere", "no run"),
    "--stop --work-dir nowhere": ("nowhere", "no such directory"),
}


@pytest.mark.parametrize("command", USAGE_ERRORS)
def test_usage_error_is_one_line_and_nothing_is_written(command, place, capsys):
    words = shlex.split(command)
    complete = "nowhere" in words
    check_refused([*words, *([] if complete else ["--integral=1,1,1,1,1,1,-1"])], place, capsys, USAGE_ERRORS[command])


def test_resume_needs_an_unfinished_run(place, capsys):
    for words in [*STEPS, "--resume"], [*OTHER, "--resume"]:
        line = said(capsys, words, 2)
        assert line.count("\n") == 1 and "--resume" in line and "no unfinished run" in line
    assert not Path("r.pkl").exists() and not Path("it's work/run.journal").exists()


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"time": 3}', b"\xff"], ids=ascii)
def test_damaged_status_is_one_line(damage, place, capsys):
    Path("it's work").mkdir(mode=0o700)
    Path("it's work/controller.json").write_text(json.dumps({"pid": 1, "host": "x"}))
    Path("it's work/status.json").write_bytes(damage)
    line = said(capsys, STATUS, 1)
    assert line.count("\n") == 1 and "status.json" in line


# a real pool --------------------------------------------------------------------------------------------------------


@pytest.mark.condor
@pytest.mark.parametrize(
    "words", [["3,2,1,3,2,2,-6"], [SMALL, "--batch", "20"], [SMALL, "--batch", "40", "--transfer-files"]], ids=" ".join
)
def test_a_pool_gives_what_one_process_gives(words, real_pool, place):
    common = ["--paper-masters-only", "--quiet", "--integral"]
    assert exit_code([*common, *words[:1], "--output", "here.pkl"]) == 0
    assert exit_code([*common, *words, "--condor", "--check-interval", "1", "--work-dir", "it's a pool", "--output", "there.pkl"]) == 0
    here, there = (ibp_reduce.load_builtins(Path(name).read_bytes()) for name in ("here.pkl", "there.pkl"))
    assert here["reductions"] == there["reductions"] and there["statistics"]["jobs"] == there["statistics"]["tasks"] > 0
    assert not Path("it's a pool/condor").exists() and Path("it's a pool/events.jsonl").exists()


def schedd_of_the_pool():
    """Process id of the schedd that the environment's CONDOR_CONFIG belongs to."""
    ours = f"CONDOR_CONFIG={os.environ['CONDOR_CONFIG']}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"condor_schedd" in (process / "cmdline").read_bytes() and ours in (process / "environ").read_bytes().split(b"\0"):
                return int(process.name)


class Chaos:
    """Removes and holds some of a run's jobs, each task once at most, and kills schedd and controller at given numbers of results."""

    def __init__(self, command, work, rng):
        self.command, self.work, self.rng = command, work, rng
        self.touched, self.removed, self.held, self.schedds, self.controllers = set(), 0, 0, 0, 0

    def count(self, event):
        with contextlib.suppress(FileNotFoundError):
            return (self.work / "condor/events.jsonl").read_text().count(f'"event": "{event}"')
        return 0

    def queue(self):
        attributes = ["-json", "-attributes", "ClusterId,ProcId,CondorWorkerTask"]
        answer = subprocess.run(["condor_q", *attributes], capture_output=True, text=True, timeout=60)
        return json.loads(answer.stdout or "[]") if answer.returncode == 0 else []

    def disturb(self, tool, wanted):
        jobs = [job for job in self.queue() if job.get("CondorWorkerTask") not in self.touched]
        chosen = self.rng.sample(jobs, min(4, wanted)) if len(jobs) > 8 else []
        done = 0
        for job in chosen:
            self.touched.add(job["CondorWorkerTask"])
            done += subprocess.run([tool, f"{job['ClusterId']}.{job['ProcId']}"], capture_output=True, timeout=60).returncode == 0
        return done

    def run(self, schedd_at, controller_at):
        """Exit code of the last controller."""
        process = self.start()
        while process.poll() is None:
            self.removed += self.disturb("condor_rm", 20 - self.removed) if self.removed < 20 else 0
            self.held += self.disturb("condor_hold", 20 - self.held) if self.held < 20 else 0
            if self.schedds < len(schedd_at) and self.count("done") >= schedd_at[self.schedds]:
                os.kill(schedd_of_the_pool(), signal.SIGKILL)
                self.schedds += 1
            at_work = self.count("recovered") > self.controllers
            if self.controllers < len(controller_at) and at_work and self.count("done") >= controller_at[self.controllers]:
                process.kill()
                process.wait()
                self.controllers += 1
                process = self.start()
            time.sleep(0.3)
        return process.returncode

    def start(self):
        return subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=(self.work.parent / "said").open("a"))


@pytest.mark.condor
@pytest.mark.slow
def test_a_pool_in_chaos_loses_nothing(real_pool, place):
    common = ["--integral", SMALL, "--paper-masters-only"]
    assert exit_code([*common, "--quiet", "--output", "expected.pkl"]) == 0
    words = [*common, "--condor", "--batch", "3", "--check-interval", "2", "--work-dir", "work", "--output", "result.pkl"]
    chaos = Chaos([sys.executable, str(HERE / "ibp_reduce.py"), *words], place / "work", random.Random(1))
    assert chaos.run(schedd_at=(35, 95), controller_at=(20, 50, 80, 110, 140)) == 0, (place / "said").read_text()
    assert (chaos.removed, chaos.held, chaos.schedds, chaos.controllers) == (20, 20, 2, 5)
    expected, result = (ibp_reduce.load_builtins(Path(name).read_bytes()) for name in ("expected.pkl", "result.pkl"))
    assert result["reductions"] == expected["reductions"]
    events = [json.loads(line) for line in Path("work/events.jsonl").read_text().splitlines()]
    names = [event["event"] for event in events]
    assert names.count("recovered") == 6 and "silent" in names
    assert names.count("removed") + names.count("absent") >= 20 and names.count("held") >= 20
    finished = {(event["task"], event["seconds"]) for event in events if event["event"] == "done"}  # one read twice is one
    assert len(finished) == len({task for task, _ in finished}) >= 180
    assert chaos.queue() == []


# what a hostile tester found in one-step runs -------------------------------------------------------------------------

BATCHES_OF_FIVE = ["--integral", SMALL, "--paper-masters-only", "--batch", "5", "--quiet"]


def test_files_of_the_user_in_the_work_directory_stay(place):
    for name in ("shared", "condor"):
        Path("work", name).mkdir(parents=True)
        Path("work", name, "thesis.tex").write_text("mine")
    Path("work/run.journal").write_text("also mine")
    os.chmod("work", 0o700)
    assert exit_code([*BATCHES_OF_FIVE, "--work-dir", "work", "--output", "r.pkl"]) == 0
    assert [Path("work", name, "thesis.tex").read_text() for name in ("shared", "condor")] == ["mine"] * 2
    assert Path("work/run.journal.damaged-1").read_text() == "also mine" and Path("r.pkl").exists()


@pytest.mark.parametrize(
    "words", [["--output", "w/run.journal"], ["--output", "w/shared/r.pkl"], ["--store", "w/status.json"]], ids=" ".join
)
def test_files_of_a_run_are_no_place_for_results(words, place, capsys):
    check_refused([*BATCHES_OF_FIVE, "--work-dir", "w", *words], place, capsys, [words[0], "another"])


def test_one_process_writes_down_each_task_before_the_next(place, monkeypatch):
    done, journaled = [], []
    perform, append = condor_worker.perform, Journal.append
    monkeypatch.setattr(condor_worker, "perform", lambda *args, **kwargs: done.append(1) or perform(*args, **kwargs))
    monkeypatch.setattr(Journal, "append", lambda self, value: journaled.append(len(done)) or append(self, value))
    assert exit_code([*BATCHES_OF_FIVE, "--work-dir", "w", "--output", "r.pkl"]) == 0
    assert journaled[1:] == list(range(1, len(done) + 1)) and len(done) > 50


def test_store_that_fails_does_not_take_the_place_of_what_ended_the_run(place, capsys, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(StepController, "_carry_down", stop)
    monkeypatch.setattr(ibp_reduce.Store, "merge", lambda *_: (_ for _ in ()).throw(ReductionError("the store is gone")))
    assert exit_code([*BATCHES_OF_FIVE, "--cold", "--work-dir", "w", "--output", "r.pkl"]) == 130
    said = capsys.readouterr().err
    assert "the store is gone" in said and "interrupted" in said and Path("w/run.journal").exists()


@pytest.mark.parametrize(
    "name, content", [("controller.json", "{}"), ("controller.json", '{"host": "x", "pid": 1e99}'), ("status.json", '{"format": 1}')]
)
def test_damaged_status_of_an_unfinished_run_is_one_line(name, content, place, capsys):
    assert exit_code([*BATCHES_OF_FIVE, "--work-dir", "w", "--output", "r.pkl"]) == 0
    Path("w/run.journal").touch()
    Path("w", name).write_text(content)
    capsys.readouterr()
    assert exit_code(["--status", "--work-dir", "w"]) in (0, 1)
    printed, said = capsys.readouterr()
    assert "Traceback" not in said and (printed or said.count("\n") == 1)


# =====================================================================================================================
# Spin model and annealer: oracles (brute force, closed forms) and laws
# =====================================================================================================================

FULL = {"J1z": 0.3, "D": 0.2, "E": -0.3, "F": 0.15, "G": -0.4, "J3xy": 0.5, "J3z": -0.2, "J2xy": 0.25, "J2z": -0.1}
FULL |= {"hx": 0.1, "hy": -0.2, "hz": 0.3}
MEV = {"fitting_param_2": (-6.772, -1.887, 0.815, 1.292, -0.091, 0.627, 1.823, -0.157), "emily": (-7.6, -1.2, 0.1, -0.1, 0, 0, 2.5, -0.85)}
BEST = {"fitting_param_2": -1.125530, "emily": -1.055194}  # the best that another annealer found


def couplings_of(name):
    scale, *values = MEV[name]
    return dict(zip(PARAMETERS, (v / abs(scale) for v in values)))


def random_spins(rng, *shape):
    spins = rng.standard_normal((*shape, 3))
    return spins / np.linalg.norm(spins, axis=-1, keepdims=True)


def drawn(seed, frustrated=True):
    """Random couplings; frustrated ones are small and have J3xy > 0, so that most are not settled by the bound."""
    values = np.random.default_rng([5, seed]).uniform(-1, 1, 7)
    if frustrated:
        values *= 0.4
        values[5] = abs(values[5])
    return dict(zip(PARAMETERS, values))


def brute_force_energy(spins, p, L):
    """Double loop over cells."""
    c, s = -0.5, math.sqrt(3) / 2
    u = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
    z = np.array([[-1 + p["D"], p["E"], p["F"]], [p["E"], -1 - p["D"], p["G"]], [p["F"], p["G"], p["J1z"]]])
    j3, j2 = np.diag([p["J3xy"]] * 2 + [p["J3z"]]), np.diag([p["J2xy"]] * 2 + [p["J2z"]])
    total = 0.0
    for i in range(L):
        for j in range(L):
            at = lambda n, m, t, i=i, j=j: spins[((i + n) % L * L + (j + m) % L) * 2 + t]  # noqa: E731
            for step, matrix in (((0, 0), z), ((0, -1), u @ z @ u.T), ((1, -1), u.T @ z @ u)):
                total += at(0, 0, 0) @ matrix @ at(*step, 1)
            for step in ((1, 0), (-1, 0), (1, -2)):
                total += at(0, 0, 0) @ j3 @ at(*step, 1)
            for t in (0, 1):
                total += sum(at(0, 0, t) @ j2 @ at(*step, t) for step in ((1, 0), (0, 1), (1, -1)))
                total -= at(0, 0, t) @ (p["hx"], p["hy"], p["hz"])
    return total / (2 * L * L)


@pytest.mark.parametrize("L", [4, 5, 6])
def test_energy_is_the_double_loop_and_the_engine_agrees(L):
    couplings, spins = Couplings.from_parameters(FULL), random_spins(np.random.default_rng(L), 3, 2 * L * L)
    expected = [brute_force_energy(s, FULL, L) for s in spins]
    assert np.allclose(energy(spins, couplings), expected, atol=1e-13)
    for cells in ([Cell(L, 0, L)], [Cell(1, 2, L), Cell(L, 0, L)]):
        clusters = Clusters.of(cells, couplings)
        array = np.zeros((3, len(clusters.order), 3))
        array[:, clusters.order[-2 * L * L :]] = spins.transpose(2, 1, 0)
        assert np.allclose(clusters.energies(array)[-1], expected, atol=1e-13)
        tiled = np.stack([clusters.tiled(L, array, len(cells) - 1, k).T for k in range(3)])
        assert np.array_equal(tiled, spins)
        for group, sites in enumerate(clusters.groups):  # no site of a colour is coupled to its colour
            near = clusters.gather[group]
            assert not ((near >= sites.start) & (near < sites.stop)).any()


def test_local_fields_are_the_derivative_of_the_energy():
    couplings, rng = Couplings.from_parameters(FULL), np.random.default_rng(1)
    spins, change = rng.standard_normal((2, 50, 3))
    slope = 50 * (energy(spins + 1e-6 * change, couplings) - energy(spins - 1e-6 * change, couplings)) / 2e-6
    assert np.isclose(slope, (ex.local_fields(spins, couplings) * change).sum(), atol=1e-6)


def test_lattice_neighbours_are_at_the_right_distances():
    L, box = 6, np.array([ex.A1, ex.A2]) * 6
    lattice = Lattice.of(L)
    for table, distance in ((lattice.first, 1 / math.sqrt(3)), (lattice.second, 1.0), (lattice.third, 2 / math.sqrt(3))):
        apart = (lattice.positions[table] - lattice.positions[:, None]) @ np.linalg.inv(box)
        assert np.allclose(np.linalg.norm((apart - np.round(apart)) @ box, axis=-1), distance)
        assert all(len(set(row)) == table.shape[1] for row in table.tolist())


@pytest.mark.parametrize("name", ["translation", "rotation", "inversion"])
def test_hamiltonian_has_the_symmetries_of_the_lattice(name):
    """Translations; C3 about an A site together with a spin rotation by 120 degrees; inversion about a bond centre (swaps A and B)."""
    L, rng = 6, np.random.default_rng(2)
    couplings = Couplings.from_parameters(FULL | {"hx": 0, "hy": 0})
    positions, turn = Lattice.of(L).positions, np.eye(3)
    if name == "translation":
        moved = positions + np.array(ex.A1) + 2 * np.array(ex.A2)
    elif name == "inversion":
        moved = np.array(ex.B_OFFSET) - positions
    else:
        c, s = -0.5, math.sqrt(3) / 2
        turn = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])  # U: the spins turn against the lattice
        moved = positions @ turn[:2, :2]
    box = np.array([ex.A1, ex.A2]) * L
    apart = (moved[:, None] - positions) @ np.linalg.inv(box)
    distance = np.linalg.norm((apart - np.round(apart)) @ box, axis=-1)
    target = distance.argmin(1)
    assert distance.min(1).max() < 1e-9
    spins = random_spins(rng, 4, 2 * L * L)
    images = np.empty_like(spins)
    images[:, target] = spins @ turn.T
    assert np.allclose(energy(images, couplings), energy(spins, couplings), atol=1e-13)
    if name == "rotation":
        images[:, target] = spins
        assert not np.allclose(energy(images, couplings), energy(spins, couplings), atol=1e-3)


def test_fourier_form_gives_the_energy():
    L, couplings = 6, Couplings.from_parameters(FULL | {"hx": 0, "hy": 0, "hz": 0})
    spins = random_spins(np.random.default_rng(3), 2 * L * L).reshape(L, L, 6)
    modes = np.fft.fft2(spins, axes=(0, 1)) / L
    q = np.stack(np.meshgrid(np.arange(L), np.arange(L), indexing="ij"), -1) / L
    J = ex.exchange_fourier(couplings, q)
    assert np.allclose(J, J.conj().swapaxes(-1, -2))
    total = np.einsum("mni,mnij,mnj", modes.conj(), J, modes).real / 2
    assert np.isclose(total / (2 * L * L), energy(spins.reshape(-1, 3), couplings), atol=1e-13)


def test_bound_reproduces_published_values_and_lies_below_random_states():
    assert luttinger_tisza(Couplings.from_parameters(couplings_of("fitting_param_2")))[0] == pytest.approx(-1.144036, abs=1e-6)
    assert luttinger_tisza(Couplings.from_parameters(couplings_of("emily")))[0] == pytest.approx(-1.060748, abs=1e-6)
    for seed in range(5):
        couplings = Couplings.from_parameters(drawn(seed, frustrated=False) | {"hz": 0.2 * seed})
        bound, _ = luttinger_tisza(couplings)
        assert bound <= luttinger_tisza(couplings, 12)[0] + 1e-9
        assert bound < energy(random_spins(np.random.default_rng(seed), 20, 72), couplings).min()


def spiral(j, h):
    """Energy per site of the spiral on Gamma-M with q = h b."""
    c = math.cos(2 * math.pi * h)
    return -0.5 * math.sqrt((2 * j - 1) ** 2 + 4 + j**2 + 2 * ((2 - 6 * j) * c + j * (2 * j - 1) * (2 * c * c - 1)))


@pytest.mark.parametrize("j, h, value", [(0.26, 0.0783, None), (0.30, 0.1816, -1.069268), (0.35, 0.2883, -1.054314)])
def test_bound_of_the_spiral_region_is_the_spiral(j, h, value):
    bound, q = luttinger_tisza(Couplings(J3xy=j))
    exact = math.acos((1 - 3 * j) / (2 * j * (1 - 2 * j))) / (2 * math.pi)
    assert exact == pytest.approx(h, abs=1e-4)
    assert bound == pytest.approx(spiral(j, exact), abs=1e-9)
    assert value is None or bound == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("mode", ["screening", "fast", pytest.param("accurate", marks=pytest.mark.slow)])
@pytest.mark.parametrize("j", [0.1, 0.249, 0.25, 0.26, 0.30, 0.35, 0.3903, 0.3905, 0.6])
def test_exact_truths(mode, j):
    """FM, spirals at the wave vectors that the lattice has, zigzag, and both boundaries."""
    result, L = simulate({"J3xy": j, "J1z": 0.2, "J3z": -0.3}, mode=mode), MODES[mode].L
    best = min(-1.5 + 1.5 * j, -(1 + 3 * j) / 2, *(spiral(j, m / L) for m in range(L // 2 + 1)))
    assert result.energy <= best + 1e-9  # a modulation of another kind may gain on a finite lattice
    if j <= 0.25 or j >= 0.3904:
        assert result.energy == pytest.approx(best, abs=1e-6)
        assert result.energy == pytest.approx(result.bound, abs=1e-6)
    assert result.converged and result.torque <= ex.TORQUE
    assert result.energy >= result.bound - 1e-9


def test_ordered_states_have_their_closed_form_energies():
    j, L = 0.37, 4
    i, k = ex.grid(L, L)
    axis = np.array([1.0, 0, 0])
    orders = {
        "FM": (np.ones(16), np.ones(16), -1.5 + 1.5 * j),
        "Neel": (np.ones(16), -np.ones(16), 1.5 - 1.5 * j),
        "zigzag": ((-1.0) ** k, -((-1.0) ** k), -(1 + 3 * j) / 2),
        "stripy": ((-1.0) ** k, (-1.0) ** k, (1 + 3 * j) / 2),
        "double zigzag": (1 - 2.0 * (k // 2 % 2), 1 - 2.0 * ((k + 1) // 2 % 2), -1),
    }
    for name, (a, b, value) in orders.items():
        spins = np.stack([a, b], 1).reshape(-1, 1) * axis
        assert energy(spins, Couplings(J3xy=j)) == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize("mode", ["screening", "fast", pytest.param("accurate", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", list(MEV))
def test_published_sets_reach_the_best_known_energies(name, mode):
    result = simulate(couplings_of(name), mode=mode)
    assert result.energy <= BEST[name] + 5e-7  # the table has six digits
    assert result.bound < result.energy
    assert result.energy == pytest.approx(float(energy(result.spins, Couplings.from_parameters(couplings_of(name)))), abs=1e-12)
    assert np.allclose(np.linalg.norm(result.spins, axis=1), 1, atol=1e-12)
    torque = np.cross(result.spins, ex.local_fields(result.spins, Couplings.from_parameters(couplings_of(name))))
    assert np.linalg.norm(torque, axis=1).max() == pytest.approx(result.torque, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_accurate_is_never_above_fast(seed):
    p = drawn(seed)
    fast, accurate = simulate(p, mode="fast", seed=seed), simulate(p, mode="accurate", seed=seed)
    assert accurate.energy <= fast.energy + 1e-10
    assert accurate.energy >= accurate.bound - 1e-9


@pytest.mark.parametrize("beta", [0.05, 1.0, 20.0, 2000.0])
@pytest.mark.parametrize("direction", [(0, 0, 1), (0, 0, -1), (0.6, -0.3, 0.2)])
def test_heat_bath_is_the_boltzmann_distribution(beta, direction):
    """Mean and second moment of cos to -H against Langevin's function, the azimuth uniform: each within 5 standard errors of n draws."""
    n, H = 40_000, np.array(direction, np.float32)
    draws = ex.heat_bath(np.tile(H[:, None, None], (1, n, 1)), beta, np.random.default_rng(4))[:, :, 0].astype(float)
    assert np.allclose((draws**2).sum(0), 1, atol=1e-5)
    size = float(np.linalg.norm(H))
    x, axis = beta * size, -H.astype(float) / size
    cosine, langevin = axis @ draws, 1 / math.tanh(x) - 1 / x
    second = 1 - 2 * langevin / x
    assert abs((1 - cosine).mean() - (1 - langevin)) < 5 * math.sqrt((second - langevin**2) / n) + 1e-6
    assert abs((cosine**2).mean() - second) < 5 * (cosine**2).std() / math.sqrt(n) + 1e-5
    across = draws - axis[:, None] * cosine
    spreads = np.linalg.eigvalsh(across @ across.T / n)  # 0 along H, equal in both other directions
    expected = (1 - second) / 2
    assert spreads[0] < 1e-6 and abs(spreads[1:] - expected).max() < 10 * expected / math.sqrt(n) + 1e-6
    assert abs(across.mean(1)).max() < 5 * math.sqrt(2 * expected / n)


def test_over_relaxation_and_alignment_never_raise_the_energy():
    couplings = Couplings.from_parameters(FULL)
    clusters = Clusters.of([Cell(6, 0, 6)], couplings)
    spins = random_spins(np.random.default_rng(5), 4, 72).transpose(2, 1, 0).copy()
    start = clusters.energies(spins)
    for g, sites in enumerate(clusters.groups):
        ex.over_relax(spins[:, sites], clusters.local_fields(spins, g))
    assert np.allclose(clusters.energies(spins), start, atol=1e-12)
    assert np.allclose((spins**2).sum(0), 1, atol=1e-12)
    for g, sites in enumerate(clusters.groups):
        ex.align(spins[:, sites], clusters.local_fields(spins, g))
    lower = clusters.energies(spins)
    assert (lower < start).all()
    relaxed, energies, torque = ex.relax(clusters, spins, 2000)
    assert (energies < lower).all() and torque.max() <= ex.TORQUE
    again = ex.relax(clusters, relaxed, 10)[1]
    assert np.allclose(again, energies, atol=1e-13)


def test_magnetic_cells_are_all_the_sublattices():
    assert len(ex.magnetic_cells(12, 144)) == 90  # subgroups of Z12 x Z12: 15 of Z4 x Z4 times 6 of Z3 x Z3
    for cell in ex.magnetic_cells(6, 36):
        i, j = ex.grid(12, 12)
        member = cell.member(i, j).reshape(12, 12)
        assert np.array_equal(member, np.roll(member, 6, 0)) and np.array_equal(member, np.roll(member, 6, 1))
        assert (np.bincount(member.ravel()) == 144 // cell.size).all()


@pytest.mark.parametrize("L", [4, 5, 7, 9])
def test_other_sizes_second_neighbours_and_field(L):
    p = {"J3xy": 0.3, "J2xy": 0.3, "J2z": 0.2, "D": 0.1, "hz": 0.4, "hx": 0.2}
    result = simulate(p, L=L, mode="screening")
    assert result.converged and result.bound <= result.energy
    polarised = np.tile(np.array([0.2, 0, 0.4]) / math.hypot(0.2, 0.4), (2 * L * L, 1))
    assert result.energy <= energy(polarised, Couplings.from_parameters(p))


def test_all_couplings_zero_and_a_field_alone():
    free = simulate(Couplings(J1xy=0.0), mode="screening")
    assert free.energy == 0 and free.bound == 0 and free.converged
    assert np.allclose(np.linalg.norm(free.spins, axis=1), 1)
    field = simulate(Couplings(J1xy=0.0, hx=0.3, hz=-0.4), mode="screening")
    assert np.allclose(field.spins, [0.6, 0, -0.8], atol=1e-6) and field.energy == pytest.approx(-0.5)


DIGEST = """
import sys; sys.path.insert(0, {path!r})
import hashlib, explorer as spin
runs = [spin.simulate(dict(J3xy=0.31, D=0.1, F=0.2, J2xy=j2), mode="fast", seed=3) for j2 in (0.0, 0.1)]
print(hashlib.sha256(b"".join(r.spins.tobytes() for r in runs)).hexdigest())
"""


def test_same_seed_gives_the_same_spins_whatever_the_threads():
    code = DIGEST.format(path=os.path.dirname(os.path.abspath(__file__)))
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    runs = [
        subprocess.run([sys.executable, "-c", code], env=os.environ | dict.fromkeys(names, n), capture_output=True, text=True, check=True)
        for n in ("1", "1", "4")
    ]
    assert len({r.stdout for r in runs}) == 1


def test_seeds_differ_and_the_result_unpacks():
    spins, positions, value = simulate({"J3xy": 0.2}, mode="screening", seed=1)
    other, _, same = simulate({"J3xy": 0.2}, mode="screening", seed=2)
    assert spins.shape == (128, 3) and positions.shape == (128, 2) and not np.allclose(spins, other)
    assert value == pytest.approx(same, abs=1e-9) and value == pytest.approx(-1.2, abs=1e-9)


@pytest.mark.parametrize(
    "parameters, options, says",
    [
        ({"J9": 1.0}, {}, "unknown coupling 'J9'"),
        ({"D": float("nan")}, {}, "coupling D = nan"),
        ({"D": float("inf")}, {}, "coupling D = inf"),
        ({"D": "0.1"}, {}, "coupling D = '0.1'"),
        ({"D": None}, {}, "coupling D = None"),
        ({"D": 1e9}, {}, "coupling D = 1000000000.0: give a number up to 1000"),
        ({}, {"L": 3}, "L = 3: give a whole number, at least 4"),
        ({}, {"L": 12.0}, "L = 12.0"),
        ({}, {"mode": "quick"}, "unknown mode 'quick': use screening, fast, accurate"),
        ({}, {"seed": -1}, "seed -1"),
    ],
)
def test_bad_input_is_one_line(parameters, options, says):
    with pytest.raises(ex.InputError) as refusal:
        simulate(parameters, **options)
    assert says in str(refusal.value) and "\n" not in str(refusal.value) and isinstance(refusal.value, ExplorerError)


# =====================================================================================================================
# Phases: ideal states, laws, charges, calibration
# =====================================================================================================================

P = PhaseType
SIZES = (6, 8, 9, 12, 15, 24)


def ideal_cases(L):
    """(name, options, expected phase, expected description or None) of all ideal states that fit L."""
    step = 1 / L
    yield "ferromagnet", {}, P.FM, "ferromagnet"
    yield "neel", {}, P.AFM, "Néel"
    for domain in range(3) if L % 2 == 0 else ():
        yield "zigzag", {"domain": domain}, P.ZIGZAG, "zigzag"
        yield "stripy", {"domain": domain}, P.SINGLE_Q, "stripy"
        if L % 4 == 0:
            yield "double_zigzag", {"domain": domain}, P.SINGLE_Q, "double zigzag"
    if L % 2 == 0:
        yield "triple_q", {"q": (0, 0.5), "q2": (0.5, 0), "q3": (0.5, 0.5)}, P.TRIPLE_Q, None
        yield "double_q", {"q": (0, 0.5), "q2": (0.5, 0)}, P.ZIGZAG, "zigzag, two domains"
        yield "double_q", {"q": (0, 0.5), "q2": (0.5, 0), "antiferro": True}, P.SINGLE_Q, "stripy, two domains"
    if L % 6 == 0:
        yield "double_q", {"q": (0, 0.5), "q2": (1 / 3, 2 / 3)}, P.UNKNOWN, None
    for handedness in (1, -1) if L % 3 == 0 else ():
        yield "order_120", {"handedness": handedness}, P.ORDER_120, None
    for m in range(1, (L + 1) // 2):
        for q in ((m, 0), (0, m), (m, m)):
            yield "spiral", {"q": np.array(q) * step, "antiferro": m % 2 == 1}, P.INCOMM_GAMMA_M, None
    for m in range(1, -(-L // 3)):
        for q in ((m, -m), (2 * m, m), (m, 2 * m)):
            yield "spiral", {"q": np.array(q) * step, "handedness": -1}, P.INCOMM_GAMMA_K, None
    for m in sorted({1, 2, L // 6, L // 4}):
        a, b, c = np.array([[m, 0], [0, m], [-m, -m]]) * step
        yield "meron", {"q": a, "q2": b}, P.MERON_ANTIMERON, None
        yield "chiral_stripe", {"q": b, "q2": c}, P.MERON_ANTIMERON, None
        yield "double_q", {"q": a, "q2": c}, P.INCOMMENSURATE, None
        yield "triple_q", {"q": a, "q2": b, "q3": c}, P.TRIPLE_Q, None
        yield "conical", {"q": a}, P.INCOMM_GAMMA_M, None
        if 2 * m < L // 2:
            yield "collinear", {"q": a}, P.SINGLE_Q, None
    for m, n in ((1, 3), (1, 4), (2, 4), (2, 5), (5, 2)):
        if max(m, n) < L // 2:
            yield "beating", {"q": (m * step, 0), "q2": (n * step, 0)}, P.BEATING, None


def tilted(spins, degrees, rng):
    """Each spin turned about a random axis at right angles by a normally distributed angle with this root mean square."""
    sideways = normalised(np.cross(spins, rng.normal(size=spins.shape)))
    angle = np.radians(degrees) * rng.normal(size=(len(spins), 1))
    return np.cos(angle) * spins + np.sin(angle) * sideways


def random_ideal_state(L, rng):
    """Any ideal state, randomly turned as a whole: every name is equally likely, then its domain and its wave vectors."""
    names = ["ferromagnet", "neel", "random", "spiral", "spiral", "collinear", "conical", "double_q", "meron", "chiral_stripe", "triple_q"]
    names += ["beating"] * (L >= 8) + ["zigzag", "stripy"] * (L % 2 == 0) + ["double_zigzag"] * (L % 4 == 0) + ["order_120"] * (L % 3 == 0)
    name = names[rng.integers(len(names))]
    m = int(rng.integers(1, max(2, L // (6 if name in ("meron", "chiral_stripe") else 3))))
    first, second, third = np.array([[m, 0], [0, m], [-m, -m]])[rng.permutation(3)] / L
    if name == "beating":
        second = first / m * int(rng.integers(m + 2, max(m + 3, L // 2)))
    if name == "spiral" and rng.random() < 0.5:
        first = np.array([[m, -m], [2 * m, m], [m, 2 * m]])[rng.integers(3)] / L
    domain, handedness = int(rng.integers(3)), int(rng.choice([1, -1]))
    spins = ideal_state(name, L, domain=domain, q=first, q2=second, q3=third, antiferro=rng.random() < 0.5, handedness=handedness, rng=rng)
    return spins @ np.linalg.qr(rng.normal(size=(3, 3)))[0]


def calibration(rng, states, sizes=(8, 12, 24)):
    """(confidence, margin, 1 if the label is that of the clean state) of as many spoilt ideal states of each size, shape (., 3).

    Spoilt: one ideal state mixed with up to 40 % of another at each site, then tilted by up to 45 degrees. UNKNOWN states are left out.
    """
    rows = []
    for L in np.repeat(sizes, states).tolist():
        clean, other = random_ideal_state(L, rng), random_ideal_state(L, rng)
        share = 0.4 * rng.random()
        found = classify(tilted(normalised((1 - share) * clean + share * other), 45 * rng.random(), rng), L)
        if found.confidence > 0:
            rows.append((found.confidence, found.margin, found.phase == classify(clean, L).phase))
    return np.array(rows, dtype=float)


def check(spins, L, phase, what):
    found = classify(spins, L)
    assert found.phase is phase, (what, found)
    assert 0 <= found.confidence <= 1 and found.path and found.description
    return found


def site_permutation(L, image):
    """Permutation of the sites by a symmetry of the lattice: image maps positions (N, 2), relative to the centre of a hexagon."""
    i, j, s = np.unravel_index(np.arange(2 * L * L), (L, L, 2))
    xy = np.stack([i + j / 2, j * np.sqrt(0.75) + (s + 1) / np.sqrt(3)], axis=1)  # centre: one bond length below an A site
    x, y = image(xy).T
    for sub in (0, 1):
        b = (y - (sub + 1) / np.sqrt(3)) / np.sqrt(0.75)
        a = x - b / 2
        fits = np.abs(a - np.round(a)) + np.abs(b - np.round(b)) < 1e-6
        s = np.where(fits, sub, s)
        i, j = np.where(fits, np.round(a), i).astype(int), np.where(fits, np.round(b), j).astype(int)
    to = ((i % L) * L + j % L) * 2 + s
    assert sorted(to) == list(range(2 * L * L))
    return to


def symmetries(L):
    c, s = 0.5, np.sqrt(0.75)
    return [site_permutation(L, lambda xy: xy @ np.array([[c, s], [-s, c]])), site_permutation(L, lambda xy: xy * [-1, 1])]


@pytest.mark.parametrize("L", SIZES)
def test_ideal_states_are_named(L):
    for name, options, phase, description in ideal_cases(L):
        found = check(ideal_state(name, L, **options), L, phase, (name, options))
        assert description in (None, found.description) and found.confidence > 0.85, (name, options, found)


@pytest.mark.parametrize("L", SIZES)
@pytest.mark.parametrize("degrees", [0, 10])
def test_labels_obey_the_symmetries(L, degrees):
    rng, generators = np.random.default_rng(L), symmetries(L)
    for name, options, phase, _ in ideal_cases(L):
        spins = tilted(ideal_state(name, L, **options), degrees, rng)
        for _ in range(3):
            spins = np.roll(spins.reshape(L, L, 2, 3), rng.integers(L, size=2), axis=(0, 1)).reshape(-1, 3)
            moved = np.empty_like(spins)
            moved[generators[rng.integers(2)]] = spins
            spins = moved @ np.linalg.qr(rng.normal(size=(3, 3)))[0] * rng.choice([-1, 1])
            check(spins, L, phase, (name, options))


def test_each_symmetry_alone_changes_no_number():
    rng, L = np.random.default_rng(1), 12
    for name, options in (("meron", {"q": (1 / 12, 0), "q2": (0, 1 / 6)}), ("zigzag", {}), ("spiral", {"q": (1 / 3, 1 / 6)})):
        spins = tilted(ideal_state(name, L, **options), 10, rng)
        rotated = np.empty((2, *spins.shape))
        for moved, to in zip(rotated, symmetries(L)):
            moved[to] = spins
        translated = np.roll(spins.reshape(L, L, 2, 3), (3, 5), axis=(0, 1)).reshape(-1, 3)
        for other in (*rotated, translated, -spins, spins @ np.linalg.qr(rng.normal(size=(3, 3)))[0]):
            a, b = classify(spins, L), classify(other, L)
            assert a.phase is b.phase and a.margin == pytest.approx(b.margin, abs=1e-6)
            assert [w.weight for w in a.wave_vectors] == pytest.approx([w.weight for w in b.wave_vectors], abs=1e-9)


@pytest.mark.parametrize("L", [6, 8, 9, 12])
def test_tilings_have_the_same_label(L):
    rng = np.random.default_rng(L)
    states = [(n, tilted(ideal_state(n, L, **o), d, rng), p) for n, o, p, _ in ideal_cases(L) for d in (0, 10)]
    states += [("random", ideal_state("random", L, rng=rng), P.DISORDERED) for _ in range(5)]
    for name, spins, phase in states:
        for times in (2, 3):
            tiled = np.tile(spins.reshape(L, L, 2, 3), (times, times, 1, 1)).reshape(-1, 3)
            found = check(tiled, L * times, phase, name)
            if times == 2:
                noisy = classify(tilted(tiled, 5, rng), 2 * L)
                assert noisy.phase is phase or name == "random", (name, noisy)
            assert found.confidence == pytest.approx(classify(spins, L).confidence, abs=1e-6)


@pytest.mark.parametrize("L", [*SIZES, 36])
def test_random_spins_are_disordered(L):
    rng = np.random.default_rng(L)
    found = [classify(ideal_state("random", L, rng=rng), L).phase for _ in range(100 if L < 24 else 30)]
    assert found.count(P.DISORDERED) == len(found)


@pytest.mark.parametrize("L", [8, 12, 15, 24])
def test_spirals_that_do_not_fit(L):
    rng = np.random.default_rng(L)
    for h in np.linspace(1.3, L / 2 - 1.3, 25) / L:
        for q in ((h, 0), (0, h), (h, h)):
            check(tilted(ideal_state("spiral", L, q=q), 5, rng), L, P.INCOMM_GAMMA_M, q)
    for h in np.linspace(1.3, L / 3 - 0.9, 25) / L:
        check(tilted(ideal_state("spiral", L, q=(h, -h)), 5, rng), L, P.INCOMM_GAMMA_K, h)


def test_distorted_spiral_is_one_wave_vector():
    """Angles that bunch up with strength a make harmonics 2q, 3q, ... (a = 0.6: 21 % of the weight outside q)."""
    for L, m in ((12, 2), (24, 3), (24, 5)):
        theta = 2 * np.pi * m / L * np.arange(L)
        for order in (1, 2, 3, 4):
            bent = theta + 0.6 * np.sin(order * theta)
            row = np.stack([np.cos(bent), np.sin(bent), 0 * bent], axis=1)
            spins = np.broadcast_to(row[:, None, None], (L, L, 2, 3)).reshape(-1, 3)
            check(spins, L, P.INCOMM_GAMMA_M, (L, m, order))


def test_parseval():
    rng = np.random.default_rng(0)
    for L in SIZES:
        intensity = structure_factor(ideal_state("random", L, rng=rng), L)
        assert intensity.sum() == pytest.approx(1, abs=1e-12)
        assert intensity == pytest.approx(np.roll(intensity[::-1, ::-1], 1, axis=(0, 1)))
    assert structure_factor(ideal_state("zigzag", 8, domain=1), 8)[4, 0] == pytest.approx(1)


def skyrmion(L, radius):
    """A down core in an up background on both sublattices; 2 pi turns are complete well inside the lattice."""
    i, j, s = np.unravel_index(np.arange(2 * L * L), (L, L, 2))
    x, y = i + j / 2 - 0.75 * L, j * np.sqrt(0.75) + s / np.sqrt(3) - 0.4330127 * L
    theta = np.pi * np.clip(1 - np.hypot(x, y) / radius, 0, 1)
    phi = np.arctan2(y, x)
    return np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], axis=1)


def test_topological_charge():
    rng, spins = np.random.default_rng(3), skyrmion(24, 8.3)
    density, totals = topological_charge(spins, 24)
    assert abs(totals) == pytest.approx([1, 1], abs=1e-9) and density.sum() == pytest.approx(totals.sum())
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    rotation *= np.linalg.det(rotation)
    assert topological_charge(spins @ rotation, 24)[0] == pytest.approx(density, abs=1e-9)
    assert topological_charge(-spins, 24)[0] == pytest.approx(-density, abs=1e-9)
    wild = topological_charge(ideal_state("random", 12, rng=rng), 12)[1]
    assert wild == pytest.approx(np.round(wild), abs=1e-9)


def test_coplanar_states_have_no_charge():
    for name, options in (
        ("double_q", {"q": (1 / 6, 0), "q2": (0, 1 / 12)}),
        ("order_120", {}),
        ("spiral", {"q": (1 / 4, 1 / 6)}),
        ("zigzag", {}),
    ):
        spins = ideal_state(name, 12, **options)
        assert max(np.abs(x).max() for x in triangle_chirality(spins, 12)) < 1e-9


def test_confidence_is_the_fraction_right():
    rows = calibration(np.random.default_rng(11), 200)
    assert len(rows) > 580
    for low, high, bound in ((0, 0.8, 0.2), (0.8, 0.95, 0.06), (0.95, 0.99, 0.02), (0.99, 1.01, 0.01)):
        some = rows[(rows[:, 0] >= low) & (rows[:, 0] < high)]
        assert abs(some[:, 0].mean() - some[:, 2].mean()) < bound, (low, len(some), some.mean(axis=0))


def test_bad_input_of_the_classifier():
    good = ideal_state("zigzag", 8)
    with_nan, long = good.copy(), good.copy()
    with_nan[5, 1], long[7] = np.nan, 1.1 * good[7]
    for spins, L, words in (
        (good, 9, "shape"),
        (good[:, :2], 8, "shape"),
        (with_nan, 8, "site 5"),
        (long, 8, "site 7"),
        (good[:18], 3, "L = 3"),
    ):
        with pytest.raises(ex.InputError, match=words) as error:
            classify(spins, L)
        assert "\n" not in str(error.value)
    assert classify(good * (1 + 1e-5), 8).phase is P.ZIGZAG
    assert classify(good.tolist(), 8).phase is P.ZIGZAG


def test_the_path_can_be_read():
    path = classify(ideal_state("zigzag", 12, domain=1), 12).path
    assert any("100% at M (1/2, 0): one wave vector" in sentence for sentence in path), path


# =====================================================================================================================
# Surrogate, sampling, history, hostile simulations
# =====================================================================================================================

SMALL_BOX = Box.of({"x": (-1, 1), "y": (0, 5)})


class Toy(enum.Enum):
    LOW = 0
    MIDDLE = 1
    HIGH = 2
    UNKNOWN = 3


def toy_label(u):  # of a unit point
    return Toy(int(u[1] > 0.3 + 0.3 * np.sin(3 * u[0])) + int(u[1] > 0.8)).name


def toy_simulation(params):
    spins = np.zeros((8, 3))
    spins[:, Toy[toy_label(SMALL_BOX.to_unit(params))].value] = 1
    return spins, np.zeros((8, 2)), -(params["x"] ** 2)


def toy_classify(spins, L):
    return SimpleNamespace(phase=Toy(int(np.argmax(np.abs(spins).sum(0)))), confidence=0.9, path=("largest component",))


def hostile(params):
    """What happens depends on the point, so that a repetition does the same."""
    if os.environ["TMPDIR"] != os.getcwd() or os.listdir("."):
        raise RuntimeError("no directory of my own")
    Path("litter").write_text("x")
    kind = int(round(params["x"]))
    if kind == 1:
        raise ValueError("no such state")
    if kind == 2:
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == 3:
        ctypes.PyDLL(None).sleep(60)  # holds the interpreter's lock, so that only a kill ends it
    spins, positions, energy = toy_simulation({"x": 0.0, "y": 1.0})
    if kind == 4:
        return spins[:, :2], positions, energy
    if kind == 5:
        return spins * np.nan, positions, energy
    if kind == 6:
        return spins * 2, positions, energy
    if kind == 7:
        return spins, positions
    return spins, positions, energy


def make_run(path, **changes):
    return ActiveLearningExplorer(
        path, **({"L": 2, "parameters": SMALL_BOX, "classify": toy_classify, "target_phase": Toy.MIDDLE} | changes)
    )


def explored(order=lambda points: points, box=SMALL_BOX, rename=lambda label: label, rounds=3, **how):
    explorer = Explorer(box, seed=4, target=rename("MIDDLE"), **how)
    for _ in range(rounds):
        for point in order(explorer.ask(9)):
            explorer.tell(point.id, rename(toy_label(point.unit)))
    return explorer


# ---- laws of the core


def test_order_of_telling_scale_and_repetition_do_not_matter():
    plain = explored()
    assert explored(order=lambda points: points[::-1]).points == plain.points
    assert explored(box=Box.of({"a": (3, 3.001), "b": (-1e6, 2e6)})).points == plain.points
    again = explored(rounds=2)
    for point in again.points[::-1]:
        again.tell(point.id, toy_label(point.unit))
    assert again.ask(9) == plain.points[18:]
    assert explored(strategy="uncertainty").points != plain.points


def test_relabelling_permutes():
    swap = {"LOW": "z", "MIDDLE": "m", "HIGH": "a"}
    plain, other = explored().surrogate(), explored(rename=swap.get).surrogate()
    u = np.random.default_rng(0).random((50, 2))
    columns = [other.labels.index(swap[label]) for label in plain.labels]
    np.testing.assert_allclose(other.probabilities(u)[:, columns], plain.probabilities(u), atol=1e-3)


def test_probabilities_do_not_depend_on_the_order_of_points():
    rng = np.random.default_rng(1)
    u = ex.on_grain(rng.random((60, 3)))
    labels = np.array([toy_label(x) for x in u])
    shuffled = rng.permutation(60)
    a, b = ex.fit_labels(u, labels, np.ones(60)), ex.fit_labels(u[shuffled], labels[shuffled], np.ones(60))
    assert np.array_equal(a.probabilities(u), b.probabilities(u))


@pytest.mark.parametrize("strategy", ex.STRATEGIES)
def test_no_point_is_asked_twice_and_batches_are_diverse(strategy):
    explorer = explored(strategy=strategy, rounds=8)
    u = np.array([point.unit for point in explorer.points])
    assert len({point.unit for point in explorer.points}) == 72 and (u >= 0).all() and (u <= 1).all()
    d = np.sqrt(ex.squared_distances(u, u, 1.0)) + np.eye(72)
    assert d.min() > (1e-4 if strategy == "random" else 2e-3)
    assert explorer.new_points([explorer.points[5].unit], "user") == []


def test_pending_points_are_avoided_and_failures_are_not_learnt():
    explorer = explored(rounds=2)
    first, second = explorer.ask(5), explorer.ask(5)
    assert not {p.unit for p in first} & {p.unit for p in second} and len(explorer.pending) == 10
    explorer.no_phase = frozenset({"UNKNOWN"})
    before = explorer.surrogate().coefficients
    explorer.tell(first[0].id, failure="TIMEOUT")
    explorer.tell(first[1].id, "UNKNOWN", 0.0)
    assert np.array_equal(explorer.surrogate().coefficients, before)
    assert explorer.failed == [first[0]] and first[0] not in explorer.pending
    explorer.retry([first[0].id, first[1].id, 0])
    assert first[0] in explorer.pending and first[1] not in explorer.pending
    explorer.tell(first[0].id, "LOW")
    with pytest.raises(ex.InputError, match="contradicts"):
        explorer.tell(first[0].id, "HIGH")
    with pytest.raises(ex.InputError, match="never asked"):
        explorer.tell(99, "LOW")


def test_bad_input_of_the_core():
    for bounds in ({"x": (1, -1)}, {"x": (0, 0)}, {"x": (0, float("nan"))}, {"x": "ab"}, {"x": (1,)}, {}):
        with pytest.raises(ex.InputError):
            Box.of(bounds)
    with pytest.raises(ex.InputError, match="balanced, uncertainty"):
        Explorer(SMALL_BOX, strategy="greedy")
    with pytest.raises(ex.InputError, match="bounds"):
        SMALL_BOX.to_unit({"x": 2, "y": 1})
    with pytest.raises(ex.InputError, match="no point has a label"):
        Explorer(SMALL_BOX).surrogate()
    with pytest.raises(ex.InputError):
        Explorer(SMALL_BOX).ask(0)


def test_one_phase_and_stop_rules():
    explorer = Explorer(SMALL_BOX, target="B")
    for _ in range(5):
        for point in explorer.ask(6):
            explorer.tell(point.id, "A")
        explorer.iterations.append(explorer.summarise())
    u = np.array([point.unit for point in explorer.points])
    probes = explorer.probes()
    assert np.sqrt(ex.squared_distances(probes, u, 1.0).min(1)).max() < 0.3  # an even cover
    assert explorer.should_stop() == "" and "changed" in explorer.should_stop(change_below=0.01)
    assert "entropy" in explorer.should_stop(entropy_below=0.01) and explorer.should_stop(entropy_below=-1.0) == ""


# ---- surrogate and sampling


def spiral_diagram(u):
    """D = E = F = G = J3z = 0: J3xy, J1z in [-1, 1]; Luttinger-Tisza on Γ-M, where the greatest |J(q)| is."""
    j, z = 2 * u[:, 0] - 1, 2 * u[:, 1] - 1
    wave = np.exp(2j * np.pi * np.linspace(0, 0.5, 201))
    best = np.abs(j[:, None] * (2 * wave + wave.conj()) - (2 + wave))
    k, best = best.argmax(1), best.max(1)
    names = np.where(k == 0, "FM", np.where(k == 200, "ZIGZAG", "SPIRAL"))
    return np.where(3 * np.abs(z) > best, np.where(z > 0, "AFM_Z", "FM_Z"), names)


GRID = np.array([((i + 0.5) / 40, (k + 0.5) / 40) for k in range(40) for i in range(40)])


def wrong(surrogate, diagram=spiral_diagram):
    return float(np.mean(surrogate.predict(GRID) != diagram(GRID)))


def fitted(u, diagram=spiral_diagram):
    return ex.fit_labels(u, diagram(u), np.ones(len(u)))


def sample(strategy, seed, total=128, batch=9, target="ZIGZAG", diagram=spiral_diagram):
    explorer = Explorer(Box.of({"J3xy": (-1, 1), "J1z": (-1, 1)}), seed, strategy, target)
    explorer.register(explorer.new_points(ex.latin_hypercube(20, 2, np.random.default_rng(seed)).tolist(), "lhs"))
    while explorer.pending:
        for point in explorer.pending:
            explorer.tell(point.id, str(diagram(np.array([point.unit]))[0]))
        if len(explorer.points) < total:
            explorer.ask(min(batch, total - len(explorer.points)))
    return wrong(explorer.surrogate(), diagram)


def test_sampling_figure():
    assert sample("uncertainty", 1) < 0.01  # 128 of 1600; measured 0.003 to 0.006
    assert sample("balanced", 0) < 0.02


@pytest.mark.slow
def test_sampling_figure_in_full():
    grid = np.array([((i + 0.5) / 16, (k + 0.5) / 8) for k in range(8) for i in range(16)])
    rows = {"grid": [wrong(fitted(grid))], "random": [wrong(fitted(np.random.default_rng(s).random((128, 2)))) for s in range(5)]}
    rows |= {strategy: [sample(strategy, s) for s in range(5)] for strategy in ex.STRATEGIES}
    for name, row in rows.items():
        print(f"{name:12s} mean {np.mean(row):.4f} worst {max(row):.4f}")
    assert max(rows["balanced"]) < 0.02 and max(rows["uncertainty"]) < 0.01
    assert max(rows["uncertainty"]) < min(min(rows["grid"]), min(rows["random"]))


def test_calibration():
    """Error, log loss and expected calibration error on the diagram above, from 150 random points; measured 0.03, 0.10, 0.015."""
    figures = []
    for seed in range(3):
        u = np.random.default_rng(seed).random((150, 2))
        s, truth = fitted(u), spiral_diagram(GRID)
        p = s.probabilities(GRID)
        own = p[np.arange(len(p)), [s.labels.index(label) for label in truth]]
        right, sure = np.array(s.labels)[p.argmax(1)] == truth, p.max(1)
        bins = np.minimum((sure * 10).astype(int), 9)
        ece = sum(abs(right[bins == b].mean() - sure[bins == b].mean()) * np.mean(bins == b) for b in set(bins))
        figures.append((1 - right.mean(), -np.log(own).mean(), ece))
        np.testing.assert_allclose(p.sum(1), 1)
    error, loss, ece = np.mean(figures, axis=0)
    assert error < 0.06 and loss < 0.2 and ece < 0.04


def test_gradients_of_the_evidence(monkeypatch):
    seen = []

    def check(loss, x, **_):
        x = x + 0.1
        numeric = [(loss(x + e)[0] - loss(x - e)[0]) / 2e-5 for e in 1e-5 * np.eye(len(x))]
        seen.append(np.abs(loss(x)[1] - numeric).max())
        return x

    monkeypatch.setattr(ex, "minimise", check)
    rng = np.random.default_rng(0)
    u, onehot, weights = rng.random((20, 3)), np.eye(3)[rng.integers(3, size=20)], rng.uniform(0.2, 1, 20)
    ex.evidence_scales(u, onehot, weights)
    ex.latent_mode(9 * ex.matern(ex.squared_distances(u, u, 1.0))[0], onehot, weights)
    assert max(seen) < 1e-6


# ---- history


def run_toy(path, **how):
    with make_run(path, seed=7) as run:
        run.run(toy_simulation, n_initial=8, n_iterations=3, n_per_iteration=5, timeout=None, **how)
        return run.explorer


KILLED = """
import os, sys
sys.path[:0] = [{here!r}]
import importlib, explorer as core
tests_core = importlib.import_module({module!r})
left = {after}
write = core.History.append
def append(self, event, **fields):
    global left
    left -= 1
    if left < 0:
        line = core.encode({{"event": event, **fields}})
        os.write(self._file.fileno(), line[: int(len(line) * {share})])
        os.kill(os.getpid(), 9)
    return write(self, event, **fields)
core.History.append = append
tests_core.run_toy({path!r})
"""


def test_killed_and_resumed_run_is_the_undisturbed_one(tmp_path):
    plain = run_toy(tmp_path / "plain")
    path, rng, environment = tmp_path / "killed", np.random.default_rng(3), os.environ | {"TMPDIR": str(tmp_path / "scratch")}
    (tmp_path / "scratch").mkdir()
    for _ in range(6):
        code = KILLED.format(module=Path(__file__).stem, here=str(HERE), path=str(path), after=rng.integers(1, 8), share=rng.random())
        process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
        assert process.returncode == -9, process.stderr
    again = run_toy(path)
    assert not list((tmp_path / "scratch").iterdir())
    assert again.points == plain.points and again.answers == plain.answers and again.iterations == plain.iterations
    assert len(plain.points) == 8 + 3 * 5 and {p.name for p in (path / "spins").iterdir()} == {f"{p.id}.npz" for p in plain.points}
    stored = np.load(path / "spins" / "3.npz")
    assert stored["spins"].dtype == np.float32 and stored["spins"].shape == (8, 3)
    assert run_toy(path).points == plain.points  # and a finished one stays as it is


def test_torn_line_at_every_byte(tmp_path):
    whole = run_toy(tmp_path / "run")
    path = tmp_path / "run" / "history.jsonl"
    content = path.read_bytes()
    content = content[: content.index(b"\n", content.rfind(b'{"event":"told"')) + 1]
    last = content.rfind(b"\n", 0, -1) + 1
    before = content.rfind(b"\n", 0, last - 1) + 1
    for end in [*range(before, len(content) + 1), *range(0, content.find(b"\n") + 1, 7)]:
        for file in (tmp_path / "run").glob("state.json"):
            file.unlink()
        path.write_bytes(content[:end])
        history = ex.History(tmp_path / "run", SMALL_BOX, {"L": 2}, 7)
        sound = content[: content.rfind(b"\n", 0, end) + 1] or content[: content.find(b"\n") + 1]
        assert path.read_bytes() == sound and len(history.past) == sound.count(b"\n") - (end <= content.find(b"\n"))
        history.close()
    assert whole.points


def test_damage_and_foreign_histories_are_refused(tmp_path):
    run_toy(tmp_path)
    path = tmp_path / "history.jsonl"
    content = path.read_bytes()
    changes = [{"L": 3}, {"seed": 8}, {"parameters": {"x": (-1, 1), "y": (0, 6)}}, {"parameters": {"y": (0, 5), "x": (-1, 1)}}]
    for change in [*changes, {"model": {"mode": "fast"}}]:
        with pytest.raises(ex.InputError, match="of another run") as error:
            make_run(tmp_path, **({"seed": 7} | change))
        assert "\n" not in str(error.value) and path.read_bytes() == content
    damaged = content.replace(b'"asked"', b'"axked"', 1)
    for other in (damaged, b"my notes", b"my notes\n", b"{}\n" + content, content.replace(b'"version":1', b'"version":2')):
        path.write_bytes(other)
        with pytest.raises(ex.InputError):
            make_run(tmp_path, seed=7)
        assert path.read_bytes() == other
    path.write_bytes(content)
    (tmp_path / "state.json").write_bytes(b"nonsense")
    with make_run(tmp_path, seed=7) as run:
        assert len(run.explorer.points) == 23


def test_snapshot_and_history_tell_the_same(tmp_path):
    whole = run_toy(tmp_path)
    state = json.loads((tmp_path / "state.json").read_text())
    assert state["offset"] == (tmp_path / "history.jsonl").stat().st_size
    with make_run(tmp_path, seed=7) as fast:
        pass
    (tmp_path / "state.json").unlink()
    with make_run(tmp_path, seed=7) as slow:
        pass
    for run in (fast, slow):
        assert (run.explorer.points, run.explorer.answers, run.explorer.iterations) == (whole.points, whole.answers, whole.iterations)


def test_directory_in_use(tmp_path):
    with make_run(tmp_path), pytest.raises(DirectoryRefused, match="in use"):
        make_run(tmp_path)
    make_run(tmp_path).close()


# ---- simulations


def test_hostile_simulations_cost_their_points_only(tmp_path, capsys):
    box = Box.of({"x": (0, 10), "y": (0, 5)})
    with make_run(tmp_path / "run", parameters=box) as run:
        run.add_points([{"x": kind, "y": k} for k in (1, 2) for kind in (0, 1, 2, 3, 4, 5, 6, 7, 8)][:14])
        started = time.monotonic()
        assert run.classify_pending_points(hostile, n_jobs=2, timeout=1.5) == (3, 11)
        assert time.monotonic() - started < 20
        told = [event for event in map(json.loads, (tmp_path / "run/history.jsonl").read_text().splitlines()) if event["event"] == "told"]
        reasons = {event["id"]: (event["failure"], event["error"], event["message"]) for event in told if "failure" in event}
        assert len(told) == 14
        assert reasons[1][:2] == ("FAILED", "ValueError") and reasons[2][1] == "TaskDied" and "SIGSEGV" in reasons[2][2]
        assert reasons[3][:2] == ("TIMEOUT", "TaskTimeout") and "expected (N, 3)" in reasons[4][2] and "NaN" in reasons[5][2]
        assert "unit spins" in reasons[6][2] and "tuple" in reasons[7][2]
        assert "no such state" in next(event["traceback"] for event in told if event["id"] == 1)
        assert not list(Path(ex.tempfile.gettempdir()).glob(f"spin_solver_pid{os.getpid()}_*"))
        assert not (tmp_path / "run/scratch.json").exists()
        assert run.counts()["FAILED"] == 9 and run.retry_failed() == 11 and len(run.explorer.pending) == 11
    printed = capsys.readouterr().out
    assert "Checkpoint saved (10/14 completed)" in printed and "conf=0.90" in printed and "success_rate: 21.4%" in printed


def test_simulation_in_this_process(tmp_path):
    seen = []

    def closure(params):
        seen.append(os.getcwd())
        if len(seen) == 2:
            time.sleep(30)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return toy_simulation(params)

    here = os.getcwd()
    with make_run(tmp_path) as run:
        run.add_lhs_samples(6, seed=1)
        assert run.add_lhs_samples(6, seed=1) == []
        with pytest.raises(ex.InputError, match="module-level"):
            run.classify_pending_points(closure, n_jobs=2)
        with pytest.raises(KeyboardInterrupt):
            run.classify_pending_points(closure, timeout=0.2)
        assert len(run.explorer.answers) == 3 and [p.id for p in run.explorer.failed] == [1] and os.getcwd() == here
        assert run.classify_pending_points(closure) == (3, 0)
        with pytest.raises(ex.InputError, match="n_jobs"):
            run.classify_pending_points(closure, n_jobs=0)
    assert len(set(seen)) == 7 and not any(map(os.path.exists, seen))


def test_record_is_honest():
    ok = ex._run_simulation_safe({"x": 0.0, "y": 1.0}, toy_simulation, 5)
    assert ok["ok"] and ok["sites"] == 8 and all(type(value) in (bool, bytes, int, float, str, dict) for value in ok.values())
    late = ex._run_simulation_safe({}, lambda params: time.sleep(9), 0.1)
    assert not late["ok"] and late["error"] == "SimulationTimeout" and "0.1 s" in late["message"] and "sleep" in late["traceback"]
    assert ex._run_simulation_safe({}, lambda params: params["q"])["error"] == "KeyError"


def test_answers_of_the_guides_api(tmp_path, capsys):
    with make_run(tmp_path / "known", parameters=ex.DEFAULT_BOX) as run:
        assert len(run.add_known_seeds()) == 4 and run.add_known_seeds() == []
    run_toy(tmp_path / "run", n_jobs=1)
    with make_run(tmp_path / "run", seed=7) as run:
        phase, p = run.predict_phase({"x": 0.0, "y": 4.8})
        assert phase == "HIGH" and abs(sum(p.values()) - 1) < 1e-12
        found = run.get_phase_boundaries("x", "y", n_grid=41)
        assert found["phases"].shape == (41, 41) and len(found["boundaries"]) > 40
        upper = [y for x, y, *pair in found["boundaries"] if set(pair) == {"MIDDLE", "HIGH"}]
        assert abs(np.median(upper) - 4.0) < 0.5
        shares = run.get_feature_importances()
        assert shares["y"] > shares["x"] > 0.05 and abs(sum(shares.values()) - 1) < 1e-12
        run.print_summary()
        assert "iteration 4" in capsys.readouterr().out
        with pytest.raises(ex.InputError):
            run.get_phase_boundaries("x", "z")
        assert len(run.select_next_points(3, "boundary")) == 3 == run.counts()["pending"]


# =====================================================================================================================
# Explorer from the outside: options, runs, kills, outputs
# =====================================================================================================================

PROGRAM = Path(ex.__file__)
TINY = shlex.split("--screening --lattice-size 6 --n-initial 4 --n-iterations 2 --n-per-iteration 3 --seed 5")
PLANE = '{"J3xy": [0, 1], "J1z": [-1, 1], "D": 0.05}'
MODEL = """
import numpy as np

def simulate(parameters):
    x, y = parameters["x"], parameters["$y/<&>$"]
    if x > 0.8:
        raise ValueError(f"<b>no state</b> at {x:.3f}")
    spins = np.zeros((72, 3))
    spins[:, 0] = np.nan if y > 0.8 else 1
    spins[::2] *= np.sign(y - 0.4)
    return spins, np.zeros((72, 2)), x * y
"""


def explore(*arguments, cwd, **more):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROGRAM), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=100, **more)


def content(directory):
    run = ex.read_history(directory)
    answers = {id: (event.get("phase"), event.get("energy"), event.get("failure")) for id, event in sorted(run.told.items())}
    return [(p.unit, p.origin, p.iteration) for p in run.explorer.points], answers, run.explorer.iterations


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A finished run in an empty directory with an awkward name, by two processes: (directory, what it printed)."""
    place = tmp_path_factory.mktemp("an awkward näme; $x 'y")
    done = explore(*TINY, "--n-jobs", "2", "--output-dir", "my run", "--plots", "--report", "out here/report.html", cwd=place)
    assert done.returncode == 0, done.stderr
    return place / "my run", done


def interrupted(directory, cwd, number, after):
    """A run by one process that got a signal after so many answers: (return code, stderr)."""
    command = [sys.executable, str(PROGRAM), *TINY, "--output-dir", str(directory)]
    process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    path, deadline = Path(cwd) / directory / "history.jsonl", time.monotonic() + 60
    while (not path.exists() or path.read_bytes().count(b'"told"') < after) and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    process.send_signal(number)
    return process.wait(30), process.stderr.read()


# ---- options


def test_options_have_two_spellings_and_one_default():
    parse = ex.parse_options
    assert parse(["--n-jobs", "3", "--fresh_start", "--n_initial=7"]) == parse(["--n_jobs", "3", "--fresh-start", "--n-initial", "7"])
    assert parse([]) == ex.Options()
    documented = {"n_initial": 50, "n_iterations": 10, "n_per_iteration": 10, "strategy": "balanced", "n_jobs": 1, "timeout": 300}
    assert {name: getattr(parse([]), name) for name in documented} == documented
    assert ex.make_plan(parse([])).L == 12 and ex.make_plan(parse(["--accurate"])).L == 24
    assert ex.make_plan(parse(["--screening", "--lattice-size", "10"])).L == 10


@pytest.mark.parametrize(
    "arguments, says",
    [
        ("--strategy greedy", "balanced, uncertainty"),
        ("--n-jobs 0", "n_jobs = 0"),
        ("--n-jobs 2 --condor", "--n-jobs contradict"),
        ("--fast-mode --accurate", "contradict"),
        ("--resume --fresh-start", "contradict"),
        ("--status --benchmark", "contradict"),
        ("--resume", "holds no run"),
        ("--skip-simulation", "no run to read"),
        ("--status", "no run to read"),
        ("--point 3", "no run to read"),
        ("--lattice-size 5", "at least 6"),
        ("--seed -1", "not negative"),
        ("--timeout 0", "--timeout 0"),
        ("--timeout nan", "--timeout nan"),
        ("--n-initial 0", "--n-initial 0"),
        ("--target-phase SKYRMION", "MERON_ANTIMERON"),
        ("--parameters nowhere.json", "nowhere.json"),
        ("--parameters {]", "not readable as JSON"),
        ('--parameters {"J3xy":[1,0]}', "must be below"),
        ('--parameters {"J4":[0,1]}', "J4"),
        ('--parameters {"J3xy":[0,1],"D":NaN}', "finite"),
        ("--simulation model", "MODULE:FUNCTION"),
        ('--simulation nowhere_at_all:f --parameters {"x":[0,1]}', "cannot be loaded"),
        ('--simulation math:pi --parameters {"x":[0,1]}', "not a function"),
        ("--simulation math:sin", "--parameters"),
        ("--at D", "NAME=VALUE"),
        ("--at J9=0", "no parameter of this run"),
        ("--map D,D", "give two of J1z"),
        ("--condor-option accounting", "KEY=VALUE"),
        ("--report .", "not a regular file"),
        ("--output-dir file", "not a directory"),
        ("--benchmark most", "--benchmark most"),
        ("--test-parallel 1", "at least 2"),
    ],
)
def test_bad_values_are_one_line_and_write_nothing(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    if arguments.startswith("--simulation model"):
        arguments += ' --parameters {"x":[0,1]}'
    assert ex.main(arguments.split()) == 2
    printed = capsys.readouterr()
    assert says in printed.err and printed.err.count("\n") == 1 and printed.err.startswith("explorer: ") and not printed.out
    assert os.listdir() == ["file"]


def test_help_needs_numpy_only():
    code = "import sys; sys.argv[1:] = ['--help']\ntry:\n    explorer.main()\nexcept SystemExit:\n    pass\n"
    code = f"import sys; sys.path.insert(0, {str(PROGRAM.parent)!r}); import explorer; " + code
    code += "print([m for m in ('torch', 'matplotlib', 'filelock', 'tqdm', 'sympy', 'scipy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code.replace("import sys; sys.argv", "\nsys.argv")], capture_output=True, text=True)
    assert done.stdout.endswith("[]\n") and "--test-parallel" in done.stdout, done.stderr


def test_explorer_dry_run_writes_nothing(tmp_path):
    done = explore("--dry-run", "--n-jobs", "3", "--parameters", PLANE, cwd=tmp_path)
    assert done.returncode == 0 and "3 processes" in done.stdout and "D = 0.05" in done.stdout and not list(tmp_path.iterdir())


def test_advice(monkeypatch):
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 100_000))
    monkeypatch.setattr(ex, "free_memory_mb", lambda: 500.0)
    monkeypatch.setattr(ex, "usable_cores", lambda: 2.0)
    options = ex.Options(n_jobs=100)
    files, memory, cores, idle = ex.advice(options, ex.make_plan(options))
    assert "ulimit -n 4096" in files and "MB" in memory and "100 processes on 2 cores" in cores and "idle" in idle
    assert ex.advice(ex.Options(n_jobs=2), ex.make_plan(options)) == []


# ---- runs


def test_a_run_says_what_it_does(undisturbed):
    directory, done = undisturbed
    assert "[Iteration 0] Classifying 8 points using 2 parallel workers..." in done.stdout
    assert re.search(r"  Point \d+: [A-Z_0-9]+ \(conf=[\d.]+, E=-[\d.]+\)", done.stdout)
    assert "14/14" not in done.stdout and "success_rate: 100.0%" in done.stdout and "2 iterations are done" in done.stdout
    record = json.loads((directory / "summary.json").read_text())
    assert record["points"] == 14 == sum(record["states"].values()) and record["failures"] == [] and record["iterations"] == 3
    assert len(list((directory / "spins").glob("*.npz"))) == 14


def test_number_of_processes_changes_nothing(undisturbed, tmp_path):
    assert explore(*TINY, "--quiet", cwd=tmp_path).stdout == ""
    assert content(tmp_path / "exploration") == content(undisturbed[0])


def test_kill_and_the_same_command_again(undisturbed, tmp_path):
    assert interrupted("run", tmp_path, signal.SIGKILL, after=3)[0] == -signal.SIGKILL
    assert len(ex.read_history(tmp_path / "run").told) < 14
    assert explore(*TINY, "--output-dir", "run", cwd=tmp_path).returncode == 0
    assert content(tmp_path / "run") == content(undisturbed[0])


def test_interrupt_and_the_printed_command(undisturbed, tmp_path):
    code, printed = interrupted("a 'run'", tmp_path, signal.SIGINT, after=2)
    assert code == 130 and printed.count("\n") == 1
    command = printed.partition("go on with: ")[2].strip()
    assert shlex.split(command)[1] == str(PROGRAM)
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and content(tmp_path / "a 'run'") == content(undisturbed[0])


def test_what_is_there_is_shown_and_not_mixed_up(undisturbed, tmp_path, capsys):
    directory, place = undisturbed[0], ["--output-dir", str(undisturbed[0])]
    before = content(directory)
    for arguments, code, says in [
        ([*TINY, "--resume"], 0, "2 iterations are done"),
        (["--status"], 0, "points      14"),
        (["--skip-simulation"], 0, "importance:"),
        (["--skip-simulation", "--verbose"], 0, "one wave vector"),
        (["--point", "3"], 0, "margin"),
        (["--point", "14"], 2, "points 0 to 13"),
        ([*TINY, "--seed", "6"], 2, "of another run: its seed is 5, not 6"),
        ([*TINY, "--lattice-size", "8"], 2, "of another run: its model"),
        ([*TINY, "--dry-run"], 0, "14 of 14 points done"),
    ]:
        assert ex.main([*arguments, *place]) == code, arguments
        printed = capsys.readouterr()
        assert says in printed.out + printed.err and (code == 0 or printed.err.count("\n") == 1)
    assert content(directory) == before
    with ex.claim_directory(directory):
        assert ex.main([*TINY, *place]) == 2 and "in use by process" in capsys.readouterr().err
        assert ex.main(["--status", *place]) == 0 and "at work" in capsys.readouterr().out


def test_fresh_start(tmp_path, capsys):
    arguments = [*TINY, "--output-dir", str(tmp_path / "run"), "--n-iterations", "0", "--n-initial", "1"]
    assert ex.main([*arguments, "--quiet"]) == 0
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert ex.main([*arguments, "--seed", "6", "--fresh-start", "--quiet"]) == 0
    assert ex.read_history(tmp_path / "run").header["seed"] == 6 and (tmp_path / "run" / "notes.txt").exists()
    (tmp_path / "run" / "history.jsonl").write_text("my own notes\n")
    assert ex.main([*arguments, "--fresh-start"]) == 2 and "not a history" in capsys.readouterr().err
    assert (tmp_path / "run" / "history.jsonl").read_text() == "my own notes\n"


def test_simulation_of_the_user(tmp_path):
    (tmp_path / "my_model.py").write_text(MODEL)
    (tmp_path / "box.json").write_text('{"x": [0, 1], "$y/<&>$": [0, 1]}')
    arguments = shlex.split("--simulation my_model:simulate --parameters box.json --n-initial 20 --n-iterations 1 --lattice-size 6")
    arguments += ["--n-jobs", "2"]
    done = explore(*arguments, "--plots", "--report", "report.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = ex.read_history(tmp_path / "exploration")
    assert len(run.told) == 30 and run.failures and len(run.labelled) > 10
    for id, event in run.told.items():
        x, y = run.parameters(id).values()
        if x > 0.8:
            assert event["error"] == "ValueError" and "no state" in event["message"] and "my_model.py" in event["traceback"]
        elif y > 0.8:
            assert "NaN" in event["message"]
        else:
            assert event["phase"] == ("FM" if y > 0.4 else "AFM")
    page = (tmp_path / "report.html").read_text()
    check_page(page)
    assert "&lt;b&gt;no state" in page and "<b>" not in page and "$y/&lt;&amp;&gt;$" in page
    (tmp_path / "my_model.py").write_text(MODEL.replace("x > 0.8", "x > 2").replace("y > 0.8", "y > 2"))
    assert explore(*arguments, "--retry-failed", cwd=tmp_path).returncode == 0
    assert not ex.read_history(tmp_path / "exploration").failures


def test_all_failed_is_exit_code_1(tmp_path):
    (tmp_path / "m.py").write_text("def f(p):\n    return None\n")
    arguments = ["--simulation", "m:f", "--parameters", '{"x": [0, 1]}', "--n-initial", "3", "--n-iterations", "0"]
    done = explore(*arguments, "--plots", cwd=tmp_path)
    assert done.returncode == 1 and "failed 3 x ValueError" in done.stdout and "no point could be labelled" in done.stderr


GUIDE = """
from explorer import ActiveLearningExplorer, simulate

def simulation_func(params):
    return simulate(params, L=6, mode="screening")

if __name__ == "__main__":
    explorer = ActiveLearningExplorer("my_exploration", L=6, target_phase="MERON_ANTIMERON")
    explorer.add_known_seeds()
    explorer.add_lhs_samples(4, seed=1)
    explorer.classify_pending_points(simulation_func)                      # old calls work
    for _ in range(2):
        explorer.select_next_points(2, "balanced")
        explorer.classify_pending_points(simulation_func, n_jobs=2, checkpoint_interval=10, timeout=300)
    explorer.fit_surrogate()
    print(explorer.predict_phase({"J1z": 0, "D": 0, "E": 0, "F": 0, "G": 0, "J3xy": 0.9, "J3z": 0})[0])
    print(explorer.get_phase_boundaries("J3xy", "J1z", n_grid=20)["phases"].shape)
    explorer.print_summary()
"""


def test_the_api_of_the_guide(tmp_path):
    (tmp_path / "mine.py").write_text(GUIDE)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PROGRAM.parent), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\n[A-Z_0-9]+\n\(20, 20\)\n", done.stdout)
    assert "using 2 parallel workers" in done.stdout and "12 points" in done.stdout


# ---- HTCondor, by the fake tools


CONDOR = [*TINY, "--condor", "--check-interval", "0.1"]


def test_condor_gives_the_same(undisturbed, fake, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fake.set(run="background")
    assert ex.main(CONDOR) == 0
    assert "using 8 parallel workers" in capsys.readouterr().out
    assert content(Path("exploration")) == content(undisturbed[0])


def test_condor_controller_is_killed(undisturbed, fake, tmp_path, capsys):
    fake.set(run="idle")
    command = [sys.executable, str(PROGRAM), *CONDOR]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while len(fake.jobs()) < 8 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert len(fake.jobs()) == 8
    fake.set(run="background")
    assert explore(*CONDOR, cwd=tmp_path).returncode == 0
    assert len(fake.history()) == 14  # the jobs in the queue were found again
    assert content(tmp_path / "exploration") == content(undisturbed[0])
    assert ex.main(["--stop", "--output-dir", str(tmp_path / "exploration")]) == 0
    assert "0 jobs removed" in capsys.readouterr().err


# ---- outputs


class Page(html.parser.HTMLParser):
    """Notes what is opened and closed, and every address."""

    VOID = ("meta", "img", "br", "link", "input", "hr")

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.tags = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check_page(text):
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == [] and all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert "http" not in re.sub(r'"data:[^"]*"', "", text) and "viewport" in text
    return page


def test_report_is_one_page(undisturbed):
    pytest.importorskip("matplotlib")
    text = (undisturbed[0].parent / "out here" / "report.html").read_text()
    page = check_page(text)
    assert page.tags.count("img") >= 5 and page.tags.count("tr") > 14 and "margin" in text and "--n-initial" in text


def test_pictures_show_something(undisturbed):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    names = {path.stem for path in (undisturbed[0] / "plots").iterdir()}
    assert {"counts", "timeline", "importance"} < names and any(name.startswith("map_") for name in names)
    for path in (undisturbed[0] / "plots").iterdir():
        pixels = imread(path)[..., :3]
        assert min(pixels.shape[:2]) > 150 and pixels.std() > 0.03, path.name
        assert len(np.unique((pixels.reshape(-1, 3)[::7] * 255).astype(int), axis=0)) > 10, path.name


def test_map_axes_and_colours(undisturbed):
    pytest.importorskip("matplotlib")
    run = ex.read_history(undisturbed[0])
    assert "map_J1z_D" in ex.draw_all(run, ["J1z", "D"], {"E": 0.5})
    with pytest.raises(ex.InputError, match="give two of"):
        ex.draw_all(run, ["J1z", "J9"])
    with pytest.raises(ex.InputError, match="no parameter"):
        ex.draw_all(run, ["J1z", "D"], {"J9": 0.5})
    named = {phase.name for phase in ex.PhaseType if phase.name != "TIMEOUT"}
    assert named == set(ex.PHASE_STYLES) and len({style[0] for style in ex.PHASE_STYLES.values()}) == len(named)


class NoMatplotlib(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError("No module named 'matplotlib'")


def test_without_matplotlib(undisturbed, tmp_path, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [NoMatplotlib(), *sys.meta_path])
    report = tmp_path / "report.html"
    place = ["--output-dir", str(undisturbed[0])]
    assert ex.main(["--skip-simulation", "--plots", "--report", str(report), *place]) == 0
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and "matplotlib is not installed" in printed and "pip install" in printed
    page = check_page(report.read_text())
    assert "img" not in page.tags and page.tags.count("tr") > 14 and "matplotlib is not installed" in report.read_text()
    assert ex.main(["--point", "0", *place]) == 0 and "matplotlib" in capsys.readouterr().err


# ---- the test of parallel running, the benchmark


@pytest.mark.parametrize(
    "times, label, code, says",
    [
        ((10.0, 5.4), "FM", 0, "✓"),
        ((10.0, 5.4), "ZIGZAG", 1, "1 of 2 results differ: point 1"),
        ((10.0, 9.0), "FM", 1, "below 1.40x = 0.7 x min(2 processes, 2 cores)"),
        ((10.0, 1.0), "FM", 1, "more than 2x is not possible"),
        ((1.0, 0.9), "FM", 0, "too short"),
    ],
)
def test_parallel_test_fails_where_it_must(times, label, code, says, monkeypatch, capsys):
    def timed_batch(plan, number, processes, timeout_s):
        return times[processes - 1], {0: ("FM", -1.0), 1: (label if processes > 1 else "FM", -1.0)}

    monkeypatch.setattr(ex, "timed_batch", timed_batch)
    monkeypatch.setattr(ex, "usable_cores", lambda: 2.0)
    assert ex.main(["--test-parallel", "2", "--n-jobs", "2"]) == code
    printed = capsys.readouterr().out
    assert says in printed and "Efficiency:" in printed


def test_parallel_test_for_real(tmp_path):
    done = explore("--test-parallel", "4", "--n-jobs", "2", "--screening", "--lattice-size", "6", cwd=tmp_path)
    assert done.returncode == 0 and "Same labels and energies" in done.stdout and not list(tmp_path.iterdir()), done.stdout


def test_benchmark_prints_goal_and_reached(monkeypatch, capsys):
    cheap = ("wrong labels with 128 of 1600 points", "time of a screening simulation")
    rows = tuple(figure for figure in ex.FIGURES if figure.what in cheap)
    missing = ex.Figure("a figure out of reach", "1", lambda full: ex.Measurement("0", False))
    monkeypatch.setattr(ex, "FIGURES", (*rows, missing))
    assert ex.main(["--benchmark"]) == 1
    printed = capsys.readouterr().out
    assert printed.count("MISSED") == 1 and "grid" in printed and "quick subset" in printed


def test_symmetries_of_the_benchmark_are_symmetries():
    rng, L = np.random.default_rng(0), 7
    spins = ex.ideal_state("random", L, rng=rng)
    couplings = ex.Couplings(J1z=-1.0, J3xy=0.4, J3z=0.4)
    before = ex.energy(spins, couplings)
    for _ in range(10):
        assert ex.energy(ex.transformed(spins, L, rng), couplings) == pytest.approx(before, abs=1e-12)


def test_point_seed_depends_on_the_point_alone():
    seed = ex.point_seed(3, {"a": 0.1, "b": 0.2})
    assert seed == ex.point_seed(3, {"b": 0.2, "a": 0.1}) and 0 <= seed < 2**32
    assert len({ex.point_seed(s, {"a": a}) for s in range(5) for a in (0.1, 0.2, 0.3)}) == 15


@pytest.mark.condor
def test_a_pool_explores_like_one_process(real_pool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--screening", "--lattice-size", "6", "--n-initial", "4", "--n-iterations", "1", "--n-per-iteration", "4", "--quiet"]
    assert ex.main([*words, "--output-dir", "here"]) == 0
    assert ex.main([*words, "--output-dir", "it's there", "--condor", "--check-interval", "1"]) == 0
    here, there = (
        {id: (event["phase"], event["energy"]) for id, event in ex.read_history(tmp_path / name).told.items()}
        for name in ("here", "it's there")
    )
    assert here == there and len(here) >= 8


# what a hostile tester found -------------------------------------------------------------------------------------------


HOSTILE_MODEL = """
import sys
import numpy as np

def state(p):
    spins = np.tile([0.0, 0.0, 1.0], (72, 1))
    spins[1::2] *= -1
    i, j = np.divmod(np.arange(36), 6)
    cells = np.column_stack([i + j / 2, j * 3**0.5 / 2])
    return spins, np.repeat(cells, 2, axis=0) + np.tile([[0, 0], [0, 3**-0.5]], (36, 1)), -1.0

def by_sublattice(p):
    spins, positions, energy = state(p)
    order = np.r_[0:72:2, 1:72:2]
    return spins[order], positions[order], energy

def leaves(p): sys.exit(3)
def interrupts(p): raise KeyboardInterrupt
def unspeakable(p): raise ValueError("bad \\udcff name")
def slow_server(p): raise TimeoutError("no answer from the licence server")
"""
TOY_RUN = ["--lattice-size", "6", "--n-initial", "2", "--n-iterations", "0", "--parameters", '{"x": [0, 1]}', "--output-dir", "run"]


@pytest.fixture
def hostile_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "hostile_model", raising=False)
    (tmp_path / "hostile_model.py").write_text(HOSTILE_MODEL)
    return tmp_path


def of_points(directory, name):
    return [event.get(name) for event in ex.read_history(Path(directory)).told.values()]


@pytest.mark.parametrize("function, error", [("leaves", "SystemExit"), ("interrupts", "KeyboardInterrupt"), ("unspeakable", "ValueError")])
def test_whatever_a_simulation_raises_costs_its_points_only(function, error, hostile_place):
    assert ex.main([*TOY_RUN, "--simulation", f"hostile_model:{function}"]) == 1
    assert of_points("run", "failure") == ["FAILED"] * 2 and of_points("run", "error") == [error] * 2


def test_timeout_of_the_simulation_itself_is_no_time_limit(hostile_place):
    assert ex.main([*TOY_RUN, "--simulation", "hostile_model:slow_server"]) == 1
    assert of_points("run", "failure") == ["FAILED"] * 2


@pytest.mark.parametrize("function", ["state", "by_sublattice"])
def test_sites_are_put_in_order_by_their_positions(function, hostile_place):
    assert ex.main([*TOY_RUN, "--simulation", f"hostile_model:{function}"]) == 0
    assert of_points("run", "phase") == ["AFM"] * 2


def test_sites_in_any_order_are_put_in_order():
    rng = np.random.default_rng(3)
    for L in (6, 7):
        positions = Lattice.of(L).positions
        shuffled = rng.permutation(len(positions))
        order = ex.site_order(positions[shuffled], L)
        moved = positions[shuffled][order] - positions
        steps = (moved - moved[0]) @ np.linalg.inv(np.array([ex.A1, ex.A2])) / L
        assert np.allclose(steps, np.round(steps))  # every site where it belongs, up to periods of the lattice
        assert sorted(order) == list(range(len(positions)))
        assert np.array_equal(ex.site_order(positions, L), np.arange(len(positions)))
        assert ex.site_order(1.1 * positions, L) is None and ex.site_order(positions[:-2], L) is None


@pytest.mark.parametrize("call", ["", "n_jobs=2"])
def test_script_without_a_guard(call, hostile_place):
    (hostile_place / "script.py").write_text(
        "import hostile_model\nfrom explorer import ActiveLearningExplorer\n"
        "def simulate(p): return hostile_model.state(p)\n"
        "run = ActiveLearningExplorer('api', L=6, parameters={'x': (0, 1), 'y': (0, 1)})\nrun.add_lhs_samples(3)\n"
        f"print(run.classify_pending_points(simulate, {call}))\nrun.close()\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{HERE}:{hostile_place}"}
    run = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, env=environment, timeout=DEADLINE_S)
    if call:
        assert run.returncode == 1 and "__main__" in run.stderr.splitlines()[-1]
        assert of_points("api", "phase") == []  # no point was spent on it
    else:
        assert run.stdout.splitlines()[-1] == "(3, 0)", run.stderr


def test_what_lies_there_is_not_overwritten(hostile_place, capsys):
    assert ex.main([*TOY_RUN, "--simulation", "hostile_model:state"]) == 0
    before = (hostile_place / "run/history.jsonl").read_bytes()
    assert ex.main(["--skip-simulation", "--output-dir", "run", "--report", "run/history.jsonl"]) == 2
    missing = ["--fresh-start", "--condor", "--condor-option", "queue=1"]
    assert ex.main([*TOY_RUN, "--simulation", "hostile_model:state", *missing]) == 2
    (hostile_place / "run/scratch.json").write_text("garbage")
    assert ex.main([*TOY_RUN, "--simulation", "hostile_model:state", "--n-initial", "5"]) == 0
    assert (hostile_place / "run/history.jsonl").read_bytes().startswith(before) and len(of_points("run", "phase")) == 2
    for path in (hostile_place / "run/spins").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    capsys.readouterr()
    assert ex.main(["--point", "0", "--output-dir", "run"]) == 2 and capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "box",
    ['{"x": [0, 1], "x": [0, 2]}', '{"x": [0, 1' + "0" * 400 + "]}", '{"x": [-1e308, 1e308]}', '{"a":' * 100_000, '{"\\ud800": [0, 1]}'],
)
def test_bad_boxes_are_refused_in_one_line(box, hostile_place, capsys):
    assert ex.main(["--simulation", "hostile_model:state", "--parameters", box, "--output-dir", "run"]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (hostile_place / "run").exists()


@pytest.mark.parametrize("words", [["--strategy", "target"], ["--at", "J1z=7"]], ids=" ".join)
def test_mistakes_are_told_before_anything_is_simulated(words, hostile_place, capsys):
    assert ex.main([*words, "--output-dir", "run"]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (hostile_place / "run").exists()


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_spoil_nothing(closed, hostile_place):
    command = shlex.join([sys.executable, str(HERE / "explorer.py"), *TOY_RUN, "--simulation", "hostile_model:state"])
    assert subprocess.run(["sh", "-c", f"{command} {closed}"], timeout=DEADLINE_S).returncode == 0
    assert of_points("run", "phase") == ["AFM"] * 2
