"""A directory's run: the id that marks its jobs in the queue, kept in run.json, so that they are found and removed without an executor."""

from __future__ import annotations

import json
import re
import time
import uuid
from pathlib import Path

from executors.errors import ExecutorError
from executors.files import replace_file
from executors.schedd import REMOVED_JOB, Schedd


def read_run(directory, make=False):
    """The id that marks the jobs of a directory, or None where there never were any. Raises ExecutorError."""
    path = Path(directory) / "run.json"
    try:
        run = json.loads(path.read_bytes())["run"]
        if not re.fullmatch(r"\w+", run):
            raise ValueError(run)
        return run
    except FileNotFoundError:
        if not make:
            return None
    except (ValueError, KeyError, TypeError) as error:
        raise ExecutorError(f"{path} is damaged ({error}); remove its jobs by condor_rm and delete {directory}") from error
    replace_file(path, json.dumps({"run": uuid.uuid4().hex}).encode(), sync=True)
    return read_run(directory)


def remove_run(directory, timeout_s=60.0):
    """Remove all jobs of a directory's executor from the queue and see them gone; how many. Raises ExecutorError."""
    run = read_run(directory)
    if run is None:
        return 0
    schedd, patience_until, pause_s = Schedd(run), time.monotonic() + timeout_s, 0.2
    left = schedd.jobs()
    found = fewest = len(left)
    while left:
        if any(ad.status != REMOVED_JOB for ad in left):
            schedd.call("condor_rm", "-constraint", schedd.constraint)  # what it says is of no interest: we look
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 5.0)
        left = schedd.jobs()
        if len(left) < fewest:
            fewest, patience_until = len(left), time.monotonic() + timeout_s
        if left and time.monotonic() > patience_until:
            remedy = f"see condor_q -constraint '{schedd.constraint}'"
            raise ExecutorError(f"{len(left)} of {found} jobs are still in the queue and none left it in {timeout_s:g} s; {remedy}")
    return found
