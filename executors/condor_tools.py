"""HTCondor's tools: submitting, asking, removing, the user log."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
import uuid
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from executors.errors import CondorMissing, ExecutorError, ScheddSilent, SubmitFailed
from executors.files import replace_file

TOOL_TIMEOUT_S, SUBMIT_TIMEOUT_S = 30.0, 120.0  # of one call of condor_q and the like, and of condor_submit
AD_ATTRIBUTES = "ClusterId,ProcId,JobStatus,HoldReasonCode,HoldReason,CondorWorkerTask,RequestCpus,RequestMemory,JobCurrentStartDate"
RESERVED = {
    *("executable", "arguments", "queue", "log", "output", "error", "initialdir", "priority"),
    *("max_materialize", "max_idle", "transfer_input_files", "should_transfer_files"),
    *("request_cpus", "request_memory", "condorworkerrun", "condorworkertask"),
}
INSTEAD = {"max_materialize": "max_jobs", "max_idle": "max_jobs", "request_cpus": "cpus", "request_memory": "memory_mb"}
INSTEAD |= {"transfer_input_files": "transfer_files", "should_transfer_files": "transfer_files", "priority": "describe"}


@dataclass(frozen=True)
class JobAd:
    """What condor_q says of a job."""

    job: str  # cluster.process
    task: str
    status: int
    hold: tuple  # (code, reason)
    cpus: int
    memory_mb: int
    started: int

    @staticmethod
    def parse(ad):
        job, hold = f"{ad['ClusterId']}.{ad['ProcId']}", (ad.get("HoldReasonCode", 0), ad.get("HoldReason", "no reason given"))
        numbers = [ad.get(key, 0) for key in ("RequestCpus", "RequestMemory", "JobCurrentStartDate")]
        numbers = [number if isinstance(number, int) else 0 for number in numbers]  # it may be an expression
        return JobAd(job, ad.get("CondorWorkerTask", ""), int(ad["JobStatus"]), hold, *numbers)


IDLE_JOB, RUNNING_JOB, REMOVED_JOB, COMPLETED_JOB, HELD_JOB, TRANSFERRING_JOB, SUSPENDED_JOB = range(1, 8)  # JobStatus


class Schedd:
    """condor_submit, condor_q, condor_rm and condor_release for the jobs of one run, each call with a time limit."""

    def __init__(self, run):
        self.run, self.calls = run, Counter()

    @property
    def constraint(self):
        return f'CondorWorkerRun=="{self.run}"'

    def call(self, tool, *arguments, directory=None):
        """The finished process. Raises ScheddSilent if it does not finish."""
        self.calls[tool] += 1
        timeout_s = SUBMIT_TIMEOUT_S if tool == "condor_submit" else TOOL_TIMEOUT_S
        try:
            return subprocess.run(
                [tool, *arguments],
                cwd=directory,
                timeout=timeout_s,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,  # a Ctrl-C at the terminal is not for it
            )
        except subprocess.TimeoutExpired:
            raise ScheddSilent(f"{tool} took more than {timeout_s:g} s") from None
        except OSError as error:
            raise ScheddSilent(f"{tool} could not be started ({error})") from error

    def jobs(self):
        """JobAds of all jobs of the run that are in the queue, oldest first. Raises ScheddSilent if that is not known."""
        answer = self.call("condor_q", "-constraint", self.constraint, "-json", "-attributes", AD_ATTRIBUTES)
        if answer.returncode:
            raise ScheddSilent(f"condor_q: {complaint(answer.stderr) or f'exit code {answer.returncode}'}")
        try:
            ads = json.loads(answer.stdout) if answer.stdout.strip() else []  # an empty queue prints nothing
            if not isinstance(ads, list):
                raise TypeError(type(ads).__name__)
            return [JobAd.parse(ad) for ad in sorted(ads, key=lambda ad: (ad["ClusterId"], ad["ProcId"]))]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ScheddSilent(f"condor_q printed what is not a list of jobs ({type(error).__name__}: {error})") from error

    def submit(self, directory, description, count):
        """The cluster of as many new jobs. Raises SubmitFailed if it was refused, ScheddSilent if what happened is not known."""
        answer = self.call("condor_submit", description, directory=directory)
        if answer.returncode:
            raise SubmitFailed(f"condor_submit: {complaint(answer.stderr) or f'exit code {answer.returncode}'}")
        cluster = re.search(r"cluster\s+(\d+)", answer.stdout)
        number = re.search(r"(\d+) job\(s\) submitted", answer.stdout)
        if cluster is None or (number and int(number[1]) != count):
            raise ScheddSilent(f"condor_submit said '{complaint(answer.stdout)}' to {count} jobs")
        return int(cluster[1])


def complaint(text):
    """What a tool says went wrong, on one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    start = next((i for i, line in enumerate(lines) if line.startswith("ERROR")), 0)
    return " ".join(lines[start : start + 3])[:300]


def quoted(word):
    """A word of `arguments` or `environment` in HTCondor's syntax, to stand within double quotes."""
    return "'" + literal(word).replace("'", "''").replace('"', '""') + "'"


def literal(text):
    return str(text).replace("$", "$(DOLLAR)")


def check_condor_tools():
    """Raises CondorMissing."""
    if missing := [tool for tool in ("condor_submit", "condor_q", "condor_rm") if shutil.which(tool) is None]:
        raise CondorMissing(f"{', '.join(missing)} not found; log in where HTCondor is installed, or run with local processes")


def split_options(texts):
    """Pairs for the options of a CondorExecutor from texts KEY=VALUE, as a command line has them."""
    return tuple((key.strip(), value.strip()) for key, _, value in (text.partition("=") for text in texts))


def check_submit_options(options):
    """Extra lines of the submit file as a dict. Raises ValueError."""
    for key, value in options:
        bare = key.lower().removeprefix("+").removeprefix("my.")
        if not re.fullmatch(r"\+?[A-Za-z_][\w.]*", key) or re.search(r"[\r\n\0]", str(value)):
            raise ValueError(f"submit option {key!r} = {value!r}: give a name and a value on one line")
        if bare in RESERVED:
            instead = f"use {INSTEAD[bare]}" if bare in INSTEAD else "it is set for every job"
            raise ValueError(f"submit option {key!r} cannot be given: {instead}")
    return {str(key): str(value) for key, value in options}


def check_submittable(path):
    """A path that a submit file can hold. Raises ValueError."""
    path = str(path)
    if re.search(r"[\r\n\0]|\\$|^\s|\s$|\$\$", path):
        raise ValueError(f"{path!r} cannot be used by HTCondor: no line breaks, no $$, no blank or backslash at the end")
    return path


@dataclass(frozen=True)
class LogEvent:
    code: int
    job: str  # cluster.process
    time: float
    text: str

    @property
    def hold(self):
        """(code, reason) of a HELD_EVENT."""
        code, lines = re.search(r"Code (\d+) Subcode", self.text), self.text.splitlines()[1:]
        return int(code[1]) if code else 0, lines[0].strip() if lines else "no reason given"

    @property
    def exit_code(self):
        """Of a TERMINATED_EVENT; -N for signal N, None where it is not known."""
        code, number = re.search(r"return value (-?\d+)", self.text), re.search(r"signal (\d+)", self.text)
        return int(code[1]) if code else -int(number[1]) if number else None


EXECUTING_EVENT, EVICTED_EVENT, TERMINATED_EVENT, ABORTED_EVENT, HELD_EVENT, RELEASED_EVENT = 1, 4, 5, 9, 12, 13


class UserLog:
    """Follows HTCondor's log of our jobs from its present end on."""

    CHUNK = 1 << 22  # bytes read at once
    HEAD = re.compile(r"(\d{3}) \((\d+)\.(\d+)\.\d+\) (\d\S+[ T][\d:.]+)\S* ?")

    def __init__(self, path):
        self.path, self._inode, self._offset = path, None, 0
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(path)
            self._inode, self._offset = found.st_ino, found.st_size

    def events(self):
        """The LogEvents that were completed since the last call. Raises OSError."""
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            return
        if found.st_ino != self._inode or found.st_size < self._offset:  # replaced or truncated
            self._inode, self._offset = found.st_ino, 0
        while self._offset < found.st_size:
            with open(self.path, "rb") as file:
                file.seek(self._offset)
                chunk = file.read(self.CHUNK)
            end = chunk.rfind(b"\n...\n") + 5
            if end < 5 and len(chunk) < self.CHUNK:
                return
            self._offset += end if end >= 5 else len(chunk)  # so long without an event: not a user log
            for text in chunk[:end].decode("utf-8", "replace").split("\n...\n"):
                if head := self.HEAD.match(text):
                    job = f"{int(head[2])}.{int(head[3])}"
                    yield LogEvent(int(head[1]), job, event_time(head[4]), text[head.end() :])


def event_time(text):
    """Seconds since the epoch of a time stamp in a user log; now where it has another format or lies in the future."""
    try:
        return min(datetime.fromisoformat(text).timestamp(), time.time())
    except ValueError:
        return time.time()


class Journal:
    """What happened, a line of JSON each; a controller reads there what its predecessor did."""

    def __init__(self, path, say):
        self.path, self._say, self._broken = path, say, False

    def write(self, event, **fields):
        """Append an event. A journal that cannot be written is said once; nothing else depends on it."""
        line = json.dumps({"time": datetime.now().isoformat(timespec="milliseconds"), "event": event, **fields})
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write("\n" * self._broken + line + "\n")  # what was cut off ends there
            self._broken = False
        except OSError as error:
            if not self._broken:
                self._say(f"{self.path} cannot be written ({error.strerror}); going on without it")
            self._broken = True

    def given_up(self):
        """Names of tasks whose error message points to a file of theirs."""
        return {event["task"] for event in self.read() if event["event"] == "failed"}

    def read(self):
        """All sound events, oldest first."""
        try:
            lines = self.path.read_bytes().splitlines()
        except FileNotFoundError:
            return
        for line in lines:
            with contextlib.suppress(ValueError):  # cut off by a full disk
                event = json.loads(line)
                if isinstance(event, dict) and "event" in event:
                    yield event


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


def queue_counts(directory):
    """{idle, running, held}: the jobs that a directory's executor has in the queue, asked once. Raises ExecutorError."""
    run = read_run(directory)
    states = Counter(AD_STATES.get(ad.status) for ad in (Schedd(run).jobs() if run else ()))
    return {name: states[name] for name in ("idle", "running", "held")}


AD_STATES = {IDLE_JOB: "idle", RUNNING_JOB: "running", TRANSFERRING_JOB: "running", SUSPENDED_JOB: "running", HELD_JOB: "held"}


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
