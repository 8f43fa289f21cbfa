"""What becomes of jobs, as HTCondor's log of them and the queue tell it. The log is early but may miss something; the queue is late."""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import dataclass
from datetime import datetime

from executors.condor_tasks import OpenTasks, State
from executors.job_files import JobFiles
from executors.local import describe_exit
from executors.remedies import Remedies
from executors.schedd import COMPLETED_JOB, HELD_JOB, IDLE_JOB, REMOVED_JOB, RUNNING_JOB, SUSPENDED_JOB, TRANSFERRING_JOB, CondorQueue

EXECUTING_EVENT, EVICTED_EVENT, TERMINATED_EVENT, ABORTED_EVENT, HELD_EVENT, RELEASED_EVENT = 1, 4, 5, 9, 12, 13


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


class UserLog:
    """Follows a log from its present end on."""

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
                    yield LogEvent(int(head[1]), job, _event_time(head[4]), text[head.end() :])


def _event_time(text):
    """Seconds since the epoch of a time stamp in a user log; now where it has another format or lies in the future."""
    try:
        return min(datetime.fromisoformat(text).timestamp(), time.time())
    except ValueError:
        return time.time()


class Follower:
    """Brings the tasks' states in line with what is told. Belongs to the watcher's thread."""

    def __init__(self, tasks: OpenTasks, files: JobFiles, queue: CondorQueue, remedies: Remedies, straggler_cpus: int):
        self._tasks, self._events, self._queue, self._remedies, self._straggler_cpus = tasks, files.events, queue, remedies, straggler_cpus
        self._log = UserLog(files.directory / "jobs.log")

    def follow_log(self):
        """Apply what the log has to say; the jobs that it mentions."""
        mentioned = set()
        try:
            for event in self._log.events():
                mentioned.add(event.job)
                task = self._tasks.by_job.get(event.job)
                if task is not None and task.job == event.job:
                    self._apply_event(task, event)
        except OSError as error:  # the queue tells the same, later
            self._events.say_once("log", f"{self._log.path} cannot be read ({error.strerror}); going on with condor_q")
        return mentioned

    def _apply_event(self, task, event):
        if event.code == EXECUTING_EVENT and task.state in (State.IDLE, State.RUNNING):
            if task.evicted:
                task.evicted = False
                self._tasks.totals["evicted"] += 1
                self._events.write("evicted", task)
            task.state, task.started = State.RUNNING, event.time
        elif event.code == EVICTED_EVENT and task.state is State.RUNNING:  # also before it is held or removed
            task.state, task.started, task.evicted = State.IDLE, None, True
        elif event.code == RELEASED_EVENT and task.state is State.HELD:
            self._remedies.set_idle(task)
        elif event.code == HELD_EVENT:
            self._remedies.hold(task, *event.hold)
        elif event.code == TERMINATED_EVENT:
            task.ending, task.hopeless = describe_exit(event.exit_code, "raise memory_mb"), event.exit_code not in (0, None)
            self._remedies.end(task)
        elif event.code == ABORTED_EVENT:
            task.hopeless = True
            self._remedies.end(task)

    def ask_queue(self):
        """Ask about all jobs, if it is time."""
        if not self._queue.is_due(bool(self._tasks.by_job)):
            return
        self.follow_log()
        ads = self._queue.jobs()
        if ads is not None:
            self._reconcile(ads, self.follow_log())

    def _reconcile(self, ads, in_log):
        """Bring what we believe in line with all jobs of ours that are in the queue; of those in_log the log knows better by now."""
        seen = set()
        for ad in ads:  # the oldest first
            task = self._tasks.by_name.get(ad.task)
            if ad.job in self._tasks.gone:
                continue
            if task is None or task.name in seen or (task.state is State.ENDED and task.job != ad.job):
                if ad.status not in (REMOVED_JOB, COMPLETED_JOB):
                    self._events.write("orphan" if task is None else "duplicate", job=ad.job, task=ad.task)
                    self._tasks.doomed.add(ad.job)
                continue
            seen.add(task.name)
            if task.job != ad.job:
                self._adopt(task, ad)
            if ad.job not in in_log:
                self._apply_ad(task, ad)
        present = {ad.job for ad in ads}
        self._tasks.gone &= present
        with self._tasks.changed:
            tasks = list(self._tasks.by_name.values())
        for task in tasks:
            if task.state is State.UNCONFIRMED:
                self._remedies.not_submitted(task)
            elif task.job and task.job not in present and task.state is not State.ENDED:
                self._remedies.end(task)

    def _adopt(self, task, ad):
        """A job in the queue, which an earlier controller submitted, or a condor_submit that failed, is that of a task."""
        self._tasks.assign(task, ad.job)
        task.cpus, task.memory_mb = ad.cpus or task.cpus, ad.memory_mb or task.memory_mb
        task.straggler = task.straggler and task.cpus >= self._straggler_cpus
        self._events.write("adopted", task)

    def _apply_ad(self, task, ad):
        if task.state is State.ENDED:
            return
        if ad.status == COMPLETED_JOB:
            self._remedies.end(task)
        elif ad.status == REMOVED_JOB:
            task.state = State.REMOVING  # by us or by somebody else; not gone yet
        elif task.state is State.REMOVING:
            self._tasks.doomed.add(ad.job)  # the first condor_rm was lost
        elif ad.status == HELD_JOB:
            self._remedies.hold(task, *ad.hold)
        elif ad.status == IDLE_JOB and task.state is not State.IDLE:
            self._remedies.set_idle(task)
        elif ad.status in (RUNNING_JOB, TRANSFERRING_JOB, SUSPENDED_JOB) and task.state is not State.RUNNING:
            self._remedies.set_idle(task)
            task.state, task.started = State.RUNNING, ad.started or time.time()
