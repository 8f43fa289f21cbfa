"""condor recovery."""

import concurrent.futures
import contextlib
import os
import random
import signal
import subprocess
from pathlib import Path

import pytest
import support_executors as jobs
from support import DEADLINE_S, lines_of, priority_of_argument, wait_until
from support_condor import events, let_it_look, results, start_controller, task_files, wait_for_jobs

from executors.errors import DirectoryRefused
from executors.job_runs import remove_run


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


@pytest.mark.parametrize("cancel", [False, True])
def test_shutdown_waits_and_cancels_what_the_cluster_does_not_have(fake, make, cancel):
    executor = make(max_jobs=2)
    futures = [executor.submit(jobs.square, x) for x in range(5)]
    wait_for_jobs(fake, 2)
    wait_until(lambda: all(future.running() for future in futures[:2]))
    assert futures[2].cancel() and not futures[0].cancel()
    executor.shutdown(wait=False, cancel_futures=cancel)
    with pytest.raises(RuntimeError, match="cannot submit square"):
        executor.submit(jobs.square, 2)
    fake.set(run="background")
    executor.shutdown()
    assert [future.cancelled() for future in futures] == [False, False, True, cancel, cancel]
    assert [future.result(0) for future in futures if not future.cancelled()] == ([0, 1] if cancel else [0, 1, 9, 16])
    assert concurrent.futures.wait(futures, 0).not_done == set() and task_files(executor.directory) == []
    assert len(fake.history()) == (2 if cancel else 4)


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


def test_an_exception_detaches(fake, make):
    with pytest.raises(KeyboardInterrupt), make() as executor:
        executor.submit(jobs.square, 3)
        wait_for_jobs(fake, 1)
        raise KeyboardInterrupt
    assert len(fake.jobs()) == 1 and fake.calls("condor_rm") == []
    fake.set(run="background")
    ((future, _, args, _),) = make().recover()
    assert future.result(DEADLINE_S) == 9 and args == (3,)


def test_what_was_never_submitted_is_recovered(fake, make):
    fake.set(down=True)
    executor = make()
    for x in range(3):
        executor.submit(jobs.square, x)
    executor.detach()
    fake.set(down=False, run="background")
    found = make().recover()
    assert [future.result(DEADLINE_S) for future, _, _, _ in found] == [0, 1, 4] and len(fake.history()) == 3


def test_recovery_while_the_schedd_is_down(fake, make):
    executor = make()
    for x in range(3):
        executor.submit(jobs.square, x)
    wait_for_jobs(fake, 3)
    executor.detach()
    fake.set(down=True)
    successor = make()
    found = successor.recover()
    assert sorted(args[0] for _, _, args, _ in found) == [0, 1, 2]
    before = len(fake.calls())
    wait_until(lambda: len(fake.calls()) >= before + 2)
    fake.set(down=False)
    let_it_look(fake)
    assert len(fake.history()) == 3 and fake.calls("condor_rm") == []
    fake.set(run="background")
    assert sorted(future.result(DEADLINE_S) for future, _, _, _ in found) == [0, 1, 4]


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
    successor = make(say=lambda *words: said.append(" ".join(map(str, words))))
    ((future, _, args, _),) = successor.recover()
    assert args == (2,) and len([line for line in said if all_jobs[0].task in line]) == 1
    wait_for_jobs(fake, 1)
    assert [job.gone for job in fake.history()] == ["removed", "removed", None]
    fake.run(all_jobs[2])
    assert future.result(DEADLINE_S) == 4
    assert "orphan" in {event["event"] for event in events(successor.directory)}


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
    assert remove_run(executor.directory) == 0 and other.remove_jobs() == 1 and fake.jobs() == []


def test_the_journal_is_lines_of_json(fake, make):
    fake.set(run="background")
    executor = make()
    results([executor.submit(jobs.square, x) for x in range(3)])
    lines = events(executor.directory)
    assert all("time" in line and "event" in line for line in lines)
    submitted = [line for line in lines if line["event"] == "submitted"]
    assert sorted(task for line in submitted for task in line["tasks"]) == sorted(job.task for job in fake.history())
    assert {line["cluster"] for line in submitted} == {job.cluster for job in fake.history()}


def test_files_are_private(fake, make):
    executor = make()
    executor.submit(jobs.square, 3)
    wait_for_jobs(fake, 1)
    assert executor.directory.stat().st_mode & 0o777 == 0o700
    executor.detach()
    executor.directory.chmod(0o770)
    with pytest.raises(DirectoryRefused, match="chmod go-w"):
        make()


@pytest.mark.parametrize("seed", range(2))
def test_controllers_that_are_killed_lose_nothing_and_repeat_nothing(fake, tmp_path, seed):
    chance, number = random.Random(seed), 40
    fake.set(run="background")
    for _ in range(5):
        controller = start_controller(tmp_path, number, 0.05)
        with contextlib.suppress(subprocess.TimeoutExpired):
            controller.wait(chance.uniform(0.1, 0.9))
        kill = chance.choice([os.kill, os.killpg])  # alone, or with the tool that it is just calling
        if controller.poll() is None:
            kill(controller.pid, signal.SIGKILL)
        controller.communicate()
        wait_until(lambda: not submitting(fake))
    controller = start_controller(tmp_path, number, 0.05)
    assert controller.communicate(timeout=DEADLINE_S)[0] == "recovered\ndone\n"
    assert sorted(lines_of(tmp_path / "results")) == sorted(f"{x} {x * x}" for x in range(number))
    assert sorted(lines_of(tmp_path / "runs"), key=int) == [str(x) for x in range(number)]  # each ran once
    assert fake.jobs() == [] and task_files(tmp_path / "work" / "condor") == []


def submitting(fake):
    """Whether a condor_submit still lives. One that was killed left its call open."""
    for stat in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if b"condor_submit" in stat.read_bytes() and fake.path.encode().rpartition(b"/")[0] in (stat.parent / "environ").read_bytes():
                return True
    return False


def test_a_submission_that_outlives_its_controller(fake, tmp_path):
    fake.set(run="background", submit_takes_s=0.5, slots=2)
    controller = start_controller(tmp_path, 20, 0.1)
    wait_until(lambda: fake.calls("condor_submit"))
    os.kill(controller.pid, signal.SIGKILL)
    controller.communicate()
    fake.set(submit_takes_s=0)
    controller = start_controller(tmp_path, 20, 0.1)
    assert controller.communicate(timeout=DEADLINE_S)[0] == "recovered\ndone\n"
    assert sorted(lines_of(tmp_path / "results")) == sorted(f"{x} {x * x}" for x in range(20))
    wait_until(lambda: not submitting(fake))
    assert set(lines_of(tmp_path / "runs")) == {str(x) for x in range(20)}
