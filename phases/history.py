"""The events of a run on disk, and what they amount to.

history.jsonl is the run: one event a line, only ever appended to. Every line is a JSON object whose last entry `crc` is the CRC-32 of the
line without it. `History` is the file of a run that is at work, `read_history` reads one without claiming it, `Run` is what both amount to.

    run        version, box, model, seed                          the first line; a run that differs in any is refused
    opened     time, host, pid                                    somebody works on it from here on
    asked      iteration, origin, ids, points, parameters         points: unit coordinates, which alone count
    told       id, time, phase, confidence, energy, seconds, host, path, numbers         a label; spins are in spins/<id>.npz
    told       id, time, failure, error, message, traceback, seconds, host               or why there is none
    retry      ids                                                failed points are pending again
    iteration  number, changed, entropy, predicted                the end of an iteration
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from phases.box import Box
from phases.errors import ExplorerError, InputError
from phases.learner import Explorer, Iteration, Point
from phases.names import NO_PHASE

HISTORY, HISTORY_VERSION = "history.jsonl", 1
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


def sound_events(path: Path, content: bytes) -> tuple[list[dict], int]:
    """The events of a history's content, and their length in bytes, without a last one that is torn or just being written.

    Raises InputError for anything else unsound.
    """
    lines = content[: content.rfind(b"\n") + 1].splitlines(keepends=True)
    events = [decode(line) for line in lines]
    if len(events) > 1 and events[-1] is None:
        events.pop()
    is_ours = (events[0] or {}).get("event") == "run" if events else FIRST_BYTES.startswith(content[: len(FIRST_BYTES)])
    if not is_ours:
        raise InputError(f"{path} is not a history of this program, or its first line is damaged; choose another output directory")
    if None in events:
        number = events.index(None)
        raise InputError(f"{path} is damaged at line {number + 1}: {lines[number][:60]!r}; restore it from a copy, or start afresh")
    return events, sum(map(len, lines[: len(events)]))


def outcome(told: Mapping[str, Any]) -> str:
    """The label of a point, or why it has none."""
    return told.get("phase") or told["failure"]


@dataclass(frozen=True)
class Run:
    """What a history amounts to: the header (version, box, model, seed), the explorer core that has seen it all, and the last answer of a
    point as its event, in the order in which they came.
    """

    directory: Path
    header: dict[str, Any]
    explorer: Explorer
    told: dict[int, dict]

    def apply(self, event: dict[str, Any]) -> None:
        """Bring all to where it was after an event; events that do not concern it pass."""
        kind, core = event["event"], self.explorer
        if kind == "asked":
            core.register(Point(id, tuple(unit), event["origin"], event["iteration"]) for id, unit in zip(event["ids"], event["points"]))
        elif kind == "told":
            core.tell(event["id"], event.get("phase"), event.get("confidence", 1.0), event.get("failure"))
            self.told.pop(event["id"], None)
            self.told[event["id"]] = event
        elif kind == "retry":
            core.retry(event["ids"])
            for id in event["ids"]:
                self.told.pop(id, None)
        elif kind == "iteration":
            core.iterations.append(Iteration(event["number"], tuple(event["predicted"]), event["changed"], event["entropy"]))

    @property
    def L(self) -> int:
        return int(self.header["model"]["L"])

    @property
    def failures(self) -> dict[int, dict]:
        return {id: event for id, event in self.told.items() if "failure" in event}

    @property
    def labelled(self) -> dict[int, dict]:
        return {id: event for id, event in self.told.items() if "phase" in event}

    def parameters(self, id: int) -> dict[str, float]:
        return self.explorer.box.parameters(self.explorer.points[id].unit)

    def states(self) -> dict[str, int]:
        """How many points have each label, failed, or are pending; the most frequent first."""
        pending = len(self.explorer.points) - len(self.told)
        return dict(Counter([*map(outcome, self.told.values()), *["pending"] * pending]).most_common())

    def spins(self, id: int) -> tuple[np.ndarray, np.ndarray]:
        """Spins (N, 3) and positions (N, 2) of a simulated point. Raises InputError where there are none."""
        path = self._spins_path(id)
        try:
            with np.load(path) as stored:
                return stored["spins"].astype(float), stored["positions"].astype(float)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(f"{path}: the spins of point {id} are not readable ({type(error).__name__})") from None

    def save_spins(self, id: int, record: Mapping[str, Any]) -> None:
        """Of a worker's record, as float32."""
        path = self._spins_path(id)
        path.parent.mkdir(exist_ok=True)
        arrays = {name: np.frombuffer(record[name]).reshape(record["sites"], -1).astype(np.float32) for name in ("spins", "positions")}
        temporary = path.with_suffix(".partial.npz")
        np.savez_compressed(temporary, **arrays)
        os.replace(temporary, path)

    def _spins_path(self, id):
        return self.directory / "spins" / f"{id}.npz"


def read_history(directory: str | Path) -> Run:
    """The run of a directory; nothing is claimed or written, another process may be at work there. Raises InputError where there is none.

    >>> with tempfile.TemporaryDirectory() as place:
    ...     with ActiveLearningExplorer(place, L=6, parameters={"J3xy": (0, 1)}) as explorer:
    ...         parameters = explorer.add_lhs_samples(3)
    ...     read_history(place).states()
    {'pending': 3}
    """
    path = Path(directory) / HISTORY
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: no run to read there ({error.strerror})") from None
    events, _ = sound_events(path, content)
    if not events or events[0].get("version") != HISTORY_VERSION:
        what = f"of version {events[0].get('version')}" if events else "empty"
        raise InputError(f"{path} is {what}; this program reads version {HISTORY_VERSION}")
    header = events[0]
    run = Run(Path(directory), header, Explorer(Box.of(header["box"]), header["seed"], no_phase=NO_PHASE), {})
    for event in events[1:]:
        run.apply(event)
    return run


class History:
    """The file of events of one run, open for more. A last line that was torn by a crash is cut off; anything else unsound is refused."""

    def __init__(self, directory: Path, box: Box, model: Mapping[str, Any], seed: int):
        """`past` holds the events after the header; `file` is to be closed. Writes nothing where it refuses. Raises InputError."""
        self.path = directory / HISTORY
        header = {"event": "run", "version": HISTORY_VERSION, "box": box.bounds(), "model": dict(model), "seed": seed}
        self.header = json.loads(json.dumps(header))
        events, self._length = sound_events(self.path, self.path.read_bytes() if self.path.exists() else b"")
        for key in ("version", "model", "box", "seed") if events else ():
            found, wanted = events[0].get(key), self.header[key]
            if found != wanted or (key == "box" and list(found) != list(wanted)):
                other = f"its {key} is {json.dumps(found)}, not {json.dumps(wanted)}"
                raise InputError(f"{self.path} is of another run: {other}; choose another output directory, or start afresh")
        self.past = events[1:]
        self.file = open(self.path, "ab", buffering=0)  # noqa: SIM115
        self.file.truncate(self._length)
        if not events:
            self.append(**self.header)

    def append(self, event: str, **fields) -> dict:
        """Write an event, safe from the death of this process once this returns. Raises ExplorerError where the disk is full."""
        whole = {"event": event, **fields}
        line = encode(whole)
        try:
            if self.file.write(line) != len(line):
                raise OSError("no space left")
        except OSError as error:
            self.file.truncate(self._length)
            raise ExplorerError(f"{self.path} cannot be written ({error}); make room and resume") from error
        self._length += len(line)
        return whole

    def sync(self) -> None:
        """Put all on disk, safe from a power cut."""
        os.fsync(self.file.fileno())


def delete_run(directory: Path) -> None:
    """Delete history, spins and pictures of a run, and nothing else. Raises InputError where what lies there is not of this program."""
    path = directory / HISTORY
    if path.exists() and not path.read_bytes()[: len(FIRST_BYTES)] == FIRST_BYTES[: path.stat().st_size]:
        raise InputError(f"{path} is not a history of this program; choose another output directory")
    for name in (HISTORY, "state.json", "summary.json"):  # state.json: of version 0.1
        (directory / name).unlink(missing_ok=True)
    for path in (*(directory / "spins").glob("[0-9]*.npz"), *(directory / "plots").glob("*.png")):
        path.unlink()
