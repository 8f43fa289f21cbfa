"""condor pool."""

import json
import os
import signal
import subprocess

import pytest
import support_executors as jobs
from support import DEADLINE_S, lines_of, wait_until
from support_condor import results, start_controller, task_files

from executors.condor import CondorExecutor
from executors.job_runs import read_run
from executors.schedd import Schedd
from executors.tasks import Shared, TimeLimits


def in_the_queue(directory):
    return len(Schedd(read_run(directory)).jobs())


def job_id(directory, task):
    """Ask the pool itself which job a task is."""
    command = ["condor_q", "-json", "-attributes", "ClusterId,ProcId,CondorWorkerTask,Iwd"]
    text = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    found = [ad for ad in json.loads(text or "[]") if ad.get("CondorWorkerTask") == task and ad["Iwd"] == str(directory)]
    return f"{found[-1]['ClusterId']}.{found[-1]['ProcId']}" if found else None


@pytest.mark.condor
def test_a_pool_with_a_hostile_directory(real_pool, tmp_path):
    with CondorExecutor(tmp_path / """it's "here", $(x) $ENV(HOME) #\\ ünï; touch pwned""", check_interval_s=1) as executor:
        futures = [executor.submit(jobs.square, x) for x in range(30)]
        where = executor.submit(jobs.state)
        assert results(futures) == [x * x for x in range(30)]
        assert where.result(DEADLINE_S)["cwd"] == str(executor.directory) and where.result()["OMP_NUM_THREADS"] == "1"
        assert executor.report(where)["host"]
    assert task_files(executor.directory) == [] and in_the_queue(executor.directory) == 0 and not list(tmp_path.rglob("pwned"))


@pytest.mark.condor
def test_a_pool_with_file_transfer(real_pool, tmp_path):
    shared = Shared.write(list(range(100)), tmp_path / "else where")
    with CondorExecutor(tmp_path / "it's here", check_interval_s=1, transfer_files=True) as executor:
        where, value = executor.submit(jobs.state), executor.submit(jobs.read, shared)
        assert value.result(DEADLINE_S) == list(range(100))
        assert not where.result(DEADLINE_S)["cwd"].startswith(str(tmp_path))


@pytest.mark.condor
def test_a_pool_where_jobs_are_removed_held_and_slow(real_pool, tmp_path):
    limits = TimeLimits(4)
    with CondorExecutor(tmp_path / "work", check_interval_s=1, stragglers=limits, straggler_cpus=4) as executor:
        slow = executor.submit(jobs.hang_on_one_cpu, str(tmp_path / "slow"))
        removed, held = (executor.submit(jobs.noted_square, str(tmp_path / name), 3, 2) for name in ("removed", "held"))
        for tool, name in ("condor_rm", "removed"), ("condor_hold", "held"):
            wait_until(lambda name=name: lines_of(tmp_path / name))
            task = f"{2 if name == 'removed' else 3:07d}"
            assert subprocess.run([tool, job_id(executor.directory, task)], capture_output=True, timeout=60).returncode == 0
        assert results([removed, held, slow]) == [9, 9, 4]
        assert len(lines_of(tmp_path / "slow")) == len(lines_of(tmp_path / "removed")) == len(lines_of(tmp_path / "held")) == 2
        assert executor.statistics["stragglers"] == 1 and executor.statistics["held"] == 1
    assert in_the_queue(executor.directory) == 0


@pytest.mark.condor
def test_a_pool_whose_controller_is_killed(real_pool, tmp_path):
    for _ in range(2):
        controller = start_controller(tmp_path, 20, 1)
        assert controller.stdout.readline() == "recovered\n"
        wait_until(lambda: len(lines_of(tmp_path / "runs")) >= 2)
        os.kill(controller.pid, signal.SIGKILL)
        controller.communicate()
    controller = start_controller(tmp_path, 20, 1)
    assert controller.communicate(timeout=DEADLINE_S)[0] == "recovered\ndone\n"
    assert sorted(lines_of(tmp_path / "results")) == sorted(f"{x} {x * x}" for x in range(20))
    assert sorted(lines_of(tmp_path / "runs"), key=int) == [str(x) for x in range(20)]
    assert in_the_queue(tmp_path / "work" / "condor") == 0
