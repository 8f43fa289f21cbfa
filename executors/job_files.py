"""The files of an executor of jobs: calls, outcomes, what travels with a job, and who deletes them.

A task's files are named by its number: 0000001.call, .out (its outcome), .err (its job's standard error). Beside them stand run.json,
jobs.log (HTCondor's), events.jsonl (ours), and with transfer_files the program as a zip file and copies of Shared values.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
from concurrent.futures import Future
from datetime import datetime
from pathlib import Path

from executors.calls import MAIN_COPY, call_file, main_program, read_call, read_outcome
from executors.files import replace_file
from executors.program import modules_of, packed
from executors.tasks import Shared, Task, digest_of, dump_call

TASK_SUFFIXES = (".call", ".out", ".err")
TASK_NAME = r"\d{7,}"
ATTEMPT = ("cpus", "memory_mb", "retries", "straggler")  # of a task's next job


class EventLog:
    """What happened to the tasks of a directory, a line of JSON each; an executor reads there what the one before it did.

    say is called with a line for a person.
    """

    def __init__(self, path: Path, say):
        self.path, self.say = path, say
        self._said, self._broken = set(), False

    def write(self, event, task=None, /, **fields):
        """Append an event. A log that cannot be written is said once; nothing else depends on it."""
        about = {} if task is None else {"task": task.name, "job": task.job}
        line = json.dumps({"time": datetime.now().isoformat(timespec="milliseconds"), "event": event} | about | fields)
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write("\n" * self._broken + line + "\n")  # what was cut off ends there
            self._broken = False
        except OSError as error:
            if not self._broken:
                self.say(f"{self.path} cannot be written ({error.strerror}); going on without it")
            self._broken = True

    def write_attempt(self, event, task, **fields):
        """Append an event with what `attempts` is to tell of the task."""
        self.write(event, task, **fields, **{name: getattr(task, name) for name in ATTEMPT})

    def say_once(self, reason, line):
        if reason not in self._said:
            self._said.add(reason)
            self.say(line)

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

    def given_up(self):
        """Names of tasks whose error message points to a file of theirs."""
        return {event["task"] for event in self.read() if event["event"] == "failed"}

    def submitted(self):
        """Names of the tasks that were submitted."""
        return {name for event in self.read() if isinstance(event.get("tasks"), list) for name in event["tasks"]}

    def attempts(self):
        """{task: {cpus, memory_mb, retries, straggler}} as last written."""
        return {event["task"]: {name: event[name] for name in ATTEMPT} for event in self.read() if "retries" in event}


class JobFiles:
    """The files of one directory."""

    def __init__(self, directory: Path, transfer_files: bool, say):
        self.directory, self.transfer_files = directory, transfer_files
        self.events = EventLog(directory / "events.jsonl", say)
        self._programs = {}  # their names, by what they hold
        self._copies = set()  # names

    def path(self, name, suffix):
        return self.directory / f"{name}{suffix}"

    def largest_number(self):
        """The largest number that a task of this directory ever had: no job of old may pass for one of a new task."""
        names = {path.stem for suffix in TASK_SUFFIXES for path in self.directory.glob(f"*{suffix}")} | self.events.submitted()
        return max((int(name) for name in names if re.fullmatch(TASK_NAME, name)), default=0)

    def write_call(self, name, task):
        """(digest of the call, inputs of its job). Raises NotPicklable, OSError."""
        call = dump_call(task)
        inputs = self._inputs(task, call)
        content, digest = call_file(name, call, self.transfer_files)
        replace_file(self.path(name, ".call"), content)
        return digest, inputs

    def left_calls(self, describe):
        """[(name, task, digest of the call, inputs of its job)] of all call files; damaged ones are dropped, with a line for a person."""
        found = []
        for path in sorted(self.directory.glob("*.call")):
            try:
                header = read_call(path, path.stem)
                fn, args, kwargs = pickle.loads(header["call"])
                task = Task(Future(), fn, args, kwargs, describe(fn, args, kwargs))
                found.append((path.stem, task, header["digest"], self._inputs(task, header["call"])))
            except Exception as error:  # whatever loading raises: a module that is no more, say
                self.events.say(f"the task of {path} is lost ({type(error).__name__}: {error}); it is dropped")
                self.events.write("dropped", task=path.stem, reason=str(error))
        return found

    def outcome(self, task):
        """(value, error, report) of a CondorTask. Raises NoOutcome."""
        return read_outcome(self.path(task.name, ".out"), task.name, task.digest)

    def _inputs(self, task, call):
        """Names of the files that travel with a task's job beside its call: first the program, then what it loads by a name of its own."""
        if not self.transfer_files:
            return ()
        wanted = {Path(value.path).name: value.path for value in (*task.args, *task.kwargs.values()) if isinstance(value, Shared)}
        if main := main_program(call):
            wanted[MAIN_COPY] = main
        for name in wanted.keys() - self._copies:  # once: a file that was here before may be an older one
            if not ((self.directory / name).exists() and os.path.samefile(wanted[name], self.directory / name)):
                replace_file(self.directory / name, Path(wanted[name]).read_bytes())
                self._copies.add(name)
        return (self._program(modules_of(call)), *sorted(wanted))

    def _program(self, modules):
        if modules not in self._programs:
            content = packed(modules)
            name = f"program-{digest_of(content)[:16]}.pyz"
            if not (self.directory / name).exists():
                replace_file(self.directory / name, content)
            self._programs[modules] = name
        return self._programs[modules]

    def delete(self, name, suffixes=TASK_SUFFIXES):
        for suffix in suffixes:
            with contextlib.suppress(OSError):  # a file that stays does no harm
                self.path(name, suffix).unlink()

    def sweep(self, kept=frozenset()):
        """Delete the files of all tasks but these and those whose error message points to one, unfinished files included."""
        kept = kept | self.events.given_up()
        for path in self.directory.iterdir():
            name = path.name.partition(".")[0]
            if re.fullmatch(TASK_NAME, name) and name not in kept:
                path.unlink(missing_ok=True)

    def tidy(self):
        """Delete what an orderly end leaves behind."""
        for path in (*self.directory.glob("submit-*"), *self.directory.glob("program-*.pyz"), *map(self.directory.joinpath, self._copies)):
            path.unlink(missing_ok=True)
        self.sweep()
