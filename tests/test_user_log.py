"""HTCondor's log of our jobs, half written or tampered with."""

import os
import time

import pytest
import support_executors as jobs
from support import DEADLINE_S
from support_condor import let_it_look, one_job, results, wait_for_jobs


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
