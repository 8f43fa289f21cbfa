"""HTCondor's tools, where they are missing or do not do what they should."""

import subprocess

import pytest
import support_executors as jobs
from support import DEADLINE_S, patch_rooms, wait_until
from support_condor import let_it_look, one_job, results, wait_for_jobs

from executors.condor import CondorExecutor
from executors.errors import CondorMissing


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


def no_changes_since(fake, before):
    return [call for call in fake.calls()[before:] if call[0] != "condor_q"] == []


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


def test_a_queue_that_hangs_is_no_empty_queue(fake, make, impatient):
    future, job = one_job(fake, make())
    let_it_look(fake, 1)
    fake.set(hang=["condor_q"])
    before = len(fake.calls())
    let_it_look(fake, 2)
    assert no_changes_since(fake, before)
    fake.set(hang=[])
    fake.run(job)
    assert future.result(DEADLINE_S) == 9


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
