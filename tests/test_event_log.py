"""What happened to the tasks of a directory."""

import support_executors as jobs
from support import DEADLINE_S, limited_file_size, wait_until
from support_condor import events, results, wait_for_jobs

from executors.directories import private_directory


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
    executor = make(say=lambda *words: said.append(" ".join(map(str, words))))
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
