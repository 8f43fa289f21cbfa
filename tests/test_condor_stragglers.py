"""condor stragglers."""

import time
from pathlib import Path

import pytest
import support_executors as jobs
from support import DEADLINE_S, wait_until
from support_condor import let_it_look, results, wait_for_jobs

from executors.errors import TaskTimeout
from executors.tasks import Description, TimeLimits


def test_a_straggler_is_run_again_with_more_cpus(fake, make, tmp_path):
    executor = make(stragglers=TimeLimits(60))
    futures = [executor.submit(jobs.state) for _ in range(5)]
    all_jobs = wait_for_jobs(fake, 5)
    for job in all_jobs[:3]:
        fake.start(job, ago_s=100)
    fake.start(all_jobs[3], ago_s=5)
    wait_until(lambda: len(fake.history()) == 8 and len(fake.jobs()) == 5)
    again = fake.history()[5:]
    assert sorted(job.task for job in again) == [job.task for job in all_jobs[:3]]
    assert all((job.cpus, job.memory) == (8, 2 * all_jobs[0].memory) for job in again)
    assert len(fake.calls("condor_rm")) <= 3  # not one for each
    for job in again[1:]:
        fake.run(job)
    fake.start(again[0], ago_s=10_000)  # has no such limit now
    let_it_look(fake)
    assert len(fake.history()) == 8
    fake.finish(again[0], fake.perform(again[0]))
    assert [future.result(DEADLINE_S)["cpus"] for future in futures[:3]] == [8, 8, 8]
    assert executor.report(futures[0])["cpus"] == 8
    for job in all_jobs[3:]:
        fake.run(job)
    assert [future.result(DEADLINE_S)["cpus"] for future in futures[3:]] == [1, 1]
    assert executor.statistics["stragglers"] == 3 and not Path("pwned").exists()


def test_a_straggler_whose_output_is_there_first(fake, make):
    executor = make(stragglers=TimeLimits(60))
    future = executor.submit(jobs.square, 3)
    (job,) = wait_for_jobs(fake, 1)
    fake.set(removal_lingers=True)
    fake.start(job, ago_s=100)
    wait_until(lambda: fake.jobs(3))
    fake.perform(job)
    fake.remove(job)
    assert future.result(DEADLINE_S) == 9 and len(fake.history()) == 1


def test_a_straggler_is_not_run_twice_at_a_time(fake, make):
    executor = make(stragglers=TimeLimits(60))
    future = executor.submit(jobs.square, 3)
    (job,) = wait_for_jobs(fake, 1)
    fake.set(removal_lingers=True)
    fake.start(job, ago_s=100)
    wait_until(lambda: fake.jobs(3))
    let_it_look(fake, 3)
    fake.set(down=True)
    let_it_look(fake, 2)
    assert len(fake.history()) == 1
    fake.set(down=False, removal_lingers=False)
    fake.remove(job)
    (again,) = wait_for_jobs(fake, 1)
    assert again.key != job.key and again.cpus == 8
    fake.run(again)
    assert future.result(DEADLINE_S) == 9


def test_an_eviction_resets_the_clock(fake, make):
    executor = make(stragglers=TimeLimits(60))
    future = executor.submit(jobs.square, 3)
    (job,) = wait_for_jobs(fake, 1)
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
    executor = make(stragglers=TimeLimits(0.3), timeout_s=0.3)
    future = executor.submit(jobs.square, 3)
    (job,) = wait_for_jobs(fake, 1)
    let_it_look(fake, 5)  # 0.7 s
    assert not fake.calls("condor_rm") and len(fake.history()) == 1
    fake.perform(job)
    fake.finish(job)
    assert future.result(DEADLINE_S) == 9


def test_a_log_without_the_start_of_a_job(fake, make):
    """The queue tells it too."""
    executor = make(stragglers=TimeLimits(60))
    future = executor.submit(jobs.square, 3)
    (job,) = wait_for_jobs(fake, 1)
    with fake.database() as database:
        fake.change(database, job, status=2, start=time.time() - 100)
    wait_until(lambda: [again.cpus for again in fake.jobs()] == [8])
    fake.run(fake.jobs()[0])
    assert future.result(DEADLINE_S) == 9


def test_the_hard_time_limit(fake, make):
    executor = make(timeout_s=60, retries=3)
    slow, fast = executor.submit(jobs.square, 3), executor.submit(jobs.square, 4)
    first, second = wait_for_jobs(fake, 2)
    fake.start(first, ago_s=100)
    with pytest.raises(TaskTimeout, match="square.* 60 s"):
        slow.result(DEADLINE_S)
    fake.run(second)
    assert fast.result(DEADLINE_S) == 16 and len(fake.history()) == 2 and fake.history()[0].gone == "removed"


def test_the_limit_that_is_learned(fake, make):
    fake.set(run="now")
    executor = make(stragglers=TimeLimits(None, auto=True, floor_s=50), describe=lambda fn, args, kwargs: Description(group=fn.__name__))
    results([executor.submit(jobs.square, x) for x in range(12)])
    fake.set(run="idle")
    known, unknown = executor.submit(jobs.square, 3), executor.submit(jobs.same, 4)
    for job in wait_for_jobs(fake, 2):
        fake.start(job, ago_s=100)
    wait_until(lambda: len(fake.history()) == 15)
    first, second = sorted(fake.jobs(), key=lambda job: job.cpus)
    assert (first.cpus, second.cpus) == (1, 8)
    fake.finish(first, fake.perform(first))
    fake.run(second)
    assert results([known, unknown]) == [9, 4]
