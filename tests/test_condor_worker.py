"""The job side."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import support_executors as jobs
from support import DEADLINE_S, limited_file_size, path_to
from support_condor import wait_for_jobs

from executors.errors import TaskDied

SCRIPT = """
import sys
from executors.condor import CondorExecutor

class Special(Exception):
    pass

def work(x):
    if x < 0:
        raise Special(f"negative: {x}")
    return x * x, __file__

if __name__ == "__main__":
    with CondorExecutor("work", check_interval_s=0.2, transfer_files=sys.argv[1:] == ["transfer"]) as executor:
        futures = [executor.submit(work, x) for x in (3, 4, -1)]
        print(futures[0].result()[0], *futures[1].result(), repr(futures[2].exception()))
"""


@pytest.mark.parametrize("transfer", [False, True])
def test_a_script_as_the_main_program(fake, tmp_path, transfer):
    """Functions and exceptions of a script, which is not run a second time, and which travels where files do."""
    fake.set(run="background")
    script = tmp_path / """it's "here".py"""
    script.write_text(SCRIPT, encoding="utf-8")
    command = [sys.executable, script.name, *["transfer"] * transfer]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | path_to(), text=True, capture_output=True, timeout=DEADLINE_S)
    place = str(Path("work", "scratch-")) if transfer else str(script)
    assert done.stderr == "" and done.stdout.startswith("9 16 ") and "RemoteError('Special', 'negative: -1'" in done.stdout
    assert place in done.stdout


def test_a_result_for_which_the_disk_has_no_room(fake, make):
    """The limit on a file's size fails as a full disk does."""
    executor = make(retries=0)
    future = executor.submit(jobs.same, "x" * 1_000_000)
    (job,) = wait_for_jobs(fake, 1)
    before = set(os.listdir(executor.directory))
    code = "import sys, condor_worker\ncondor_worker.DISK_PAUSES_S = (0, 0)\nsys.exit(condor_worker.main(sys.argv[1:]))"
    arguments = job.command()[2:]
    with limited_file_size(500_000), open(job.path(".err"), "wb") as errors:
        done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=executor.directory, env=os.environ | path_to(), stderr=errors)
    assert done.returncode == 3
    assert set(os.listdir(executor.directory)) - before <= {f"{job.task}.err"}  # no half a file
    (line,) = Path(job.path(".err")).read_text(encoding="utf-8").splitlines()
    assert job.task in line
    fake.finish(job, 3)
    with pytest.raises(TaskDied, match=re.escape(line[-20:])):
        future.result(DEADLINE_S)
