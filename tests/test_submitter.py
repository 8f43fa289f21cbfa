"""Waiting tasks made into jobs; submit files: options, names, quoting."""

import itertools
import json
import re
from pathlib import Path

import pytest
import support_executors as jobs
from support import DEADLINE_S, priority_of_argument, wait_until
from support_condor import results, wait_for_jobs

from executors.condor import CondorExecutor
from executors.errors import SubmitFailed


def test_the_heaviest_first(fake, make):
    executor = make(max_jobs=2, describe=priority_of_argument)
    futures = [executor.submit(jobs.square, x) for x in (100, 100)]
    first = wait_for_jobs(fake, 2)
    numbers = [3, 1, 4, 1, 5, 9, 4]
    futures += [executor.submit(jobs.square, x) for x in numbers]
    wait_until(lambda: executor.counts()["queued"] == len(numbers))
    assert executor.processes == 2
    for done in range(len(numbers)):
        fake.run(first.pop(0))
        wait_until(lambda done=done: len(fake.history()) == 3 + done)
        first.append(fake.history()[-1])
    for job in first:
        fake.run(job)
    assert results(futures) == [x * x for x in [100, 100, *numbers]]
    assert [job.priority for job in fake.history()[2:]] == sorted(numbers, reverse=True)
    tasks = [job.task for job in fake.history()[2:]]
    assert tasks == sorted(tasks, key=lambda task: (-numbers[int(task) - int(min(tasks))], task))  # ties: first in first out


def test_many_tasks_are_one_cluster(fake, make):
    executor = make(describe=priority_of_argument)
    for x in range(200):
        executor.submit(jobs.square, x)
    all_jobs = wait_for_jobs(fake, 200)
    assert len({job.cluster for job in all_jobs}) == len(fake.calls("condor_submit")) <= 3
    assert {job.priority for job in all_jobs} == set(range(200))
    assert len({job.ad["log"] for job in all_jobs}) == 1


def test_max_jobs_is_respected(fake, make, tmp_path):
    fake.set(run="background", slots=2)
    executor = make(max_jobs=5)
    futures, most = [executor.submit(jobs.noted_square, str(tmp_path / "runs"), x) for x in range(15)], 0
    while not all(future.done() for future in futures):
        most = max(most, len(fake.jobs()))
    assert results(futures) == [x * x for x in range(15)] and most <= 5
    sizes = [len(list(group)) for _, group in itertools.groupby(fake.history(), key=lambda job: job.cluster)]
    assert sum(sizes) == 15 and max(sizes) <= 5


def test_a_submission_that_cannot_work(fake, make):
    message = "ERROR: Parse error in expression: Requirements = ((Target.Arch"
    fake.set(submit_error=message)
    executor = make(check_interval_s=0.05)
    futures = [executor.submit(jobs.square, x) for x in range(3)]
    for future in futures:
        with pytest.raises(SubmitFailed, match=re.escape("Parse error in expression")) as info:
            future.result(DEADLINE_S)
        assert "\n" not in str(info.value)
    assert len(fake.calls("condor_submit")) == 3
    fake.set(submit_error=None, run="now")
    assert executor.submit(jobs.square, 3).result(DEADLINE_S) == 9


def test_a_submission_waits_for_the_schedd(fake, make):
    fake.set(down=True)
    executor = make()
    futures = [executor.submit(jobs.square, x) for x in range(3)]
    wait_until(lambda: len(fake.calls()) >= 3)
    assert not any(future.done() for future in futures)
    fake.set(down=False, run="background")
    assert results(futures) == [0, 1, 4] and len(fake.history()) == 3


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
