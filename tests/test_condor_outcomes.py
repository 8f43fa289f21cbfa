"""condor outcomes."""

import concurrent.futures
import hashlib
import os
import pickle
import random
import re
import subprocess
import sys
import threading
import traceback
from pathlib import Path

import pytest
import support_executors as jobs
from support import DEADLINE_S, Planted, limited_file_size, patch_rooms, path_to, wait_until
from support_condor import results, task_files, wait_for_jobs

from executors.directories import private_directory
from executors.errors import ExecutorError, NotPicklable, RemoteError, TaskDied
from executors.inline import InlineExecutor
from executors.local import LocalExecutor
from executors.tasks import TimeLimits


def test_results_do_not_depend_on_order_nor_on_the_cluster(fake, make):
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


def test_exceptions(fake, make):
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


def test_a_call_that_does_not_pickle(fake, make):
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


def test_where_and_how_a_job_runs(fake, make, tmp_path, monkeypatch):
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


def test_report_of_a_task_that_is_not_done(fake, make):
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


def test_every_executor_tells_the_same(any_executor):
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


def test_a_damaged_output_file_is_made_anew_and_nothing_in_it_is_executed(fake, make, tmp_path):
    executor = make()
    futures = {name: executor.submit(jobs.square, x) for x, name in enumerate(BAD_OUTCOMES)}
    for name, job in zip(BAD_OUTCOMES, wait_for_jobs(fake, len(BAD_OUTCOMES))):
        leave_damaged(fake, job, name, tmp_path / "trap")
        fake.finish(job)
    fake.set(run="background")
    assert {name: future.result(DEADLINE_S) for name, future in futures.items()} == {name: x * x for x, name in enumerate(BAD_OUTCOMES)}
    assert len(fake.history()) == 2 * len(BAD_OUTCOMES) and not (tmp_path / "trap").exists()


@pytest.mark.parametrize("name", ["truncated", "planted within"])
def test_an_output_file_that_is_always_damaged(fake, make, tmp_path, name):
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
def test_a_job_that_ends_without_output(fake, make, exit_code, said):
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


def test_an_output_file_that_comes_late_is_used(fake, make, monkeypatch):
    """As on a network file system, where the log may be seen before the file."""
    patch_rooms(monkeypatch, "executors", "GRACE_S", (0.3, 10))
    executor = make()
    future = executor.submit(jobs.square, 3)
    (job,) = wait_for_jobs(fake, 1)
    fake.perform(job)
    hidden = Path(job.path(".out")).rename(Path(job.path(".hidden")))
    fake.finish(job)
    wait_until(lambda: executor.counts()["idle"] == 0)
    hidden.rename(job.path(".out"))
    assert future.result(DEADLINE_S) == 9 and len(fake.history()) == 1


def test_a_result_for_which_the_disk_has_no_room(fake, make):
    """The limit on a file's size fails as a full disk does."""
    executor = make(retries=0)
    future = executor.submit(jobs.same, "x" * 1_000_000)
    (job,) = wait_for_jobs(fake, 1)
    before = set(os.listdir(executor.directory))
    code = "import sys, condor_worker\ncondor_worker.DISK_PAUSES_S = (0, 0)\nsys.exit(condor_worker.main(sys.argv[1:]))"
    arguments = job.command()[2:]
    with limited_file_size(500_000), open(job.path(".err"), "wb") as errors:
        done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=executor.directory, env=os.environ | path_to(), stderr=errors)
    assert done.returncode == 3
    assert set(os.listdir(executor.directory)) - before <= {f"{job.task}.err"}  # no half a file
    (line,) = Path(job.path(".err")).read_text(encoding="utf-8").splitlines()
    assert job.task in line
    fake.finish(job, 3)
    with pytest.raises(TaskDied, match=re.escape(line[-20:])):
        future.result(DEADLINE_S)


def test_a_call_for_which_the_disk_has_no_room(fake, make):
    fake.set(run="now")
    executor = make()
    with limited_file_size(500_000):
        future = executor.submit(jobs.same, "x" * 1_000_000)
        with pytest.raises(ExecutorError) as info:
            future.result(DEADLINE_S)
        assert "\n" not in str(info.value) and str(executor.directory) in str(info.value)
        assert executor.submit(jobs.square, 3).result(DEADLINE_S) == 9
    assert not [name for name in os.listdir(executor.directory) if "tmp" in name]


def test_a_journal_that_cannot_be_written_is_said_once(fake, make, tmp_path):
    fake.set(run="now")
    said = []
    journal = private_directory(tmp_path / "work" / "condor") / "events.jsonl"
    journal.write_text('{"time": 0, "event": "note"}\n' * 30_000, encoding="utf-8")
    executor = make(say=lambda *words: said.append(" ".join(map(str, words))))
    with limited_file_size(500_000):
        assert results([executor.submit(jobs.square, x) for x in range(3)]) == [0, 1, 4]
        assert results([executor.submit(jobs.square, x) for x in range(3)]) == [0, 1, 4]
    assert len([line for line in said if "events.jsonl" in line]) == 1, said
