"""The files of a directory of jobs, what recover() makes of them, what happened to the tasks."""

import concurrent.futures
import os
from pathlib import Path

import pytest
import support_executors as jobs
from support import DEADLINE_S, limited_file_size, wait_until
from support_condor import events, results, task_files, wait_for_jobs

from executors.directories import private_directory
from executors.errors import DirectoryRefused, ExecutorError


def test_forgotten_files(fake, make):
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


def test_files_that_a_killed_controller_was_writing_or_deleting(fake, make):
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


def test_what_was_never_submitted_is_recovered(fake, make):
    fake.set(down=True)
    executor = make()
    for x in range(3):
        executor.submit(jobs.square, x)
    executor.detach()
    fake.set(down=False, run="background")
    found = make().recover()
    assert [future.result(DEADLINE_S) for future, _, _, _ in found] == [0, 1, 4] and len(fake.history()) == 3


def test_outcomes_that_nobody_forgot_are_told_again(fake, make):
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


def test_a_damaged_call_file_is_dropped_and_its_job_removed(fake, make):
    executor = make()
    for x in range(3):
        executor.submit(jobs.square, x)
    all_jobs = wait_for_jobs(fake, 3)
    executor.detach()
    Path(all_jobs[0].path(".call")).write_bytes(b"damaged")
    Path(all_jobs[1].path(".call")).unlink()
    said = []
    successor = make(say=said.append)
    ((future, _, args, _),) = successor.recover()
    assert args == (2,) and len([line for line in said if all_jobs[0].task in line]) == 1
    wait_for_jobs(fake, 1)
    assert [job.gone for job in fake.history()] == ["removed", "removed", None]
    fake.run(all_jobs[2])
    assert future.result(DEADLINE_S) == 4
    assert "orphan" in {event["event"] for event in events(successor.directory)}


def test_files_are_private(fake, make):
    executor = make()
    executor.submit(jobs.square, 3)
    wait_for_jobs(fake, 1)
    assert executor.directory.stat().st_mode & 0o777 == 0o700
    executor.detach()
    executor.directory.chmod(0o770)
    with pytest.raises(DirectoryRefused, match="chmod go-w"):
        make()


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


def test_the_journal_is_lines_of_json(fake, make):
    fake.set(run="background")
    executor = make()
    results([executor.submit(jobs.square, x) for x in range(3)])
    lines = events(executor.directory)
    assert all("time" in line and "event" in line for line in lines)
    submitted = [line for line in lines if line["event"] == "submitted"]
    assert sorted(task for line in submitted for task in line["tasks"]) == sorted(job.task for job in fake.history())
    assert {line["cluster"] for line in submitted} == {job.cluster for job in fake.history()}


def test_a_journal_that_cannot_be_written_is_said_once(fake, make, tmp_path):
    fake.set(run="now")
    said = []
    journal = private_directory(tmp_path / "work" / "condor") / "events.jsonl"
    journal.write_text('{"time": 0, "event": "note"}\n' * 30_000, encoding="utf-8")
    executor = make(say=said.append)
    with limited_file_size(500_000):
        assert results([executor.submit(jobs.square, x) for x in range(3)]) == [0, 1, 4]
        assert results([executor.submit(jobs.square, x) for x in range(3)]) == [0, 1, 4]
    assert len([line for line in said if "events.jsonl" in line]) == 1, said


def test_more_memory_is_remembered(fake, make):
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
