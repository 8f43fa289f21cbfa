"""Tasks in processes of this machine, and in this one."""

import concurrent.futures
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import support_executors as jobs
from fake_condor import alive
from support import DEADLINE_S, HERE, exists, lines_of, path_to, wait_until
from support_condor import results

from executors.base import InlineExecutor
from executors.errors import TaskDied, TaskTimeout
from executors.local import LocalExecutor
from executors.tasks import LONGEST_TIMEOUT_S, THREAD_VARIABLES, Description, TimeLimits, task_cpus


def test_keyboard_interrupt_passes_through_the_inline_executor():
    with InlineExecutor() as executor, pytest.raises(KeyboardInterrupt):
        executor.submit(jobs.fail, KeyboardInterrupt)


@pytest.mark.parametrize(
    "options", [{"processes": 0}, {"timeout_s": 0}, {"timeout_s": float("inf")}, {"timeout_s": float("nan")}, {"retries": -1}]
)
def test_impossible_numbers(options):
    options = {"processes": 1} | options
    with pytest.raises(ValueError, match=f"{list(options)[-1]}={list(options.values())[-1]}"):
        LocalExecutor(**options)


def test_killed_from_outside_is_tried_again_and_nobody_notices(tmp_path):
    with LocalExecutor(2) as executor:
        victim = executor.submit(jobs.hang_first, tmp_path / "pids")
        others = [executor.submit(jobs.square, x) for x in range(20)]
        wait_until(lambda: jobs.pids(tmp_path / "pids"))
        os.kill(jobs.pids(tmp_path / "pids")[0], signal.SIGKILL)
        assert victim.result(DEADLINE_S) == 2
        assert [f.result(DEADLINE_S) for f in others] == [x * x for x in range(20)]


def test_killed_while_idle_costs_no_attempt():
    with LocalExecutor(1, retries=0) as executor:
        first = executor.submit(jobs.state).result(DEADLINE_S)["pid"]
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: executor._workers[0].process.exitcode is not None)
        assert executor.submit(jobs.state).result(DEADLINE_S)["pid"] != first


def test_task_that_always_dies(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    with LocalExecutor(2, retries=2, log_dir=tmp_path / "logs") as executor:
        dying = executor.submit(jobs.kill_self, tmp_path / "pids", signal.SIGKILL)
        others = [executor.submit(jobs.square, x) for x in range(20)]
        with pytest.raises(TaskDied, match=r"kill_self: .* SIGKILL .*made: 3; see .*worker-\d\.log") as info:
            dying.result(DEADLINE_S)
        assert len(jobs.pids(tmp_path / "pids")) == 3
        assert [f.result(DEADLINE_S) for f in others] == [x * x for x in range(20)]
    assert Path(str(info.value).rpartition("see ")[2]).read_text(encoding="utf-8") == "last words\n" * 3


def test_crash_and_exit_code_are_named(tmp_path):
    with LocalExecutor(1, retries=0, log_dir=tmp_path) as executor:
        with pytest.raises(TaskDied, match="exit_self: its process ended with exit code 7"):
            executor.submit(jobs.exit_self, 7).result(DEADLINE_S)
        with pytest.raises(TaskDied, match="SIGSEGV"):
            executor.submit(jobs.kill_self, tmp_path / "pids", signal.SIGSEGV).result(DEADLINE_S)
        assert "in kill_self" in (tmp_path / "worker-0.log").read_text(encoding="utf-8")
        assert executor.submit(jobs.square, 3).result(DEADLINE_S) == 9


def test_time_limit_takes_one_task_only(tmp_path):
    with LocalExecutor(2, timeout_s=0.7, retries=3, log_dir=tmp_path / "logs") as executor:
        hanging = executor.submit(jobs.hang, tmp_path / "pids")
        others = [executor.submit(jobs.square, x) for x in range(20)]
        with pytest.raises(TaskTimeout, match=r"hang was killed at its time limit of 0\.7 s; see .*worker-\d\.log"):
            hanging.result(DEADLINE_S)
        (pid,) = jobs.pids(tmp_path / "pids")  # one attempt in spite of retries=3
        assert not exists(pid)
        assert [f.result(DEADLINE_S) for f in others] == [x * x for x in range(20)]
        assert list(executor.map(jobs.square, range(20))) == [x * x for x in range(20)]


def test_an_interrupted_exchange_does_not_answer_the_next_task(monkeypatch):
    with LocalExecutor(1) as executor:
        monkeypatch.setattr(executor, "timeout_s", "not a number")
        assert isinstance(executor.submit(jobs.square, 3).exception(DEADLINE_S), TypeError)
        monkeypatch.undo()
        assert executor.submit(jobs.square, 4).result(DEADLINE_S) == 16


def test_longest_time_limit():
    with LocalExecutor(1, timeout_s=0.999 * LONGEST_TIMEOUT_S) as executor:
        assert executor.submit(jobs.square, 4).result(DEADLINE_S) == 16


def test_processes_start_when_needed(tmp_path):
    with LocalExecutor(3) as executor:
        assert len(executor._workers) == 0
        executor.submit(jobs.square, 1).result(DEADLINE_S)
        wait_until(lambda: executor._idle == 1)
        executor.submit(jobs.square, 1).result(DEADLINE_S)
        assert len(executor._workers) == 1
        executor.warm_up()
        assert len(executor._workers) == 3
        assert len({worker.process.pid for worker in executor._workers}) == 3


def test_cancel_a_queued_task(tmp_path):
    with LocalExecutor(1) as executor:
        running = executor.submit(jobs.hang_first, tmp_path / "pids")
        queued = [executor.submit(jobs.square, x) for x in range(3)]
        wait_until(running.running)
        assert queued[1].cancel() and not running.cancel()
        wait_until(lambda: jobs.pids(tmp_path / "pids"))
        os.kill(jobs.pids(tmp_path / "pids")[0], signal.SIGKILL)
        assert running.result(DEADLINE_S) == 2
        assert [queued[0].result(DEADLINE_S), queued[2].result(DEADLINE_S)] == [0, 4]
        assert concurrent.futures.wait(queued, DEADLINE_S).not_done == set()


def test_shutdown_finishes_the_queue_or_cancels_it(tmp_path):
    executor = LocalExecutor(1)
    futures = [executor.submit(jobs.square, x) for x in range(10)]
    executor.shutdown()
    assert [f.result(0) for f in futures] == [x * x for x in range(10)]
    executor = LocalExecutor(1)
    running = executor.submit(jobs.hang_first, tmp_path / "pids")
    wait_until(lambda: jobs.pids(tmp_path / "pids"))
    queued = [executor.submit(jobs.square, x) for x in range(10)]
    executor.shutdown(wait=False, cancel_futures=True)
    assert concurrent.futures.wait(queued, 0).not_done == set() and all(f.cancelled() for f in queued)
    os.kill(jobs.pids(tmp_path / "pids")[0], signal.SIGKILL)
    executor.shutdown()
    assert running.result(0) == 2


def test_processes_ignore_interrupts(tmp_path):
    with LocalExecutor(1) as executor:
        future = executor.submit(jobs.hang_until, tmp_path / "go on", tmp_path / "pids")
        wait_until(lambda: jobs.pids(tmp_path / "pids"))
        os.kill(jobs.pids(tmp_path / "pids")[0], signal.SIGINT)
        (tmp_path / "go on").touch()
        assert future.result(DEADLINE_S) == 1


def test_no_process_is_left(tmp_path):
    with LocalExecutor(3) as orderly:
        orderly.warm_up()
        orderly.submit(jobs.square, 1)
    with pytest.raises(jobs.SectorError), LocalExecutor(8) as failing:  # more of them than cores, all at the same time
        running = [failing.submit(jobs.hang, tmp_path / "pids") for _ in range(8)]
        queued = failing.submit(jobs.square, 1)
        wait_until(lambda: len(jobs.pids(tmp_path / "pids")) == 8)
        raise jobs.SectorError
    assert all(isinstance(f.exception(0), TaskDied) for f in running) and queued.cancelled()
    for executor in orderly, failing:
        ids = [worker.process.pid for worker in executor._workers]
        assert len(ids) == executor.processes and not any(map(exists, ids))
        assert not any(thread.is_alive() for thread in executor._threads)


def test_callback_may_end_its_executor(tmp_path, caplog):
    with LocalExecutor(2) as executor:
        hanging = executor.submit(jobs.hang, tmp_path / "pids")
        wait_until(lambda: jobs.pids(tmp_path / "pids"))
        executor.submit(jobs.square, 1).add_done_callback(lambda future: executor.kill_workers())
        assert isinstance(hanging.exception(DEADLINE_S), TaskDied)
    assert not caplog.records  # where exceptions of callbacks end


def test_one_thread_for_blas_unless_set(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    with LocalExecutor(1) as executor:
        assert executor.submit(jobs.state).result(DEADLINE_S)["OMP_NUM_THREADS"] == "1"
        assert executor.submit(jobs.state).result(DEADLINE_S)["MKL_NUM_THREADS"] == "3"
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
        futures = [executor.submit(jobs.state) for executor in executors]
        assert [f.result(DEADLINE_S)["OMP_NUM_THREADS"] for f in futures] == ["1"] * 4


def test_overhead_of_a_small_task(pool):
    def round_trip():
        start = time.perf_counter()
        pool.submit(jobs.square, 3).result(DEADLINE_S)
        return time.perf_counter() - start

    assert min(round_trip() for _ in range(300)) < 1e-3  # the best of many: what the machine does besides is not ours


SCRIPT = """
import os, sys, threading, time
OMP_AT_IMPORT = os.environ.get('OMP_NUM_THREADS')
if __name__ != '__main__':
    os.write(1, f'importing {os.getpid()}\\n'.encode())  # in one piece: several processes write here
    time.sleep(float(os.environ.get('IMPORT_TAKES_S', '0')))
from executors.local import LocalExecutor


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
    (folder / "run me.py").write_text(f"{SCRIPT}if __name__ == '__main__':\n{main}", encoding="utf-8")
    inherited = {name: value for name, value in os.environ.items() if name not in THREAD_VARIABLES}
    inherited |= {"PYTHONPATH": str(HERE)} | environment
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, "run me.py"], cwd=folder, env=inherited, text=True, start_new_session=True, **pipes)


def finish(script, text=""):
    """What a script printed to its output and errors after it got a text as its input."""
    try:
        return script.communicate(text, timeout=DEADLINE_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(script.pid, signal.SIGKILL)  # a failed test leaves nothing behind either


TWO_AT_WORK = """
    with LocalExecutor(2, timeout_s=0.5, retries=0) as executor:
        executor.warm_up()
        print(list(executor.map(work, range(4))), os.environ.get('OMP_NUM_THREADS'))
        try:
            executor.submit(work, -1).result()
        except Special as error:
            print(type(error) is Special, error)
    """
SQUARES = "[(0, '1'), (1, '1'), (4, '1'), (9, '1')] None\nTrue negative: -1\n"


def test_functions_and_exceptions_of_a_script_whose_processes_are_interrupted(tmp_path):
    """A Ctrl-C while they import is ignored. The time limit is shorter than the import of the script, which does not count."""
    script = start_script(tmp_path, TWO_AT_WORK, IMPORT_TAKES_S="0.8")
    for line in [script.stdout.readline() for _ in range(2)]:
        os.kill(int(line.removeprefix("importing")), signal.SIGINT)
    assert finish(script) == (SQUARES, "")


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


def test_task_cpus_outside_of_a_task():
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


def test_local_stragglers_are_run_again_with_more_cpus(tmp_path, quick):
    limits = LimitOnceStarted(tmp_path / "pids", "hang_on_one_cpu")
    with LocalExecutor(2, stragglers=limits, straggler_cpus=6, retries=0, describe=group_by_function) as executor:
        slow = executor.submit(jobs.hang_on_one_cpu, tmp_path / "pids")
        others = [executor.submit(jobs.square, x) for x in range(10)]
        assert slow.result(DEADLINE_S) == 6 and results(others) == [x * x for x in range(10)]
        assert executor.submit(task_cpus).result(DEADLINE_S) == 1  # in whichever process
        assert executor.submit(task_cpus).result(DEADLINE_S) == 1
        first, second = jobs.pids(tmp_path / "pids")
        assert first != second and not alive(first)
        assert executor.statistics["stragglers"] == 1 and executor.statistics["tasks"] == 13 and executor.statistics["died"] == 0
        assert executor.report(slow)["cpus"] == 6


def test_a_local_limit_that_is_learned_while_the_task_runs(tmp_path, quick):
    limits = TimeLimits(None, auto=True, floor_s=0.3)
    with LocalExecutor(2, stragglers=limits, describe=lambda fn, args, kwargs: Description(group="all")) as executor:
        slow = executor.submit(jobs.hang_on_one_cpu, tmp_path / "pids")
        wait_until(lambda: jobs.pids(tmp_path / "pids"))
        results([executor.submit(jobs.square, x) for x in range(12)])
        assert slow.result(DEADLINE_S) == 8


def test_a_local_straggler_keeps_its_hard_limit(tmp_path, quick):
    limits = LimitOnceStarted(tmp_path / "pids", "hang")
    with LocalExecutor(1, timeout_s=0.7, stragglers=limits, describe=group_by_function) as executor:
        hanging = executor.submit(jobs.hang, tmp_path / "pids")
        with pytest.raises(TaskTimeout, match="hang"):
            hanging.result(DEADLINE_S)
        assert len(jobs.pids(tmp_path / "pids")) == 2 and executor.submit(jobs.square, 3).result(DEADLINE_S) == 9


def test_processes_of_a_local_straggler_die_with_it(tmp_path, quick):
    limits = LimitOnceStarted(tmp_path / "pids", "hang_within_on_one_cpu")
    with LocalExecutor(1, stragglers=limits, describe=group_by_function) as executor:
        assert executor.submit(jobs.hang_within_on_one_cpu, tmp_path / "pids").result(DEADLINE_S) == "done"
        (grandchild,) = jobs.pids(tmp_path / "pids")
        wait_until(lambda: not alive(grandchild))


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM, None])
def test_grandchildren_end_with_the_main_program(tmp_path, signal_number):
    code = "import sys, support_executors as jobs\nfrom executors.local import LocalExecutor\nif __name__ == '__main__':\n"
    code += "    executor = LocalExecutor(1)\n    executor.submit(jobs.hang_within_on_one_cpu, sys.argv[1])\n    sys.stdin.read()"
    (tmp_path / "main.py").write_text(code)
    environment = os.environ | path_to(HERE / "tests")
    script = subprocess.Popen([sys.executable, tmp_path / "main.py", tmp_path / "pids"], env=environment, stdin=subprocess.PIPE)
    wait_until(lambda: jobs.pids(tmp_path / "pids"))
    (grandchild,) = jobs.pids(tmp_path / "pids")
    if signal_number is None:
        script.stdin.close()
    else:
        script.send_signal(signal_number)
    script.wait(DEADLINE_S)
    wait_until(lambda: not alive(grandchild))


def test_local_queue_takes_the_heaviest_first(tmp_path):
    with LocalExecutor(1, describe=lambda fn, args, kwargs: Description(priority=args[1] // 10 if len(args) > 1 else 100)) as executor:
        blocker = executor.submit(jobs.hang_on_one_cpu, tmp_path / "pids")
        wait_until(lambda: jobs.pids(tmp_path / "pids"))
        numbers = [31, 15, 92, 65, 35, 89, 93, 12, 38, 46, 99, 90]
        futures = [executor.submit(jobs.noted_square, tmp_path / "runs", x) for x in numbers]
        assert executor.counts()["queued"] == len(numbers) and executor.counts()["running"] == 1
        os.kill(jobs.pids(tmp_path / "pids")[0], signal.SIGKILL)  # tried again
        wait_until(lambda: len(jobs.pids(tmp_path / "pids")) == 2)
        os.kill(jobs.pids(tmp_path / "pids")[1], signal.SIGKILL)
        assert isinstance(blocker.exception(DEADLINE_S), TaskDied)
        assert results(futures) == [x * x for x in numbers]
    assert list(map(int, lines_of(tmp_path / "runs"))) == sorted(numbers, key=lambda x: -(x // 10))
    assert executor.statistics["died"] == 1 and executor.statistics["failed"] == 1
