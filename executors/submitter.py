"""Waiting tasks made into jobs: a job in the words of HTCondor's submit files, and when and how many of them are submitted."""

from __future__ import annotations

import heapq
import os
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from executors.condor_tasks import CondorTask, OpenTasks, State
from executors.errors import ScheddSilent, SubmitFailed
from executors.job_files import JobFiles
from executors.program import WORD, worker_command
from executors.schedd import LONGEST_BACKOFF_S, CondorQueue

LINGER_S = 0.1  # after the first task of a batch: its siblings come within that
SUBMIT_SPACING_S = 0.5  # between two condor_submit: each costs the schedd a transaction
SUBMIT_ATTEMPTS = 3  # the same refusal so often, by a schedd that answers, is final
RESERVED = {
    *("executable", "arguments", "queue", "log", "output", "error", "initialdir", "priority"),
    *("max_materialize", "max_idle", "transfer_input_files", "should_transfer_files"),
    *("request_cpus", "request_memory", "condorworkerrun", "condorworkertask"),
}
INSTEAD = {"max_materialize": "max_jobs", "max_idle": "max_jobs", "request_cpus": "cpus", "request_memory": "memory_mb"}
INSTEAD |= {"transfer_input_files": "transfer_files", "should_transfer_files": "transfer_files", "priority": "describe"}
PASSED_ON = ("PYTHONPATH", "LD_LIBRARY_PATH", "PATH")  # of the submitter's environment


def split_options(texts: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Pairs for the options of a CondorExecutor from texts KEY=VALUE, as a command line has them."""
    return tuple((key.strip(), value.strip()) for key, _, value in (text.partition("=") for text in texts))


def check_submit_options(options: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Extra lines of the submit file. Raises ValueError."""
    for key, value in options:
        bare = key.lower().removeprefix("+").removeprefix("my.")
        if not re.fullmatch(r"\+?[A-Za-z_][\w.]*", key) or re.search(r"[\r\n\0]", str(value)):
            raise ValueError(f"submit option {key!r} = {value!r}: give a name and a value on one line")
        if bare in RESERVED:
            instead = f"use {INSTEAD[bare]}" if bare in INSTEAD else "it is set for every job"
            raise ValueError(f"submit option {key!r} cannot be given: {instead}")
    return {str(key): str(value) for key, value in options}


def check_submittable(path: str | Path) -> str:
    """A path that a submit file can hold. Raises ValueError."""
    path = str(path)
    if re.search(r"[\r\n\0]|\\$|^\s|\s$|\$\$", path):
        raise ValueError(f"{path!r} cannot be used by HTCondor: no line breaks, no $$, no blank or backslash at the end")
    return path


def _literal(text: object) -> str:
    return str(text).replace("$", "$(DOLLAR)")


def _quoted(word: str) -> str:
    """A word of `arguments` or `environment`, to stand within double quotes."""
    return "'" + _literal(word).replace("'", "''").replace('"', '""') + "'"


@dataclass(frozen=True)
class SubmitFile:
    """The submit files of one executor: what is the same in all of them.

    run: marks its jobs; options: extra lines; transfer_files: HTCondor carries a task's inputs, the first of which is the program.
    """

    directory: Path
    run: str
    python: str
    options: Mapping[str, str]
    transfer_files: bool

    def text(self, cpus: int, memory_mb: int, inputs: tuple[str, ...], items: str) -> str:
        """For jobs of the same needs, one for each line "task,priority" of a file."""
        words = [inputs[0], WORD] if self.transfer_files else worker_command()
        environment = " ".join(f"{name}={_quoted(os.environ[name])}" for name in PASSED_ON if name in os.environ)
        lines = {
            "universe": "vanilla",
            "executable": _literal(self.python),
            "transfer_executable": "False",
            "arguments": f'"{" ".join(map(_quoted, words))} . $(task) {cpus}"',
            "environment": f'"{environment}"',
            "initialdir": _literal(self.directory),
            "log": "jobs.log",
            "output": "/dev/null",
            "error": "$(task).err",
            "should_transfer_files": "NO",
            "request_cpus": cpus,
            "request_memory": memory_mb,
            "priority": "$(task_priority)",
            "+CondorWorkerRun": f'"{self.run}"',
            "+CondorWorkerTask": '"$(task)"',
        }
        if self.transfer_files:
            files = ",".join((*inputs, "$(task).call"))
            lines |= {"should_transfer_files": "YES", "when_to_transfer_output": "ON_EXIT", "transfer_input_files": files}
        given = {key.lower() for key in self.options}
        lines = {key: value for key, value in lines.items() if key.lower() not in given} | dict(self.options)
        return "".join(f"{key} = {value}\n" for key, value in lines.items()) + f"queue task,task_priority from {items}\n"


class Submitter:
    """In batches, largest priority first, so many at a time. A refusal is believed when it comes three times.

    add() may be called by any thread, the rest by the watcher's.
    """

    def __init__(self, tasks: OpenTasks, files: JobFiles, queue: CondorQueue, submit_file: SubmitFile, max_jobs: int):
        self._tasks, self._files, self._queue, self._submit_file, self._max_jobs = tasks, files, queue, submit_file, max_jobs
        self._waiting = []  # a heap; those that are not QUEUED any more are passed over
        self._submit_at = 0.0

    def add(self, task: CondorTask):
        """Have a task submitted, for the first time or anew."""
        with self._tasks.changed:
            task.state, task.job = State.QUEUED, ""
            if not self._waiting:
                self._submit_at = max(self._submit_at, time.monotonic() + LINGER_S)
                self._tasks.changed.notify_all()
            heapq.heappush(self._waiting, task)

    def seconds_to_next(self):
        """Until the next batch is due; 0 where none is, or where it waits for something else."""
        return max(0.0, self._submit_at - time.monotonic()) if self._waiting else 0.0

    def submit_waiting(self):
        """Submit what waits, if it is time and the queue is known."""
        if not self._waiting or self._queue.silent or self._queue.must_ask or time.monotonic() < self._submit_at:
            return
        batches = {}
        for task in self._take(self._max_jobs - len(self._tasks.by_job)):
            batches.setdefault((task.cpus, task.memory_mb, task.inputs), []).append(task)
        for tasks in batches.values():
            try:
                self._submit(tasks)
            except (ScheddSilent, SubmitFailed, OSError) as error:  # they may be in the queue all the same: it is asked
                self._note_refusal(tasks, error)
                break

    def _take(self, room):
        """The first tasks that wait, marked as perhaps submitted."""
        taken = []
        with self._tasks.changed:
            while self._waiting and len(taken) < room:
                task = heapq.heappop(self._waiting)
                if self._tasks.by_name.get(task.name) is not task or task.state is not State.QUEUED:
                    continue
                if task.future.running() or task.future.set_running_or_notify_cancel():
                    task.state = State.UNCONFIRMED
                    taken.append(task)
                else:
                    del self._tasks.by_name[task.name]
                    self._files.delete(task.name)
        return taken

    def _submit(self, tasks):
        """One condor_submit for tasks of the same needs. Raises SubmitFailed, ScheddSilent, OSError."""
        first, names, schedd, directory = tasks[0], [task.name for task in tasks], self._queue.schedd, self._files.directory
        stem = f"submit-{schedd.calls['condor_submit'] + 1}"
        description, items = directory / f"{stem}.sub", directory / f"{stem}.items"
        description.write_text(self._submit_file.text(first.cpus, first.memory_mb, first.inputs, items.name), encoding="utf-8")
        items.write_text("".join(f"{task.name},{task.description.priority}\n" for task in tasks), encoding="utf-8")
        self._files.events.write("submitting", tasks=names)
        cluster = schedd.submit(directory, description.name, len(tasks))
        for number, task in enumerate(tasks):
            self._tasks.assign(task, f"{cluster}.{number}")
            task.refusals = ("", 0)
        self._files.events.write("submitted", cluster=cluster, tasks=names, cpus=first.cpus, memory_mb=first.memory_mb)
        self._submit_at = time.monotonic() + SUBMIT_SPACING_S
        self._files.delete(stem, (".sub", ".items"))

    def _note_refusal(self, tasks, error):
        times = 0
        if isinstance(error, SubmitFailed):
            text = re.sub(r"submit-\d+", "submit", str(error))
            times = 1 + (tasks[0].refusals[1] if tasks[0].refusals[0] == text else 0)
            for task in tasks:
                task.refusals = (text, times)
        self._files.events.write("refused", number=len(tasks), reason=str(error))
        self._files.events.say_once(str(error), f"{len(tasks)} jobs were not submitted: {error}")
        self._submit_at = time.monotonic() + min(LONGEST_BACKOFF_S, self._queue.interval_s * 2 ** max(0, times - 1))
        self._queue.ask_now()

    def is_refused(self, task):
        """Whether the refusal of a task is final."""
        return task.refusals[1] >= SUBMIT_ATTEMPTS and not self._tasks.by_job
