"""What a run has finished, in one file that only grows: `Journal`; `read_record` reads one without a claim on it."""

from __future__ import annotations

import hashlib
import os
import pickle
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from executors.files import load_builtins
from ibp.errors import UNREADABLE, InputError, ReductionError
from ibp.store import set_aside


class Journal:
    """What a run has finished, in one file that only grows: a header that names the run, then checksummed records of builtin types.

    A record that is not whole (a kill, a full disk) ends the journal: it is cut off there, and what followed is computed again. One writer;
    the run holds the claim on the directory.
    """

    HEAD = struct.Struct("<I16s")

    def __init__(self, path: Path, run: str, say: Callable[[str], None] = lambda line: None):
        """Opens a run's journal, or begins it. Raises InputError if the file belongs to another run, OSError."""
        self.path, self.say = path, say
        self.file = open(path, "a+b", buffering=0)  # noqa: SIM115  (closed by close)
        self.end = 0
        header = read_record(self.file, 0)
        self.is_new = header is None
        if header is None:
            if os.path.getsize(path):
                self.file.close()  # damaged at its beginning, or none of ours
                self.say(f"{path}: not readable from its beginning; set aside as {set_aside(path)} and started anew")
                self.file = open(path, "a+b", buffering=0)  # noqa: SIM115
            self.append({"program": "ibp_reduce", "run": run})
            self.sync()
        elif (theirs := header[0].get("run") if isinstance(header[0], dict) else "another program") != run:
            self.file.close()
            raise InputError(
                f"{path.parent} holds the unfinished run of {theirs}; go on with that one, drop it by --fresh, or take another --work-dir"
            )
        else:
            self.end = header[1]

    def records(self) -> Iterator[tuple[int, Any]]:
        """(position, value) of all whole records after the header; what follows them is cut off. To be used up before append().

        Raises ReductionError.
        """
        while (found := read_record(self.file, self.end)) is not None:
            position, self.end = self.end, found[1]
            yield position, found[0]
        lost = os.path.getsize(self.path) - self.end
        if lost:
            self.say(f"{self.path}: {lost} bytes at its end are not a whole record and are dropped")
            self.file.truncate(self.end)

    def read(self, position: int) -> Any:
        """Raises ReductionError where the record is not what was written."""
        found = read_record(self.file, position)
        if found is None:
            raise ReductionError(f"{self.path}: the record at byte {position} has changed; run again, and it is cut off and computed anew")
        return found[0]

    def append(self, value: Any) -> int:
        """Position of the new record, which is safe after sync(). Raises ReductionError."""
        data = zlib.compress(pickle.dumps(value, protocol=4), 1)
        position = self.end
        rest = memoryview(self.HEAD.pack(len(data), hashlib.sha256(data).digest()[:16]) + data)
        try:
            while rest:
                rest = rest[self.file.write(rest) :]
        except OSError as error:
            with suppress(OSError):
                self.file.truncate(self.end)  # else what was written of it would spoil the next record
            raise self._trouble(error) from None
        self.end += self.HEAD.size + len(data)
        return position

    def sync(self) -> None:
        """What was appended is on the disk. Raises ReductionError."""
        try:
            os.fsync(self.file.fileno())
        except OSError as error:
            raise self._trouble(error) from None

    def close(self) -> None:
        self.file.close()

    def _trouble(self, error: OSError) -> ReductionError:
        return ReductionError(f"{self.path}: {error.strerror}; make room, then go on with the same command")


def read_record(file: Any, position: int) -> tuple[Any, int] | None:
    """A record of a journal and where it ends; None if there is none, or not a whole one. Raises ReductionError."""
    file.seek(position)
    head = file.read(Journal.HEAD.size)
    if len(head) < Journal.HEAD.size:
        return None
    length, digest = Journal.HEAD.unpack(head)
    if length > os.fstat(file.fileno()).st_size - file.tell():
        return None
    data = file.read(length)
    if len(data) < length or hashlib.sha256(data).digest()[:16] != digest:
        return None
    try:
        return load_builtins(zlib.decompress(data)), position + Journal.HEAD.size + length
    except MemoryError:
        raise ReductionError(f"{file.name}: not enough memory to read it; nothing of it is lost") from None
    except UNREADABLE:  # whole, but not written by this program
        return None
