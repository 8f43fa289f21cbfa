"""The jobs of a directory, without an executor."""

import support_executors as jobs
from support_condor import wait_for_jobs

from executors.job_runs import remove_run


def test_the_jobs_of_a_run_are_counted_and_removed(fake, make, tmp_path):
    executor, other = make(), make(tmp_path / "other")
    for x in range(4):
        executor.submit(jobs.square, x)
    other.submit(jobs.square, 5)
    wait_for_jobs(fake, 5)
    mine = [job for job in fake.jobs() if job.ad["initialdir"] == str(executor.directory)]
    executor.detach()
    fake.start(mine[0])
    fake.hold(mine[1], 1, "because")
    assert remove_run(executor.directory) == 4
    assert [job.key for job in fake.jobs()] == [job.key for job in fake.history() if job.key not in {job.key for job in mine}]
    other.detach()
    assert remove_run(executor.directory) == 0 and remove_run(other.directory) == 1 and fake.jobs() == []
