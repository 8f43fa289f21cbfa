"""What becomes of jobs, as log and queue tell it; a log that is half written or tampered with."""

import os
import time

import pytest
import support_executors as jobs
from support import DEADLINE_S, priority_of_argument, wait_until
from support_condor import let_it_look, one_job, results, task_files, wait_for_jobs

from executors.tasks import TimeLimits


def test_a_second_job_of_a_task_is_removed(fake, make):
    future, job = one_job(fake, make())
    fake.copy(job)
    wait_until(lambda: len(fake.history()) == 2 and fake.history()[1].gone == "removed")
    assert fake.history()[0].gone is None
    fake.run(job)
    assert future.result(DEADLINE_S) == 9


def test_detached_jobs_are_adopted(fake, make):
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


def test_jobs_of_a_run_that_is_not_recovered_are_removed(fake, make, tmp_path):
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


def test_an_eviction_resets_the_clock(fake, make):
    executor = make(stragglers=TimeLimits(60))
    future, job = one_job(fake, executor)
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


def test_waiting_in_the_queue_is_not_slowness(fake, make):
    future, job = one_job(fake, make(stragglers=TimeLimits(0.3), timeout_s=0.3))
    let_it_look(fake, 5)  # 0.7 s
    assert not fake.calls("condor_rm") and len(fake.history()) == 1
    fake.perform(job)
    fake.finish(job)
    assert future.result(DEADLINE_S) == 9


def test_a_log_without_the_start_of_a_job(fake, make):
    """The queue tells it too."""
    future, job = one_job(fake, make(stragglers=TimeLimits(60)))
    with fake.database() as database:
        fake.change(database, job, status=2, start=time.time() - 100)
    wait_until(lambda: [again.cpus for again in fake.jobs()] == [8])
    fake.run(fake.jobs()[0])
    assert future.result(DEADLINE_S) == 9


def test_an_event_that_is_half_written(fake, make):
    future, job = one_job(fake, make())
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
