"""condor."""

import concurrent.futures
import itertools
import os
import re
import subprocess
import threading
import time

import pytest
import support_executors as jobs
from support import DEADLINE_S, priority_of_argument, wait_until
from support_condor import let_it_look, results, task_files, wait_for_jobs

from executors.errors import ExecutorError, TaskHeld
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


@pytest.mark.parametrize("logged", [True, False], ids=["removed", "vanished"])
def test_a_job_that_somebody_removed_is_submitted_again(fake, make, logged):
    executor = make(retries=2)
    future = executor.submit(jobs.square, 3)
    (job,) = wait_for_jobs(fake, 1)
    fake.start(job)
    fake.remove(job) if logged else fake.vanish(job)
    (again,) = wait_for_jobs(fake, 1)
    assert again.task == job.task and (again.cpus, again.memory) == (job.cpus, job.memory)
    fake.run(again)
    assert future.result(DEADLINE_S) == 9 and executor.statistics["retries"] == 1


def test_a_job_that_is_removed_again_and_again(fake, make):
    executor = make(retries=2)
    future = executor.submit(jobs.square, 3)
    for attempt in range(3):
        wait_until(lambda attempt=attempt: len(fake.history()) == attempt + 1)
        fake.remove(fake.jobs()[0])
    with pytest.raises(ExecutorError, match="square.*remove") as info:
        future.result(DEADLINE_S)
    assert "\n" not in str(info.value) and len(fake.history()) == 3


def test_a_removed_job_that_has_left_its_output(fake, make):
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


def test_a_held_job_is_released_and_at_last_given_up(fake, make):
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


def test_a_job_that_is_held_again_at_once(fake, make):
    """The queue and the log tell of the same hold, which counts once."""
    executor = make(check_interval_s=0.02)
    future = executor.submit(jobs.square, 3)
    (job,) = wait_for_jobs(fake, 1)
    for releases in range(4):
        fake.hold(job, 1, "because")
        wait_until(lambda releases=releases: (len(fake.calls("condor_release")) > releases and fake.jobs(1)) or future.done())
    assert isinstance(future.exception(DEADLINE_S), TaskHeld)
    assert (len(fake.calls("condor_release")), executor.statistics["held"]) == (3, 4)


def test_jobs_held_together_are_released_together_and_go_on(fake, make):
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
def test_a_job_held_for_its_memory_gets_more_up_to_a_limit(fake, make, code, reason):
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


def test_more_memory_helps(fake, make):
    executor = make()
    future = executor.submit(jobs.square, 3)
    (job,) = wait_for_jobs(fake, 1)
    fake.hold(job, 34, "memory")
    wait_until(lambda: [again.memory for again in fake.jobs()] == [2 * job.memory])
    fake.run(fake.jobs()[0])
    assert future.result(DEADLINE_S) == 9


def test_a_second_job_of_a_task_is_removed(fake, make):
    executor = make()
    future = executor.submit(jobs.square, 3)
    (job,) = wait_for_jobs(fake, 1)
    fake.copy(job)
    wait_until(lambda: len(fake.history()) == 2 and fake.history()[1].gone == "removed")
    assert fake.history()[0].gone is None
    fake.run(job)
    assert future.result(DEADLINE_S) == 9


def test_the_heaviest_first(fake, make):
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


def test_many_tasks_are_one_cluster(fake, make):
    executor = make(describe=priority_of_argument)
    futures = [executor.submit(jobs.square, x) for x in range(200)]
    all_jobs = wait_for_jobs(fake, 200)
    assert len({job.cluster for job in all_jobs}) == len(fake.calls("condor_submit")) <= 3
    assert {job.priority for job in all_jobs} == set(range(200))
    assert len({job.ad["log"] for job in all_jobs}) == 1
    executor.remove_jobs()
    assert not any(future.done() and future.exception() is None for future in futures)


def test_max_jobs_is_respected(fake, make, tmp_path):
    fake.set(run="background", slots=2)
    executor = make(max_jobs=5)
    futures, most = [executor.submit(jobs.noted_square, str(tmp_path / "runs"), x) for x in range(15)], 0
    while not all(future.done() for future in futures):
        most = max(most, len(fake.jobs()))
    assert results(futures) == [x * x for x in range(15)] and most <= 5
    sizes = [len(list(group)) for _, group in itertools.groupby(fake.history(), key=lambda job: job.cluster)]
    assert sum(sizes) == 15 and max(sizes) <= 5


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
