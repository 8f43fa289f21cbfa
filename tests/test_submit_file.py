"""Submit files: options, names, quoting."""

import json
from pathlib import Path

import pytest
import support_executors as jobs
from support import DEADLINE_S
from support_condor import wait_for_jobs

from executors.condor import CondorExecutor

RESERVED = ["executable", "arguments", "queue", "log", "output", "error", "initialdir", "max_materialize", "max_idle"]
RESERVED += ["transfer_input_files", "should_transfer_files", "request_cpus", "request_memory", "priority"]


@pytest.mark.parametrize("key", [*RESERVED, "Executable", "REQUEST_MEMORY"])
def test_reserved_options(fake, tmp_path, key):
    with pytest.raises(ValueError, match=key) as info:
        CondorExecutor(tmp_path, options=[(key, "1")])
    hints = {"request_cpus": "cpus", "request_memory": "memory_mb", "max_idle": "max_jobs", "max_materialize": "max_jobs"}
    assert hints.get(key.lower(), "") in str(info.value) and "\n" not in str(info.value)


@pytest.mark.parametrize("option", [("a b", "1"), ("", "1"), ("x=y", "1"), ("1x", "1"), ("++x", "1"), ("x\n", "1"), ("x", "1\nqueue 9")])
def test_impossible_options(fake, tmp_path, option):
    with pytest.raises(ValueError):
        CondorExecutor(tmp_path, options=[option])


def test_options_reach_the_submit_file(fake, make):
    options = [("accounting_group", "physics.loops"), ("requirements", '(OpSysMajorVer > 7) && (Arch == "X86_64")'), ("+Project", '"ibp"')]
    executor = make(options=[*options, ("MY.Other", "3"), ("request_disk", "7 GB")], cpus=2, memory_mb=3000)
    executor.submit(jobs.square, 3)
    (job,) = wait_for_jobs(fake, 1)
    assert job.ad["accounting_group"] == "physics.loops" and job.ad["requirements"] == options[1][1]
    assert job.ad["my.project"] == '"ibp"' and job.ad["my.other"] == "3" and job.ad["request_disk"] == "7 GB"
    assert (job.cpus, job.memory) == (2, 3000)
    run = json.loads((executor.directory / "run.json").read_text(encoding="utf-8"))["run"]
    assert job.ad["my.condorworkerrun"] == f'"{run}"'


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


@pytest.mark.parametrize("name", ["a\nqueue 1000", "a $$(y)", "a\\", "a\r"])
def test_directory_names_that_no_submit_file_can_hold(fake, tmp_path, name):
    """A real condor_submit replaces $(DOLLAR) but once in $(DOLLAR)$(DOLLAR)."""
    with pytest.raises(ValueError) as info:
        CondorExecutor(tmp_path / name)
    assert "\n" not in str(info.value) and not (tmp_path / name).exists()
