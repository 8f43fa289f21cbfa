"""Runs of one-step tasks as a person starts, watches, stops, kills and resumes them; on a pool, if there is one."""

import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import (
    DEADLINE_S,
    HELD,
    HERE,
    PUBLISHED,
    SMALL,
    TRIANGLEBOX,
    done_in,
    ended,
    exit_code,
    patch_rooms,
    reduced,
    run_and_hear,
    said,
    start,
    start_python,
    wait_until,
)
from support_oracles import GOLDEN

import executors.tasks
from executors.directories import claim_directory
from executors.errors import DirectoryRefused
from executors.files import load_builtins
from ibp.errors import ReductionError
from ibp.journal import Journal
from ibp.records import write_pickle
from ibp.step_scheme import Closure
from ibp.store import Store

STEPS = [*PUBLISHED, "--batch", "3", "--quiet", "--output", "r.pkl", "--store", "s", "--work-dir", "it's work"]
OTHER = ["--integral=1,1,1,1,1,1,-1", "--paper-masters-only", *STEPS[3:]]
ANSWER = dict(zip(TRIANGLEBOX.paper_masters, map(int, GOLDEN[1009][1, 1, 1, 1, 1, 1, -3].split())))


def answer():
    result = load_builtins(Path("r.pkl").read_bytes())
    assert result["final_expr"] == ANSWER and result["success"]
    return result["statistics"]


def test_killed_again_and_again_nothing_is_lost_or_done_twice(bare, place):
    journal = place / "it's work/run.journal"
    command, before = [sys.executable, str(bare / "ibp_reduce.py"), *STEPS, "--local", "2"], 0
    for growth in 1, 8_000, 30_000:
        with ended(start(command, place)) as run:
            size = journal.stat().st_size if journal.exists() else 0
            wait_until(lambda: run.poll() is not None or (journal.exists() and journal.stat().st_size >= size + growth))  # noqa: B023
            assert run.poll() is None, run.stderr.read()
            run.kill()
            said = run.communicate()[1]
        assert (f"going on: {before:,} integrals" in said) == (before > 0), said
        done = done_in(journal)
        assert len(done) == len(set(done)) >= before
        before = len(done)
    assert before > 100
    with ended(start(command, place)) as run:
        said = run.communicate(timeout=DEADLINE_S)[1]
    assert run.returncode == 0 and f"going on: {before:,} integrals are done already" in said, said
    statistics = answer()
    assert statistics["tasks"] <= statistics["integrals"] - before
    assert {path.name for path in journal.parent.iterdir()} & {"run.journal", "shared", "condor", "stop.request"} == set()


@pytest.fixture
def held(bare, ready):
    """held(words): a run of the copied program that is in the midst of its work."""
    with contextlib.ExitStack() as stack:

        def run(*words, after=30):
            process = stack.enter_context(ended(start_python(bare, ready, HELD, bare / "ibp_reduce.py", after, *words)))
            assert process.stdout.readline() == "held\n", process.communicate()
            return process

        yield run


STATUS = ["status", "--work-dir", "it's work"]
STOP = ["stop", "--work-dir", "it's work"]


def test_a_run_is_watched_refuses_others_and_is_stopped(held, bare, place, capsys):
    run = held(*STEPS)
    status = said(capsys, STATUS, 0)
    where = f"pid {run.pid} on {socket.gethostname()}"
    assert f"{where}, at work" in status and f"I[{SMALL}] of trianglebox" in status and re.search("[0-9]+ done of [0-9]+ met", status)
    for words in STEPS, OTHER, [*STEPS, "--resume"], [*STEPS, "--fresh"]:
        refusal = said(capsys, words, 2)
        assert refusal.count("\n") == 1 and str(run.pid) in refusal and socket.gethostname() in refusal
    kept = done_in("it's work/run.journal")
    with ended(start([sys.executable, str(bare / "ibp_reduce.py"), *STOP], place)) as stop:
        wait_until(Path("it's work/stop.request").exists)
        printed, line = run.communicate("\n", timeout=DEADLINE_S)
        assert (run.returncode, printed, line.count("\n")) == (130, "", 1) and "--work-dir" in line
        assert stop.communicate(timeout=DEADLINE_S) == ("", "") and stop.returncode == 0
    assert not Path("it's work/stop.request").exists()
    assert "GONE" in said(capsys, STATUS, 0)
    refusal = said(capsys, OTHER, 2)
    assert refusal.count("\n") == 1 and f"I[{SMALL}] of trianglebox modulo 1009" in refusal and "--fresh" in refusal
    before = set(done_in("it's work/run.journal"))
    assert before >= set(kept) and kept
    assert f"going on: {len(before):,} integrals" in run_and_hear(capsys, [*STEPS, "--resume"])
    assert answer()["tasks"] <= answer()["integrals"] - len(before)
    assert "finished" in said(capsys, STATUS, 0)
    refusal = said(capsys, [*STEPS, "--resume"], 2)
    assert refusal.count("\n") == 1 and "no unfinished run" in refusal
    assert said(capsys, STOP, 0) == ""  # nobody is there to be stopped


def test_killed_run_is_known_to_be_gone_and_fresh_drops_it(held, place, capsys):
    run = held(*STEPS, "--local", "2")
    run.kill()
    run.wait(DEADLINE_S)
    status = said(capsys, STATUS, 0)
    assert f"pid {run.pid}" in status and "GONE" in status and "same command" in status
    assert done_in("it's work/run.journal")
    line = run_and_hear(capsys, [*OTHER, "--fresh"])
    assert "going on" not in line
    small = reduced("--integral=1,1,1,1,1,1,-1", "--paper-masters-only", "--store", "elsewhere")["final_expr"]
    assert run_and_hear(capsys, OTHER) == "" and load_builtins(Path("r.pkl").read_bytes())["final_expr"] == small


@pytest.mark.parametrize("local", ["1", "2"])
def test_interrupted_run_prints_a_command_that_goes_on(local, held, place):
    run = held(*STEPS, "--local", local, "--fresh")
    run.send_signal(signal.SIGINT)
    printed, line = run.communicate(timeout=DEADLINE_S)
    assert (run.returncode, printed, line.count("\n")) == (130, "", 1), line
    command = line.strip().partition("go on with: ")[2]
    kept = len(done_in("it's work/run.journal"))
    again = subprocess.run(command, shell=True, cwd=place, capture_output=True, text=True, timeout=DEADLINE_S)
    assert again.returncode == 0 and f"going on: {kept:,} integrals" in again.stderr, f"{command}: {again.stderr}"
    assert kept and answer()["tasks"] <= answer()["integrals"] - kept


def test_status_of_a_short_run_is_its_own(ready, capsys):
    """Also of one that ends before the first writing is due, and after another run in the same directory."""
    for words, integral in (STEPS, SMALL), (OTHER, "1,1,1,1,1,1,-1"):
        run_and_hear(capsys, words)
        status = said(capsys, STATUS, 0)
        assert f"I[{integral}] of trianglebox" in status and "finished" in status
        done, met = re.search("([0-9,]+) done of ([0-9,]+) met", status).groups()
        assert done == met


def test_directory_is_not_given_away_before_the_result_is_safe(ready, monkeypatch):
    """Another controller that started meanwhile would lose its journal when this one clears up."""
    original, refused = write_pickle, []

    def write(record, path):
        try:
            with claim_directory("it's work"):
                refused.append(False)
        except DirectoryRefused:
            refused.append(True)
        original(record, path)

    patch_rooms(monkeypatch, "ibp", "write_pickle", write)
    assert exit_code(STEPS) == 0 and refused == [True]
    answer()


def test_work_directory_that_others_may_write_to_is_refused(place, capsys, monkeypatch):
    patch_rooms(monkeypatch, "ibp", "STOP_PATIENCE_S", 1.0)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waits in vain"))
    Path("it's work").mkdir()
    Path("it's work").chmod(0o770)
    for words in STEPS, [*PUBLISHED, "--work-dir", "it's work"], STOP:
        line = said(capsys, words, 2)
        assert line.count("\n") == 1 and "it's work" in line and "chmod" in line
    assert not Path("it's work/run.journal").exists()


def test_steps_and_sectors_write_the_same_result(place):
    """And share a store: the rules that one finds spare the other the search."""
    small = ["--integral=1,1,1,1,1,0,-1", "--paper-masters-only"]
    by_steps = reduced(*small, "--batch", "auto", "--job-seconds", "0.05", "--local", "2")
    by_sectors = reduced(*small, "--batch", "sector")
    for key in ("final_expr", "masters", "unreduced", "kinematics", "success"):
        assert by_steps[key] == by_sectors[key]
    assert by_steps["statistics"]["rules"] > 0 == by_sectors["statistics"]["rules"]


@pytest.mark.condor
@pytest.mark.parametrize(
    "words", [["3,2,1,3,2,2,-6"], [SMALL, "--batch", "20"], [SMALL, "--batch", "40", "--transfer-files"]], ids=" ".join
)
def test_a_pool_gives_what_one_process_gives(words, real_pool, place):
    common = ["--paper-masters-only", "--quiet", "--integral"]
    assert exit_code([*common, *words[:1], "--output", "here.pkl"]) == 0
    assert exit_code([*common, *words, "--condor", "--check-interval", "1", "--work-dir", "it's a pool", "--output", "there.pkl"]) == 0
    here, there = (load_builtins(Path(name).read_bytes()) for name in ("here.pkl", "there.pkl"))
    assert here["reductions"] == there["reductions"] and there["statistics"]["jobs"] == there["statistics"]["tasks"] > 0
    assert not Path("it's a pool/condor").exists() and Path("it's a pool/events.jsonl").exists()


def schedd_of_the_pool():
    """Process id of the schedd that the environment's CONDOR_CONFIG belongs to."""
    ours = f"CONDOR_CONFIG={os.environ['CONDOR_CONFIG']}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"condor_schedd" in (process / "cmdline").read_bytes() and ours in (process / "environ").read_bytes().split(b"\0"):
                return int(process.name)


class Chaos:
    """Removes and holds some of a run's jobs, each task once at most, and kills schedd and controller at given numbers of results."""

    def __init__(self, command, work, rng):
        self.command, self.work, self.rng = command, work, rng
        self.touched, self.removed, self.held, self.schedds, self.controllers = set(), 0, 0, 0, 0

    def count(self, event):
        with contextlib.suppress(FileNotFoundError):
            return (self.work / "condor/events.jsonl").read_text().count(f'"event": "{event}"')
        return 0

    def queue(self):
        attributes = ["-json", "-attributes", "ClusterId,ProcId,CondorWorkerTask"]
        answer = subprocess.run(["condor_q", *attributes], capture_output=True, text=True, timeout=60)
        return json.loads(answer.stdout or "[]") if answer.returncode == 0 else None

    def disturb(self, tool, wanted):
        jobs = [job for job in self.queue() or () if job.get("CondorWorkerTask") not in self.touched]
        chosen = self.rng.sample(jobs, min(4, wanted)) if len(jobs) > 8 else []
        done = 0
        for job in chosen:
            self.touched.add(job["CondorWorkerTask"])
            done += subprocess.run([tool, f"{job['ClusterId']}.{job['ProcId']}"], capture_output=True, timeout=60).returncode == 0
        return done

    def run(self, schedd_at, controller_at):
        """Exit code of the last controller."""
        process = self.start()
        while process.poll() is None:
            self.removed += self.disturb("condor_rm", 20 - self.removed) if self.removed < 20 else 0
            self.held += self.disturb("condor_hold", 20 - self.held) if self.held < 20 else 0
            due = self.schedds < len(schedd_at) and self.count("done") >= schedd_at[self.schedds]
            if due and (schedd := schedd_of_the_pool()) is not None:  # it may not be back yet from the last time
                os.kill(schedd, signal.SIGKILL)
                self.schedds += 1
            at_work = self.count("recovered") > self.controllers
            if self.controllers < len(controller_at) and at_work and self.count("done") >= controller_at[self.controllers]:
                process.kill()
                process.wait()
                self.controllers += 1
                process = self.start()
            time.sleep(0.3)
        return process.returncode

    def start(self):
        return subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=(self.work.parent / "said").open("a"))


@pytest.mark.condor
@pytest.mark.slow
def test_a_pool_in_chaos_loses_nothing(real_pool, place):
    common = ["--integral", SMALL, "--paper-masters-only"]
    assert exit_code([*common, "--quiet", "--output", "expected.pkl"]) == 0
    words = [*common, "--condor", "--batch", "3", "--check-interval", "2", "--work-dir", "work", "--output", "result.pkl"]
    chaos = Chaos([sys.executable, str(HERE / "ibp_reduce.py"), *words], place / "work", random.Random(1))
    assert chaos.run(schedd_at=(35, 95), controller_at=(20, 50, 80, 110, 140)) == 0, (place / "said").read_text()
    assert (chaos.removed, chaos.held, chaos.schedds, chaos.controllers) == (20, 20, 2, 5)
    expected, result = (load_builtins(Path(name).read_bytes()) for name in ("expected.pkl", "result.pkl"))
    assert result["reductions"] == expected["reductions"]
    events = [json.loads(line) for line in Path("work/events.jsonl").read_text().splitlines()]
    names = [event["event"] for event in events]
    assert names.count("recovered") == 6 and "silent" in names
    # some of the twenty were done before it took effect
    assert names.count("removed") + names.count("absent") >= 15 and names.count("held") >= 15
    finished = {(event["task"], event["seconds"]) for event in events if event["event"] == "done"}  # one read twice is one
    assert len(finished) == len({task for task, _ in finished}) >= 180
    # a removed job whose starter does not know the new schedd stays in the queue until its lease is over: a minute
    wait_until(lambda: chaos.queue() == [])


BATCHES_OF_FIVE = ["--integral", SMALL, "--paper-masters-only", "--batch", "5", "--quiet"]


def test_files_of_the_user_in_the_work_directory_stay(place):
    for name in ("shared", "condor"):
        Path("work", name).mkdir(parents=True)
        Path("work", name, "thesis.tex").write_text("mine")
    Path("work/run.journal").write_text("also mine")
    os.chmod("work", 0o700)
    assert exit_code([*BATCHES_OF_FIVE, "--work-dir", "work", "--output", "r.pkl"]) == 0
    assert [Path("work", name, "thesis.tex").read_text() for name in ("shared", "condor")] == ["mine"] * 2
    assert Path("work/run.journal.damaged-1").read_text() == "also mine" and Path("r.pkl").exists()


def test_one_process_writes_down_each_task_before_the_next(place, monkeypatch):
    done, journaled = [], []
    perform, append = executors.tasks.perform, Journal.append
    patch_rooms(monkeypatch, "executors", "perform", lambda *args, **kwargs: done.append(1) or perform(*args, **kwargs))
    monkeypatch.setattr(Journal, "append", lambda self, value: journaled.append(len(done)) or append(self, value))
    assert exit_code([*BATCHES_OF_FIVE, "--work-dir", "w", "--output", "r.pkl"]) == 0
    assert journaled[1:] == list(range(1, len(done) + 1)) and len(done) > 50


def test_store_that_fails_does_not_take_the_place_of_what_ended_the_run(place, capsys, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Closure, "carry", stop)
    monkeypatch.setattr(Store, "merge", lambda *_: (_ for _ in ()).throw(ReductionError("the store is gone")))
    assert exit_code([*BATCHES_OF_FIVE, "--cold", "--work-dir", "w", "--output", "r.pkl"]) == 130
    said = capsys.readouterr().err
    assert "the store is gone" in said and "interrupted" in said and Path("w/run.journal").exists()
