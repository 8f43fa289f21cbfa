"""Runs over many points: journals, interruptions, wrong usage."""

import contextlib
import os
import pickle
import re
import shlex
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support import DEADLINE_S, PUBLISHED, TRIANGLEBOX, check_refused, ended, exit_code, patch_rooms, said, ship_from, start, wait_until
from support_executors import fail
from support_oracles import IN_D, check_against_direct_runs, exact_result

from ibp.journal import Journal, read_record


def test_killed_exact_run_goes_on(bare, ready):
    """Killed after some tasks: their points are not computed again, and the answer is the same."""
    words = [*PUBLISHED, "--symbols", "d,m2,m3", "--quiet", "--output", "r.pkl", "--store", "s", "--job-seconds", "0.02"]
    undisturbed = exact_result(*words[:-6], "--store", "s", "--work-dir", "another")
    journal = ready / "work/exact.journal"
    command = [sys.executable, str(bare / "ibp_reduce.py"), *words, "--work-dir", "work"]
    with ended(start(command, ready)) as run:
        wait_until(lambda: run.poll() is not None or (journal.exists() and journal.stat().st_size > 12_000))
        assert run.poll() is None, run.stderr.read()
        run.kill()
    with ended(start(command, ready)) as run:
        told = run.communicate(timeout=DEADLINE_S)[1]
    assert run.returncode == 0 and (known := int(re.search(r"going on: ([\d,]+) points", told)[1].replace(",", ""))) > 0, told
    result = pickle.loads((ready / "r.pkl").read_bytes())
    assert result["reductions"] == undisturbed["reductions"] and result["statistics"]["resumed"] == known
    assert result["statistics"]["points"] + known == undisturbed["statistics"]["points"]
    assert not journal.exists()


@pytest.fixture(scope="module")
def interrupted_and_not(learned, tmp_path_factory):
    """A work directory with the checkpoint of IN_D, which was interrupted before its last check, and the result of an undisturbed run."""
    place = tmp_path_factory.mktemp("interrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        ship_from(patch, place / "nothing shipped")
        shutil.copy(learned, "s")
        undisturbed = exact_result(*IN_D, "--store", "s", "--work-dir", "another")
        patch_rooms(patch, "ibp", "check_functions", lambda *_: fail(KeyboardInterrupt))
        assert exit_code([*IN_D, "--store", "s", "--quiet"]) == 130
    assert (place / "ibp_work/exact.journal").stat().st_size > 1000
    return place / "ibp_work", undisturbed


@pytest.fixture
def unfinished(ready, interrupted_and_not):
    """The checkpoint in a copy of that work directory."""
    shutil.copytree(interrupted_and_not[0], "ibp_work")
    return Path("ibp_work/exact.journal")


def test_checkpoint_of_another_run_is_refused(unfinished, capsys):
    before = unfinished.read_bytes()
    line = said(capsys, [*PUBLISHED, "--exact", "--store", "s", "--quiet"], 2)
    assert line.count("\n") == 1 and "unfinished run of I[1,1,1,1,1,1,-3]" in line and "functions of d" in line and "--fresh" in line
    assert unfinished.read_bytes() == before
    assert exact_result(*PUBLISHED, "--exact", "--store", "s", "--fresh")["success"] and not unfinished.exists()


def test_runs_of_both_kinds_spare_each_other(unfinished, capsys):
    before = unfinished.read_bytes()
    line = said(capsys, [*PUBLISHED, "--batch", "3", "--store", "s", "--quiet"], 2)
    assert line.count("\n") == 1 and "exact.journal" in line and "--fresh" in line and unfinished.read_bytes() == before
    unfinished.rename(unfinished.with_name("run.journal"))
    line = said(capsys, [*IN_D, "--store", "s", "--quiet"], 2)
    assert line.count("\n") == 1 and "run.journal" in line and unfinished.with_name("run.journal").read_bytes() == before


def test_resumed_exact_run(unfinished, capsys):
    result = exact_result(*IN_D, "--store", "s", "--resume")
    assert result["statistics"]["resumed"] > 30 and result["statistics"]["points"] < 10
    assert "--resume" in said(capsys, [*IN_D, "--store", "s", "--quiet", "--resume"], 2)


def test_status_of_an_exact_run(unfinished, capsys, monkeypatch):
    """Of one that is at work (this process is), of a dead one, with an end that is not whole; then of one that is finished."""
    data, told = unfinished.read_bytes(), []
    for alive in True, False:
        os.utime(unfinished, (time.time() - 7300,) * 2)
        patch_rooms(monkeypatch, "ibp", "process_exists", lambda pid, alive=alive: alive)
        status = said(capsys, ["status"], 0)
        assert all(part in status for part in ("of trianglebox", "functions of d (", "), exact"))
        assert ("GONE" in status, "at work" in status) == (not alive, alive)
        told.append(int(re.search(r"^points +(\d+) done, the last 2 h 0[12] min ago$", status, re.M)[1]))
    unfinished.write_bytes(data[:-7])
    fewer = int(re.search(r"^points +(\d+) done", said(capsys, ["status"], 0), re.M)[1])
    assert 0 < fewer < told[0] == told[1] and unfinished.read_bytes() == data[:-7]
    unfinished.write_bytes(b"x" * 99)
    line = said(capsys, ["status"], 1)
    assert line.count("\n") == 1 and "exact.journal" in line and unfinished.read_bytes() == b"x" * 99
    unfinished.write_bytes(data)
    assert exact_result(*IN_D, "--store", "s")["statistics"]["resumed"] == told[0]
    line = said(capsys, ["status"], 2)
    assert line.count("\n") == 1 and "no unfinished exact run" in line


@pytest.mark.parametrize("damage", ["cut", "flipped", "garbage", "empty"])
def test_damaged_checkpoint_costs_time_only(damage, unfinished, interrupted_and_not, capsys):
    data = unfinished.read_bytes()
    damaged = {"cut": data[:-7], "flipped": data[:-40] + bytes([data[-40] ^ 1]) + data[-39:], "garbage": b"x" * 999, "empty": b""}
    unfinished.write_bytes(damaged[damage])
    result = exact_result(*IN_D, "--store", "s")
    assert len(capsys.readouterr().err.splitlines()) <= 4
    assert result["reductions"] == interrupted_and_not[1]["reductions"]


FORGED = {
    "other names": lambda record: {"names": (((1, 1), (1, 0)),)},
    "too large": lambda record: record | {"values": np.full(len(record["values"]) // 8, 2**40).tobytes()},
    "negative": lambda record: record | {"values": np.full(len(record["values"]) // 8, -1).tobytes()},
    "too short": lambda record: record | {"values": record["values"][:-8]},
    "flags": lambda record: record | {"good": b"\x07" * len(record["good"])},
    "no flags": lambda record: record | {"good": None},
    "no list": lambda record: [],
    "samples": lambda record: record | {"samples": 5},
}


@pytest.mark.parametrize("forged", FORGED)
def test_forged_checkpoint_is_refused(forged, unfinished, capsys):
    """Whole records with a right checksum, not written by this run."""
    with unfinished.open("rb") as file:
        name = read_record(file, 0)[0]["run"]
    with contextlib.closing(Journal(unfinished, name)) as journal:
        records = [value for _, value in journal.records()]
    assert "names" in records[0] and "samples" in records[1]
    unfinished.unlink()
    with contextlib.closing(Journal(unfinished, name)) as journal:
        for number, value in enumerate(records):
            journal.append(FORGED[forged](value) if number == (forged != "other names") else value)
    line = said(capsys, [*IN_D, "--store", "s", "--quiet"], 1)
    assert line.splitlines()[-1].count("not what this run has written") == 1 and "--fresh" in line


def test_singular_point_is_one_line(ready, capsys):
    line = said(capsys, [*PUBLISHED, "--exact", "--d", "4", "--store", "s", "--quiet"], 1)
    assert line.count("\n") == 1 and "d=4" in line and "singular" in line
    assert not Path("ibp_work/exact.journal").exists() and not Path("results").exists()


EXACT_USAGE_ERRORS = {
    "--symbols x": ("--symbols", "d, m1, m2, m3"),
    "--symbols=": ("--symbols", "d, m1, m2, m3"),
    "--symbols d,d": ("--symbols", "at most once"),
    "--symbols d,m2,": ("--symbols",),
    "--symbols m2 --kinematics m2=3": ("--symbols", "m2", "number"),
    "--symbols d --d 5": ("--symbols", "d is given"),
    "--exact --prime 7": ("--prime", "--exact", "contradict"),
    "--exact --cut 1 --cut 2": ("several cuts", "one --cut"),
    "--symbols d --cut spanning": ("several cuts", "one --cut"),
    "--exact --cut 7": ("propagator 7", "irreducible"),
    "--exact --batch auto": ("--batch", "--exact", "contradict"),
    "--exact --device tpu": ("--device tpu", "cpu, cuda"),
    "benchmark-points 0": ("0",),
    "benchmark-points many": ("many",),
}


@pytest.mark.parametrize("command", EXACT_USAGE_ERRORS)
def test_wrong_usage_of_exact_runs(command, place, capsys):
    check_refused([*shlex.split(command), "--integral=1,1,1,1,1,1,-1"], place, capsys, EXACT_USAGE_ERRORS[command])


@pytest.mark.slow
@pytest.mark.parametrize("symbols", ["d", "d,m1,m2,m3"])
def test_headline_in_symbols(symbols, reduce_at, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_against_direct_runs(exact_result("--symbols", symbols), reduce_at, TRIANGLEBOX, symbols.split(","), 20, paper_masters_only=True)
