"""HTCondor's log of our jobs, followed while it grows. It is told of an event at once, where asking the queue takes an interval."""

from __future__ import annotations

import contextlib
import os
import re
import time
from dataclasses import dataclass
from datetime import datetime

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
