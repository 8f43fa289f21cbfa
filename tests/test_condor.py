"""Jobs of a pool, as callers of the executor see them."""

import concurrent.futures
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import threading
import time
import traceback
from pathlib import Path

import pytest
import support_executors as jobs
from support import DEADLINE_S, lines_of, wait_until
from support_condor import let_it_look, results, start_controller, task_files, wait_for_jobs

from executors.condor import CondorExecutor
from executors.errors import (
    ExecutorError,
    RemoteError,
)
from executors.job_runs import read_run
from executors.schedd import Schedd
from executors.tasks import TimeLimits


def test_counts_tell_what_the_jobs_do(fake, make):
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


@pytest.mark.parametrize(
    "options", [{"check_interval_s": 0}, {"cpus": 0}, {"memory_mb": 0}, {"max_jobs": 0}, {"retries": -1}, {"timeout_s": 0}]
)
def test_impossible_numbers_for_condor(fake, tmp_path, options):
    with pytest.raises(ValueError):
        CondorExecutor(tmp_path, **options)


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
def test_builtin_types_come_back_as_they_were(fake, make, value):
    fake.set(run="now")
    answer = make().submit(jobs.same, value).result(DEADLINE_S)
    assert answer == value and repr(answer) == repr(value) and type(answer) is type(value)


FOREIGN = {  # results: what the error must name
    "__import__('numpy').arange(3)": "numpy.*ndarray",
    "{'x': [1, (__import__('numpy').float64(2),)]}": "numpy",
    "__import__('fractions').Fraction(1, 3)": "fractions.Fraction",
    "__import__('support_executors').SectorError": "type",
    "eval": "builtin_function",
    "__import__('threading').Lock()": "lock",
    "__import__('functools').reduce(lambda x, _: [x], range(100_000), [])": "(?i)recursion|deep",
}


def test_a_result_of_another_type_is_a_clear_error(fake, make):
    fake.set(run="now")
    executor = make()
    futures = {expression: executor.submit(jobs.evaluate, expression) for expression in FOREIGN}
    for expression, culprit in FOREIGN.items():
        error = futures[expression].exception(DEADLINE_S)
        assert isinstance(error, ExecutorError) and re.search(culprit, str(error)) and "\n" not in str(error), (expression, error)
    assert len(fake.history()) == len(FOREIGN)  # trying again would not help
    assert executor.submit(jobs.square, 3).result(DEADLINE_S) == 9


def test_exceptions_of_builtin_types_come_back_as_themselves(fake, make):
    fake.set(run="now")
    executor = make()
    with pytest.raises(ValueError, match="^sector 42 is empty$") as info:
        executor.submit(jobs.fail, ValueError, "sector 42 is empty").result(DEADLINE_S)
    assert type(info.value) is ValueError and "in fail\n" in "".join(traceback.format_exception(info.value))
    with pytest.raises(RemoteError, match="^SectorError: sector 42 is empty$"):
        executor.submit(jobs.fail, jobs.SectorError, "sector 42 is empty").result(DEADLINE_S)


def test_exceptions_that_are_hard_to_build_or_dangerous_to_raise(fake, make):
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


def test_a_function_of_this_file(fake, make):
    fake.set(run="now")
    assert make().submit(sum_of, 3, 4).result(DEADLINE_S) == 7


def sum_of(*numbers):
    return sum(numbers)


def test_where_and_how_a_job_runs(fake, make, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", """/a "b" it's""")
    executor = make()
    future = executor.submit(jobs.state)
    (job,) = wait_for_jobs(fake, 1)
    assert job.ad["should_transfer_files"] == "NO" and "transfer_input_files" not in job.ad and executor.report(future) is None
    assert subprocess.run(job.command(), cwd=executor.directory, env=job.environment(), timeout=DEADLINE_S).returncode == 0
    fake.finish(job)
    state = future.result(DEADLINE_S)
    assert state["cwd"] == str(tmp_path / "work" / "condor") and state["cpus"] == 1 and state["OMP_NUM_THREADS"] == "1"
    assert state["PATH"] == os.environ["PATH"] and state["PYTHONPATH"] == os.environ["PYTHONPATH"]
    report = executor.report(future)
    assert report["cpus"] == 1 and 0 <= report["seconds"] < DEADLINE_S and report["peak_memory_kb"] > 1000 and report["host"]
    assert "OMP_NUM_THREADS" not in os.environ or os.environ["OMP_NUM_THREADS"] != "1"


def test_a_relative_directory_and_a_changed_one(fake, make, tmp_path, monkeypatch):
    fake.set(run="background")
    monkeypatch.chdir(tmp_path)
    executor = make("here")
    monkeypatch.chdir("/")
    assert executor.submit(jobs.state).result(DEADLINE_S)["cwd"] == str(tmp_path / "here")


def test_callbacks_may_submit_and_forget(fake, make):
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


def test_an_unexpected_exception_of_the_watcher_fails_all(fake, make):
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


@pytest.mark.parametrize("number", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_many_tasks(fake, make, number, memory_path):
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


def test_a_thousand_waiting_jobs_cost_next_to_nothing(fake, make):
    executor = make(check_interval_s=0.7)
    for x in range(1000):
        executor.submit(jobs.square, x)
    wait_for_jobs(fake, 1000)
    let_it_look(fake, 1)
    before, start = time.process_time(), time.monotonic()
    while time.monotonic() - start < 1:
        threading.Event().wait(0.1)  # no polling of ours
    assert (time.process_time() - before) / (time.monotonic() - start) < 0.2  # measured 0.01; 0.1 where others keep the machine busy


@pytest.mark.parametrize("cancel", [False, True])
def test_shutdown_waits_and_cancels_what_the_cluster_does_not_have(fake, make, cancel):
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


def test_an_exception_detaches(fake, make):
    with pytest.raises(KeyboardInterrupt), make() as executor:
        executor.submit(jobs.square, 3)
        wait_for_jobs(fake, 1)
        raise KeyboardInterrupt
    assert len(fake.jobs()) == 1 and fake.calls("condor_rm") == []
    fake.set(run="background")
    ((future, _, args, _),) = make().recover()
    assert future.result(DEADLINE_S) == 9 and args == (3,)


@pytest.mark.parametrize("seed", range(2))
def test_controllers_that_are_killed_lose_nothing_and_repeat_nothing(fake, tmp_path, seed):
    chance, number = random.Random(seed), 40
    fake.set(run="background")
    for _ in range(5):
        controller = start_controller(tmp_path, number, 0.05)
        with contextlib.suppress(subprocess.TimeoutExpired):
            controller.wait(chance.uniform(0.1, 0.9))
        kill = chance.choice([os.kill, os.killpg])  # alone, or with the tool that it is just calling
        if controller.poll() is None:
            kill(controller.pid, signal.SIGKILL)
        controller.communicate()
        wait_until(lambda: not submitting(fake))
    controller = start_controller(tmp_path, number, 0.05)
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


def test_a_submission_that_outlives_its_controller(fake, tmp_path):
    fake.set(run="background", submit_takes_s=0.5, slots=2)
    controller = start_controller(tmp_path, 20, 0.1)
    wait_until(lambda: fake.calls("condor_submit"))
    os.kill(controller.pid, signal.SIGKILL)
    controller.communicate()
    fake.set(submit_takes_s=0)
    controller = start_controller(tmp_path, 20, 0.1)
    assert controller.communicate(timeout=DEADLINE_S)[0] == "recovered\ndone\n"
    assert sorted(lines_of(tmp_path / "results")) == sorted(f"{x} {x * x}" for x in range(20))
    wait_until(lambda: not submitting(fake))
    assert set(lines_of(tmp_path / "runs")) == {str(x) for x in range(20)}


def in_the_queue(directory):
    return len(Schedd(read_run(directory)).jobs())


def job_id(directory, task):
    """Ask the pool itself which job a task is."""
    command = ["condor_q", "-json", "-attributes", "ClusterId,ProcId,CondorWorkerTask,Iwd"]
    text = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    found = [ad for ad in json.loads(text or "[]") if ad.get("CondorWorkerTask") == task and ad["Iwd"] == str(directory)]
    return f"{found[-1]['ClusterId']}.{found[-1]['ProcId']}" if found else None


@pytest.mark.condor
def test_a_pool_with_a_hostile_directory(real_pool, tmp_path):
    with CondorExecutor(tmp_path / """it's "here", $(x) $ENV(HOME) #\\ ünï; touch pwned""", check_interval_s=1) as executor:
        futures = [executor.submit(jobs.square, x) for x in range(30)]
        where = executor.submit(jobs.state)
        assert results(futures) == [x * x for x in range(30)]
        assert where.result(DEADLINE_S)["cwd"] == str(executor.directory) and where.result()["OMP_NUM_THREADS"] == "1"
        assert executor.report(where)["host"]
    assert task_files(executor.directory) == [] and in_the_queue(executor.directory) == 0 and not list(tmp_path.rglob("pwned"))


@pytest.mark.condor
def test_a_pool_where_jobs_are_removed_held_and_slow(real_pool, tmp_path):
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
def test_a_pool_whose_controller_is_killed(real_pool, tmp_path):
    for _ in range(2):
        controller = start_controller(tmp_path, 20, 1)
        assert controller.stdout.readline() == "recovered\n"
        wait_until(lambda: len(lines_of(tmp_path / "runs")) >= 2)
        os.kill(controller.pid, signal.SIGKILL)
        controller.communicate()
    controller = start_controller(tmp_path, 20, 1)
    assert controller.communicate(timeout=DEADLINE_S)[0] == "recovered\ndone\n"
    assert sorted(lines_of(tmp_path / "results")) == sorted(f"{x} {x * x}" for x in range(20))
    assert sorted(lines_of(tmp_path / "runs"), key=int) == [str(x) for x in range(20)]
    assert in_the_queue(tmp_path / "work" / "condor") == 0
