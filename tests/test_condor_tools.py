"""condor tools."""

import json
import os
import re
import subprocess
import time

import pytest
import support_executors as jobs
from support import DEADLINE_S, patch_rooms, wait_until
from support_condor import let_it_look, results, wait_for_jobs

from executors.condor import CondorExecutor
from executors.errors import CondorMissing, SubmitFailed, TaskTimeout

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


def test_options_reach_the_submit_file(fake, make):
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
    for tool in fake_tools.glob("condor_*"):
        if tool.name != missing:
            (tmp_path / "bin" / tool.name).symlink_to(tool)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(CondorMissing, match=missing) as info:
        CondorExecutor(tmp_path / "work")
    assert "\n" not in str(info.value)


def no_changes_since(fake, before):
    return [call for call in fake.calls()[before:] if call[0] != "condor_q"] == []


def test_while_the_schedd_is_down_nothing_is_concluded(fake, make):
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


def test_garbage_from_the_queue_is_not_an_empty_queue(fake, make, monkeypatch):
    patch_rooms(monkeypatch, "executors", "LONGEST_BACKOFF_S", 0.05)
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


def test_a_queue_that_hangs_is_no_empty_queue(fake, make, impatient):
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


def test_a_submission_that_cannot_work(fake, make):
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


def test_a_submission_waits_for_the_schedd(fake, make):
    fake.set(down=True)
    executor = make()
    futures = [executor.submit(jobs.square, x) for x in range(3)]
    wait_until(lambda: len(fake.calls()) >= 3)
    assert not any(future.done() for future in futures)
    fake.set(down=False, run="background")
    assert results(futures) == [0, 1, 4] and len(fake.history()) == 3


def test_a_condor_rm_that_fails_is_repeated(fake, make):
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


def test_an_event_that_is_half_written(fake, make):
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
def test_a_log_that_is_tampered_with(fake, make, how):
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
