"""What is done about jobs: outcomes, holds, memory, stragglers, limits, losses."""

import hashlib
import pickle
import re
from pathlib import Path

import pytest
import support_executors as jobs
from support import DEADLINE_S, Planted, patch_rooms, wait_until
from support_condor import let_it_look, one_job, results, wait_for_jobs

from executors.errors import ExecutorError, TaskDied, TaskHeld, TaskTimeout
from executors.tasks import Description, TimeLimits


@pytest.mark.parametrize("logged", [True, False], ids=["removed", "vanished"])
def test_a_job_that_somebody_removed_is_submitted_again(fake, make, logged):
    executor = make(retries=2)
    future, job = one_job(fake, executor)
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
    future, job = one_job(fake, make())
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
    executor = make(check_interval_s=0.02, say=said.append)
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
    future, job = one_job(fake, executor)
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


@pytest.mark.parametrize("output", [True, False])
def test_a_straggler_whose_job_goes_slowly(fake, make, output):
    """It is not run twice at a time, and only where it has left no output."""
    future, job = one_job(fake, make(stragglers=TimeLimits(60)))
    fake.set(removal_lingers=True)
    fake.start(job, ago_s=100)
    wait_until(lambda: fake.jobs(3))
    let_it_look(fake, 3)
    fake.set(down=True)
    let_it_look(fake, 2)
    assert len(fake.history()) == 1
    fake.set(down=False, removal_lingers=False)
    if output:
        fake.perform(job)
    fake.remove(job)
    if not output:
        (again,) = wait_for_jobs(fake, 1)
        assert again.key != job.key and again.cpus == 8
        fake.run(again)
    assert future.result(DEADLINE_S) == 9 and len(fake.history()) == 2 - output


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


def edited(**fields):
    return lambda content, trap: pickle.dumps(pickle.loads(content) | fields)


def with_outcome(make_outcome):
    def damage(content, trap):
        outcome = make_outcome(trap)
        sound = pickle.loads(content)
        assert sound["digest"] == hashlib.sha256(sound["outcome"]).hexdigest()
        return pickle.dumps(sound | {"outcome": outcome, "digest": hashlib.sha256(outcome).hexdigest()})

    return damage


BAD_OUTCOMES = {
    "missing": None,
    "empty": b"",
    "truncated": lambda content, trap: content[:-9],
    "half": lambda content, trap: content[: len(content) // 2],
    "text": b"Killed\n",
    "no dictionary": pickle.dumps([1]),
    "fields missing": pickle.dumps({"format": 1}),
    "another task's": edited(task="9999999"),
    "wrong digest": edited(digest="0" * 64),
    "wrong format": edited(format=99),
    "odd outcome": with_outcome(lambda trap: pickle.dumps(("maybe", 9))),
    "short outcome": with_outcome(lambda trap: pickle.dumps(("ok",))),
    "outcome is text": with_outcome(lambda trap: b"ok"),
    "planted": lambda content, trap: pickle.dumps(Planted(trap)),
    "planted within": with_outcome(lambda trap: pickle.dumps(("ok", Planted(trap)))),
    "exception planted": with_outcome(lambda trap: pickle.dumps(("error", "SystemExit", Planted(trap), ""))),
}


def leave_damaged(fake, job, name, trap):
    """The output file of a job, damaged."""
    path, content = Path(job.path(".out")), BAD_OUTCOMES[name]
    if callable(content):
        assert fake.perform(job) == 0
        content = content(path.read_bytes(), trap)
    if content is not None:
        path.write_bytes(content)


def test_a_damaged_output_file_is_made_anew_and_nothing_in_it_is_executed(fake, make, tmp_path):
    executor = make()
    futures = {name: executor.submit(jobs.square, x) for x, name in enumerate(BAD_OUTCOMES)}
    for name, job in zip(BAD_OUTCOMES, wait_for_jobs(fake, len(BAD_OUTCOMES))):
        leave_damaged(fake, job, name, tmp_path / "trap")
        fake.finish(job)
    fake.set(run="background")
    assert {name: future.result(DEADLINE_S) for name, future in futures.items()} == {name: x * x for x, name in enumerate(BAD_OUTCOMES)}
    assert len(fake.history()) == 2 * len(BAD_OUTCOMES) and not (tmp_path / "trap").exists()


@pytest.mark.parametrize(
    ("output", "exit_code", "said"),
    [("truncated", 0, ""), ("planted within", 0, ""), ("missing", 3, r"\b3\b"), ("missing", -9, "SIGKILL|signal 9")],
)
def test_a_job_that_leaves_no_sound_output_twice(fake, make, tmp_path, output, exit_code, said):
    executor = make(retries=1)
    future = executor.submit(jobs.square, 3)
    for attempt in range(2):
        wait_until(lambda attempt=attempt: len(fake.history()) == attempt + 1)
        (job,) = fake.jobs()
        fake.start(job)
        leave_damaged(fake, job, output, tmp_path / "trap")
        Path(job.path(".err")).write_text("loading\nlast words\n", encoding="utf-8")
        fake.finish(job, exit_code)
    with pytest.raises(TaskDied, match=f"square(?=.*({said}))(?=.*{job.task}.err)(?=.*last words)") as info:
        future.result(DEADLINE_S)
    assert "\n" not in str(info.value) and "loading" not in str(info.value) and not (tmp_path / "trap").exists()
    assert executor.statistics["failed"] == 1 and executor.statistics["retries"] == 1 and len(fake.history()) == 2


def test_an_output_file_that_comes_late_is_used(fake, make, monkeypatch):
    """As on a network file system, where the log may be seen before the file."""
    patch_rooms(monkeypatch, "executors", "GRACE_S", (0.3, 10))
    executor = make()
    future, job = one_job(fake, executor)
    fake.perform(job)
    hidden = Path(job.path(".out")).rename(Path(job.path(".hidden")))
    fake.finish(job)
    wait_until(lambda: executor.counts()["idle"] == 0)
    hidden.rename(job.path(".out"))
    assert future.result(DEADLINE_S) == 9 and len(fake.history()) == 1
