"""HTCondor's tools, where they are missing or do not do what they should; when the queue is asked."""

import concurrent.futures
import itertools
import os
import subprocess
import time

import pytest
import support_executors as jobs
from support import DEADLINE_S, patch_rooms, wait_until
from support_condor import let_it_look, no_changes_since, one_job, results, wait_for_jobs

from executors.condor import CondorExecutor
from executors.errors import CondorMissing, TaskTimeout
from executors.tasks import TimeLimits


@pytest.mark.parametrize("missing", ["condor_submit", "condor_q", "condor_rm"])
def test_without_htcondor(fake_tools, tmp_path, monkeypatch, missing):
    (tmp_path / "bin").mkdir()
    for tool in fake_tools.glob("condor_*"):
        if tool.name != missing:
            (tmp_path / "bin" / tool.name).symlink_to(tool)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(CondorMissing, match=missing) as info:
        CondorExecutor(tmp_path / "work")
    assert "\n" not in str(info.value)


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


def test_garbage_from_the_queue_is_not_an_empty_queue(fake, make, monkeypatch):
    patch_rooms(monkeypatch, "executors", "LONGEST_BACKOFF_S", 0.05)
    executor = make(check_interval_s=0.05)
    future, job = one_job(fake, executor)
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


@pytest.mark.parametrize("how", ["error", "die", "silent", "hang"])
def test_a_submission_that_worked_though_it_failed(fake, make, impatient, how):
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


def test_a_submission_that_worked_though_it_failed_and_is_over_already(fake, make):
    fake.set(submit_after="error", run="now")
    executor = make()
    assert results([executor.submit(jobs.square, x) for x in range(5)]) == [x * x for x in range(5)]
    assert len(fake.history()) == 5


def test_while_the_schedd_is_down_nothing_is_concluded(fake, make):
    said = []
    executor = make(say=said.append)
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


def test_recovery_while_the_schedd_is_down(fake, make):
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


def test_a_condor_rm_that_fails_is_repeated(fake, make):
    future, job = one_job(fake, make(timeout_s=60))
    let_it_look(fake, 1)
    fake.set(down=["condor_rm"])
    fake.start(job, ago_s=100)
    wait_until(lambda: fake.calls("condor_rm"))
    let_it_look(fake, 2)
    assert fake.jobs() and not future.done()
    fake.set(down=False)
    assert isinstance(future.exception(DEADLINE_S), TaskTimeout)
    wait_for_jobs(fake, 0)


def test_the_queue_is_asked_once_per_interval_whatever_happens(fake, make, monkeypatch):
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


def test_the_queue_is_not_asked_while_no_job_is_out(fake, make):
    fake.set(run="now")
    executor = make(check_interval_s=0.05)
    executor.submit(jobs.square, 3).result(DEADLINE_S)
    wait_until(lambda: executor.counts()["running"] == executor.counts()["idle"] == 0)
    before = len(fake.calls())
    with pytest.raises(concurrent.futures.TimeoutError):
        concurrent.futures.Future().result(0.5)
    assert len(fake.calls()) <= before + 1
