"""The events of a run on disk."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from executors.files import replace_file
from phases.box import Box
from phases.errors import ExplorerError, InputError
from phases.learner import Explorer, Iteration, Point

# history.jsonl, one event a line, only ever appended to. Every line is a JSON object whose last entry `crc` is the CRC-32
# of the line without it. Events:
#   run        version, box, model, seed                          the first line; a run that differs in any is refused
#   opened     time, host, pid                                    somebody works on it from here on
#   asked      iteration, origin, ids, points, parameters         points: unit coordinates, which alone count
#   told       id, time, phase, confidence, energy, seconds, host, path, numbers         a label; spins are in spins/<id>.npz
#   told       id, failure, error, message, traceback, seconds, host               or why there is none
#   retry      ids                                                failed points are pending again
#   iteration  number, changed, entropy, predicted                the end of an iteration
# state.json holds what the first `offset` bytes amount to, as fewer and shorter events; it may be deleted.
HISTORY_VERSION = 1
FIRST_BYTES = b'{"event":"run"'


def encode(event: Mapping[str, Any]) -> bytes:
    text = json.dumps(event, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return f'{text[:-1]},"crc":"{zlib.crc32(text.encode()):08x}"}}\n'.encode()


def decode(line: bytes) -> dict | None:
    """The event of a line; None if it is torn or damaged."""
    try:
        event = json.loads(line)
        del event["crc"]
        return event if encode(event) == line else None
    except (ValueError, KeyError, TypeError):
        return None


class History:
    """The file of events of one run. A last line that was torn by a crash is cut off; anything else unsound is refused."""

    def __init__(self, directory: Path, box: Box, model: Mapping[str, Any], seed: int):
        """Writes nothing where it refuses. Raises InputError."""
        self.path, self.state_path = directory / "history.jsonl", directory / "state.json"
        header = {"event": "run", "version": HISTORY_VERSION, "box": box.bounds(), "model": dict(model), "seed": seed}
        content = self.path.read_bytes() if self.path.exists() else b""
        end = self._sound_length(content)
        first = decode(content[: content.find(b"\n") + 1]) if end else header
        self._check_header(first, json.loads(json.dumps(header)) if end else header)
        condensed_events, offset = self._read_state(content[:end])
        self.past = condensed_events + [self._decoded(line, offset) for line in content[offset:end].splitlines(keepends=True)]
        self._length, self._crc = end, zlib.crc32(content[:end])
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115
        self._file.truncate(end)
        if not end:
            self.append("run", **{key: value for key, value in header.items() if key != "event"})

    def _sound_length(self, content):
        """How many bytes from the start are whole lines, the last of them sound."""
        end = content.rfind(b"\n") + 1
        if end and decode(content[content.rfind(b"\n", 0, end - 1) + 1 : end]) is None and content.count(b"\n") > 1:
            end = content.rfind(b"\n", 0, end - 1) + 1
        if not end and not FIRST_BYTES.startswith(content[: len(FIRST_BYTES)]):
            raise InputError(f"{self.path} is not a history of this program; choose another output directory")
        return end

    def _check_header(self, found, wanted):
        if found is None or found.get("event") != "run":
            raise InputError(f"{self.path} is not a history of this program, or its first line is damaged; choose another output directory")
        for key in ("version", "model", "box", "seed"):
            if found.get(key) != wanted[key] or (key == "box" and list(found["box"]) != list(wanted["box"])):
                raise InputError(
                    f"{self.path} is of another run: its {key} is {json.dumps(found.get(key))}, not {json.dumps(wanted[key])}; "
                    "choose another output directory, or start afresh"
                )

    def _decoded(self, line, offset):
        if (event := decode(line)) is None:
            raise InputError(f"{self.path} is damaged after byte {offset}: {line[:60]!r}; restore it from a copy, or start afresh")
        return event

    def _read_state(self, content):
        """(events, offset) of the last snapshot, ([], 0) where there is none that fits the content."""
        try:
            snapshot = decode(self.state_path.read_bytes())
        except OSError:
            snapshot = None
        if (
            snapshot
            and "events" in snapshot
            and snapshot["offset"] <= len(content)
            and zlib.crc32(content[: snapshot["offset"]]) == snapshot["history_crc"]
        ):
            return snapshot["events"], snapshot["offset"]
        return [], 0

    def append(self, event: str, **fields) -> dict:
        """Write an event, safe from the death of this process once this returns."""
        whole = {"event": event, **fields}
        line = encode(whole)
        try:
            if self._file.write(line) != len(line):
                raise OSError("no space left")
        except OSError as error:
            self._file.truncate(self._length)
            raise ExplorerError(f"{self.path} cannot be written ({error}); make room and resume") from error
        self._length, self._crc = self._length + len(line), zlib.crc32(line, self._crc)
        return whole

    def save(self, events: list[dict[str, Any]]) -> None:
        """Put all on disk, safe from a power cut, with a snapshot."""
        os.fsync(self._file.fileno())
        replace_file(self.state_path, encode({"offset": self._length, "history_crc": self._crc, "events": events}))

    @property
    def closed(self) -> bool:
        return self._file.closed

    def close(self) -> None:
        self._file.close()


def condensed(explorer: Explorer) -> list[dict[str, Any]]:
    """Events that bring a new explorer to the state of this one."""
    events: list[dict[str, Any]] = []
    for p in explorer.points:
        events.append({"event": "asked", "iteration": p.iteration, "origin": p.origin, "ids": [p.id], "points": [p.unit]})
    for id, a in explorer.answers.items():
        told = {"failure": a.failure} if a.failure else {"phase": a.label, "confidence": a.confidence, "energy": a.energy}
        events.append({"event": "told", "id": id, **told})
    return events + [{"event": "iteration", **vars(iteration)} for iteration in explorer.iterations]


def apply_event(explorer: Explorer, event: Mapping[str, Any]) -> None:
    """Bring an explorer to where it was after an event; events that do not concern it pass."""
    kind = event["event"]
    if kind == "asked":
        explorer.register(Point(id, tuple(unit), event["origin"], event["iteration"]) for id, unit in zip(event["ids"], event["points"]))
    elif kind == "told" and "failure" in event:
        explorer.tell(event["id"], failure=event["failure"])
    elif kind == "told":
        explorer.tell(event["id"], event["phase"], event["confidence"], event["energy"])
    elif kind == "retry":
        explorer.retry(event["ids"])
    elif kind == "iteration":
        explorer.iterations.append(Iteration(event["number"], tuple(event["predicted"]), event["changed"], event["entropy"]))
