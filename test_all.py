"""All tests, in sections that mirror the files.

    python -m pytest                  # what CI runs
    python -m pytest -m slow          # searches from nothing that take minutes

Parts: executors (condor_worker.py); the reduction itself against oracles, closed forms, golden values and laws; the program from
outside: bad input, command line, pickle, store, processes. Nothing is compared with a former run of the program, every wait is for an
event with a deadline, and the oracles share no code with what they test.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import math
import os
import pickle
import random
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import traceback
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import condor_worker
import ibp_reduce
from condor_worker import InlineExecutor, LocalExecutor, NotPicklable, RemoteError, TaskDied, TaskTimeout
from ibp_reduce import (
    BUILT_IN_FAMILIES,
    Controller,
    Family,
    InputError,
    Knowledge,
    Layout,
    Neighbourhood,
    Outcome,
    Point,
    Problem,
    Progress,
    Rule,
    Sector,
    SectorKnowledge,
    Store,
    derive_identities,
    evaluate_identities,
    find_masters,
    find_nonzero_sectors,
    generic_point,
    invert,
    layout_for,
    load_family,
    null_vector,
    propagate,
    sector_of,
    sum_by_key,
    weight,
)

HERE = Path(__file__).resolve().parent
DEADLINE_S = 90  # for events that come in a second or two on an idle machine


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
    [
        Touches(),
        Fraction(1, 2),
        Path("x"),
        rule_of(1),
        len,
        int,
        print,
        range(3),
        slice(1, 2),
        [{"deep": (Touches(),)}],
        ValueError("x"),
    ],
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
    assert exit_code([*words, "--local", "2", "--straggler-timeout", "0.1", "--straggler-cpus", "2"]) == 0
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
