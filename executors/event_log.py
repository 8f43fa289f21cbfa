"""What happened to the tasks of a directory, a line of JSON each; an executor reads there what the one before it did."""

from __future__ import annotations

import contextlib
import json
from datetime import datetime
from pathlib import Path

ATTEMPT = ("cpus", "memory_mb", "retries", "straggler")  # of a task's next job


class EventLog:
    """say is called with a line for a person."""

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
