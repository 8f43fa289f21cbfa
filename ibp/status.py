"""What a run's files say of it: status.json, written by `Monitor` while one-step tasks run, and the tables that show it and exact runs."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from executors.directories import process_exists
from executors.files import replace_file
from ibp.console import Reporter, format_rate, format_seconds
from ibp.errors import InputError, ReductionError
from ibp.journal import read_record
from ibp.run_directory import RunDirectory
from ibp.run_state import RunState
from ibp.steps import Frontier

STATUS_FORMAT = 1
STATUS_INTERVAL_S = 2.0  # how often status.json is written
STATUS_TRUSTED_S = 30.0  # a status not older than this shows that a controller on another host is at work
GONE = "GONE: go on with the same command, or stop the run to remove its jobs"
DAMAGE = (KeyError, TypeError, ValueError, AttributeError, OverflowError)  # what reading a status raises that is not one


class Monitor:
    """What a run of one-step tasks tells: a status file for other terminals, a bar or now and then a line here."""

    def __init__(self, path: Path, reporter: Reporter):
        self.path, self.reporter = path, reporter
        self._started = self._written = time.time()
        self._history: deque[tuple[float, int]] = deque(maxlen=30)

    def tell(self, phase: str, state: RunState, failures: Sequence[str], frontier: Frontier | None, at_once: bool = False) -> None:
        """Now and then, or at once."""
        now = time.time()
        if now < self._written + STATUS_INTERVAL_S and not at_once:
            return
        self._written = now
        done = state.statistics["integrals"]
        met = sum(map(len, frontier.met.values())) if frontier else 0
        self._history.append((now, done))
        then, before = self._history[0]
        rate = (done - before) / (now - then) if now > then else 0.0
        status = {
            "format": STATUS_FORMAT,
            "time": now,
            "started": self._started,
            "run": state.problem.name,
            "phase": phase,
            "integrals": {"done": done, "met": met, "waiting": sum(map(len, frontier.waiting.values())) if met else 0},
            "tasks": state.executor.counts(),
            "statistics": executor_totals(state.executor),
            "cache": {"entries": done, "hits": max(state.statistics["references"] - done, 0)},
            "rules_found": state.statistics["rules"],
            "failures": failures[:10],
            "held": state.executor.held_reasons(),
            "integrals_per_s": rate,
            "left_s": (met - done) / rate if rate > 0 else None,
        }
        with suppress(OSError):  # a full disk is told by the journal, which counts; a status that is old says so itself
            replace_file(self.path, json.dumps(status, indent=1).encode())
        self.reporter.show(phase, done, met, _in_one_line(status))


def executor_totals(executor: Any) -> dict[str, int]:
    """What happened to the tasks so far: jobs, stragglers, …, calls of HTCondor's tools."""
    return {name: sum(count.values()) if isinstance(count, dict) else count for name, count in executor.statistics.items()}


def _in_one_line(status: dict[str, Any]) -> str:
    tasks = status["tasks"]
    parts = [f"{tasks[state]} {state}" for state in ("running", "idle", "queued", "held", "failed") if tasks.get(state)]
    parts.append(f"{status['cache']['hits']:,} hits")
    if status["left_s"] is not None:
        parts.append(f"{format_rate(status['integrals_per_s'])}/s, at least {format_seconds(status['left_s'])} left")
    return ", ".join(parts)


def status_text(directory: RunDirectory) -> tuple[str, bool]:
    """A table, and whether a controller is at work. Raises InputError where no run was ever started, ReductionError."""
    if directory.exact.exists():
        return _exact_run(directory)
    if directory.journal.exists() and not directory.status.exists():
        return f"{directory.path}: a run is being prepared, or ended before it had a status", False
    nothing = f"{directory.path} holds no run of one-step tasks, and no unfinished exact run"
    status = _read_json(directory.status, nothing, format=STATUS_FORMAT)
    owner = _read_owner(directory)
    try:
        return _run_of_steps(directory, status, owner)
    except DAMAGE as error:
        trouble = f"status.json or controller.json is damaged ({error}); a controller at work writes them anew"
        raise ReductionError(f"{directory.path}: {trouble}") from None


def _run_of_steps(directory: RunDirectory, status: dict[str, Any], owner: dict[str, Any]) -> tuple[str, bool]:
    """The table of a sound status."""
    age = time.time() - status["time"]
    finished = not directory.journal.exists()
    alive = not finished and _is_at_work(owner, age)
    doing = "finished" if finished else "at work" if alive else GONE
    integrals = status["integrals"]
    rows = [
        ("run", status["run"]),
        ("controller", f"pid {owner['pid']} on {owner['host']}, {doing}"),
        ("time", f"{format_seconds(status['time'] - status['started'])} until {format_seconds(age)} ago; phase: {status['phase']}"),
        ("integrals", f"{integrals['done']:,} done of {integrals['met']:,} met, {integrals['waiting']:,} not yet in a task"),
        ("tasks", ", ".join(f"{count:,} {state}" for state, count in status["tasks"].items())),
        *(("held", f"{count} x {reason}") for reason, count in status["held"].items()),
        ("so far", ", ".join(f"{count:,} {name}" for name, count in status["statistics"].items() if count)),
        ("cache", f"{status['cache']['entries']:,} entries, {status['cache']['hits']:,} hits; {status['rules_found']:,} rules found"),
        *(("failed", text) for text in status["failures"]),
    ]
    if alive:
        left = f"at least {format_seconds(status['left_s'])} left" if status["left_s"] is not None else "no estimate yet"
        rows.append(("pace", f"{format_rate(status['integrals_per_s'])} integrals/s, {left}"))
    return _table(rows), alive


def _exact_run(directory: RunDirectory) -> tuple[str, bool]:
    """What the journal of an unfinished exact run holds. How many points it will need is not known on disk. Raises ReductionError."""
    owner, points = _read_owner(directory), 0
    try:
        with directory.exact.open("rb") as file:
            name, position = read_record(file, 0) or ({}, 0)
            age = time.time() - os.fstat(file.fileno()).st_mtime
            while position and (found := read_record(file, position)):
                points, position = points + len(found[0].get("samples", ())), found[1]
        alive = _is_at_work(owner, age)
        here = owner["host"] == os.uname().nodename
        rows = (
            ("run", f"{name['run']}, exact"),
            ("controller", f"pid {owner['pid']} on {owner['host']}, {'at work' if alive else GONE if here else 'silent'}"),
            ("points", f"{points:,} done, the last {format_seconds(max(age, 0.0))} ago"),
        )
    except (*DAMAGE, OSError) as error:
        raise ReductionError(f"{directory.path}: exact.journal or controller.json is damaged ({error!r}); go on with --fresh") from None
    return _table(rows), alive


def _table(rows: Sequence[tuple[str, str]]) -> str:
    return "\n".join(f"{name:12}{value}" for name, value in rows)


def _read_owner(directory: RunDirectory) -> dict[str, Any]:
    """Who claimed a work directory last. Raises InputError, ReductionError."""
    return _read_json(directory.path / "controller.json", f"{directory.path} was never claimed by a controller")


def _is_at_work(owner: dict[str, Any], age_s: float) -> bool:
    """Whether a controller lives; of one on another host the files tell, by their age."""
    return process_exists(owner["pid"]) if owner["host"] == os.uname().nodename else age_s < STATUS_TRUSTED_S


def _read_json(path: Path, otherwise: str, **expected: Any) -> dict[str, Any]:
    """Raises InputError where there is no such file, ReductionError where it is none of ours."""
    try:
        value = json.loads(path.read_bytes())
        if not isinstance(value, dict) or any(value.get(name) != wanted for name, wanted in expected.items()):
            raise ValueError("of another version")
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(otherwise) from None
    except (OSError, ValueError) as error:
        raise ReductionError(f"{path}: not readable ({error}); a controller at work writes it anew") from None
    return value
