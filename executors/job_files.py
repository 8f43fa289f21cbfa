"""The files of an executor of jobs: calls, outcomes, what travels with a job, and who deletes them.

A task's files are named by its number: 0000001.call, .out (its outcome), .err (its job's standard error). Beside them stand run.json,
jobs.log (HTCondor's), events.jsonl (ours), and with transfer_files the program as a zip file and copies of Shared values.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import re
from concurrent.futures import Future
from pathlib import Path

from executors.calls import MAIN_COPY, call_file, main_program, read_call, read_outcome
from executors.event_log import EventLog
from executors.files import replace_file
from executors.program import modules_of, packed
from executors.tasks import Shared, Task, digest_of, dump_call

TASK_SUFFIXES = (".call", ".out", ".err")
TASK_NAME = r"\d{7,}"


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
