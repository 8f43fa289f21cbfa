"""condor worker."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import support_executors as jobs
from support import DEADLINE_S, path_to
from support_condor import results, wait_for_jobs

from executors.condor import CondorExecutor
from executors.tasks import Shared


def test_a_script_as_the_main_program(fake, tmp_path):
    """Functions and exceptions of a script, which is not run a second time."""
    fake.set(run="background")
    script = tmp_path / """it's "here".py"""
    script.write_text(
        textwrap.dedent(
            """
            import sys
            from executors.condor import CondorExecutor

            class Special(Exception):
                pass

            def work(x):
                if x < 0:
                    raise Special(f"negative: {x}")
                return x * x

            if __name__ == "__main__":
                with CondorExecutor(sys.argv[1], check_interval_s=0.2) as executor:
                    futures = [executor.submit(work, x) for x in (3, 4, -1)]
                    print(futures[0].result(), futures[1].result(), repr(futures[2].exception()))
            """
        ),
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, script.name, tmp_path / "work"],
        cwd=tmp_path,
        env=os.environ | path_to(),
        text=True,
        capture_output=True,
        timeout=DEADLINE_S,
    )
    assert done.stderr == "" and done.stdout.startswith("9 16 RemoteError('Special', 'negative: -1'")


HOSTILE_NAMES = [
    "blank and  two",
    """it's "here" """.strip(),
    "a,b;c",
    "$(x) $HOME $ENV(HOME) $(task) $RANDOM_CHOICE(1,2)",
    "ünï→\u202e",
    "; touch pwned; `touch pwned` $(touch pwned) | touch pwned & touch pwned",
    "#comment = \\ \\\\x",
    "-constraint",
    "'",
    '"',
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_hostile_directory_names(fake, make, tmp_path, monkeypatch, name):
    fake.set(run="background")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    directory = tmp_path / name
    executor = make(directory)
    assert Path(executor.submit(jobs.state).result(DEADLINE_S)["cwd"]) == directory
    assert list((tmp_path / "here").iterdir()) == [] and not list(tmp_path.rglob("pwned"))
    assert all(job.ad["initialdir"] == str(directory) for job in fake.history())


def test_a_relative_directory_and_a_changed_one(fake, make, tmp_path, monkeypatch):
    fake.set(run="background")
    monkeypatch.chdir(tmp_path)
    executor = make("here")
    monkeypatch.chdir("/")
    assert executor.submit(jobs.state).result(DEADLINE_S)["cwd"] == str(tmp_path / "here")


@pytest.mark.parametrize("name", ["a\nqueue 1000", "a $$(y)", "a\\", "a\r"])
def test_directory_names_that_no_submit_file_can_hold(fake, tmp_path, name):
    """A real condor_submit replaces $(DOLLAR) but once in $(DOLLAR)$(DOLLAR)."""
    with pytest.raises(ValueError) as info:
        CondorExecutor(tmp_path / name)
    assert "\n" not in str(info.value) and not (tmp_path / name).exists()


def test_transfer_of_files(fake, make, tmp_path):
    """The job runs elsewhere and finds what it needs in its own directory."""
    fake.set(run="background")
    shared = Shared.write({"table": list(range(1000))}, tmp_path / "else, where")
    executor = make(transfer_files=True)
    state = executor.submit(jobs.state)
    values = [executor.submit(jobs.read, shared) for _ in range(3)]
    assert Path(state.result(DEADLINE_S)["cwd"]).name.startswith("scratch-")
    assert results(values) == [{"table": list(range(1000))}] * 3
    ad, state_task = fake.history()[0].ad, fake.history()[0].task
    program, *others = ad["transfer_input_files"].split(",")
    assert ad["should_transfer_files"].upper() == "YES" and ad["when_to_transfer_output"].upper() == "ON_EXIT"
    assert re.fullmatch(r"program-\w+\.pyz", program) and others == [f"{state_task}.call"]


def test_without_transfer_the_file_system_is_shared(fake, make):
    executor = make()
    executor.submit(jobs.square, 3)
    (job,) = wait_for_jobs(fake, 1)
    assert job.ad["should_transfer_files"].upper() == "NO" and "transfer_input_files" not in job.ad
