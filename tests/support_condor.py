"""Waiting for what an executor of jobs does with a pool, and looking at what it left."""

import json
import os
import subprocess
import sys
from pathlib import Path

import support_executors
from support import DEADLINE_S, HERE, path_to, wait_until

SHORT_WAITS = {"TICK_S": 0.02, "POLL_S": 0.1, "LINGER_S": 0.02, "SUBMIT_SPACING_S": 0.02, "GRACE_S": (0.1, 0.1), "LONGEST_BACKOFF_S": 0.2}


def wait_for_jobs(fake, number, *status):
    """The jobs in the queue, once there are so many."""
    wait_until(lambda: len(fake.jobs(*status)) == number)
    return fake.jobs(*status)


def one_job(fake, executor, fn=support_executors.square, *args):
    """A task, which squares 3 unless it is told otherwise, and its job in the queue."""
    future = executor.submit(fn, *(args or (3,)))
    (job,) = wait_for_jobs(fake, 1)
    return future, job


def no_changes_since(fake, before):
    """Whether the tools were called only to ask since there were so many calls."""
    return [call for call in fake.calls()[before:] if call[0] != "condor_q"] == []


def let_it_look(fake, times=3):
    """Wait until the queue has been asked some times more: whatever the executor was to do, it has done."""
    before = len(fake.calls("condor_q"))
    wait_until(lambda: len(fake.calls("condor_q")) >= before + times)


def results(futures):
    return [future.result(DEADLINE_S) for future in futures]


def task_files(executor_directory):
    return sorted(path.name for path in Path(executor_directory).glob("[0-9]*.*"))


def events(directory):
    return [json.loads(line) for line in (Path(directory) / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def start_controller(folder, number, seconds):
    script = HERE / "tests" / "condor_controller.py"
    return subprocess.Popen(
        [sys.executable, script, folder, str(number), str(seconds)],
        env=os.environ | path_to(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
