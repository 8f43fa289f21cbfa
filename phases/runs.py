"""Reading what a run left."""

from __future__ import annotations

import zipfile
import zlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from phases.active_learning import NO_PHASE
from phases.box import Box
from phases.errors import InputError
from executors import __version__
from phases.history import HISTORY_VERSION, apply_event, decode
from phases.learner import Explorer


@dataclass(frozen=True)
class Run:
    """What the history of a directory holds; nothing is claimed or written, a run may be at work there."""

    directory: Path
    header: dict[str, Any]  # version, box, model, seed
    explorer: Explorer
    told: dict[int, dict]  # the last answer of each point, in the order in which they came

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
        return dict(Counter([event.get("phase") or event["failure"] for event in self.told.values()] + ["pending"] * pending).most_common())

    def spins(self, id: int) -> tuple[np.ndarray, np.ndarray]:
        """Spins and positions of a point. Raises InputError where there are none."""
        path = self.directory / "spins" / f"{id}.npz"
        try:
            with np.load(path) as stored:
                return stored["spins"].astype(float), stored["positions"].astype(float)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(f"{path}: the spins of point {id} are not readable ({type(error).__name__})") from None


def read_history(directory: Path) -> Run:
    """Raises InputError where there is no sound history. A last line that is just being written is left out."""
    path = directory / "history.jsonl"
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise InputError(f"{path}: no run to read there ({error.strerror})") from None
    events = [decode(line) for line in lines]
    if events and events[-1] is None:
        events.pop()
    if not events or None in events or events[0].get("event") != "run":
        raise InputError(f"{path} is not a history of this program, or it is damaged")
    if events[0].get("version") != HISTORY_VERSION:
        raise InputError(f"{path} is of version {events[0].get('version')}; this program reads version {HISTORY_VERSION}")
    explorer, told = Explorer(Box.of(events[0]["box"]), events[0]["seed"], no_phase=NO_PHASE), {}
    for event in events[1:]:
        apply_event(explorer, event)
        for id in (event["id"],) if event["event"] == "told" else event["ids"] if event["event"] == "retry" else ():
            told.pop(id, None)
        if event["event"] == "told":
            told[event["id"]] = event
    return Run(directory, events[0], explorer, told)


def has_surrogate(run: Run) -> bool:
    return any(event["phase"] not in NO_PHASE for event in run.labelled.values())


def summary_text(run: Run) -> str:
    """Phases with their numbers and energies, failures with their reasons, what the surrogate has learnt."""
    core = run.explorer
    seconds = sum(event["seconds"] or 0 for event in run.told.values())
    lines = [f"{run.directory}: {len(core.points)} points, {core.iteration} iterations, {seconds:.1f} s of simulations"]
    for state, number in run.states().items():
        energies = [event["energy"] for event in run.labelled.values() if event["phase"] == state]
        sure = np.mean([event["confidence"] for event in run.labelled.values() if event["phase"] == state] or [0.0])
        tail = f"  energy {min(energies):9.6f} to {max(energies):9.6f}  mean confidence {sure:.2f}" if energies else ""
        lines.append(f"  {state:16} {number:5}{tail}")
    reasons = Counter(f"{event['error']}: {first_line(event['message'])}" for event in run.failures.values())
    lines += [f"  failed {number} x {reason}" for reason, number in reasons.most_common(5)]
    if has_surrogate(run):
        ranked = sorted(core.importances().items(), key=lambda item: -item[1])
        lines.append("  importance: " + ", ".join(f"{name} {share:.0%}" for name, share in ranked))
    if core.iterations and core.iterations[-1].entropy is not None:
        last = core.iterations[-1]
        changed = f", {last.changed:.1%} of its labels changed in the last iteration" if last.changed is not None else ""
        lines.append(f"  predicted map: mean entropy {last.entropy:.3f}{changed}")
    return "\n".join(lines)


def first_line(text: str) -> str:
    return (text.splitlines() or [""])[0][:200]


def summary_record(run: Run) -> dict[str, Any]:
    """The same for programs: what summary.json holds."""
    core = run.explorer
    return {
        "version": __version__,
        "seed": run.header["seed"],
        "model": run.header["model"],
        "box": run.header["box"],
        "points": len(core.points),
        "iterations": core.iteration,
        "states": run.states(),
        "failures": [{"id": id, "error": event["error"], "message": event["message"]} for id, event in run.failures.items()],
        "importance": core.importances() if has_surrogate(run) else {},
        "entropy": core.iterations[-1].entropy if core.iterations else None,
        "lowest_energy": min((event["energy"] for event in run.labelled.values()), default=None),
        "seconds": sum(event["seconds"] or 0 for event in run.told.values()),
    }


def point_text(run: Run, id: int) -> str:
    """All that is known of a point. Raises InputError for one that was never asked for."""
    if not 0 <= id < len(run.explorer.points):
        raise InputError(f"--point {id}: {run.directory} holds the points 0 to {len(run.explorer.points) - 1}")
    point, event = run.explorer.points[id], run.told.get(id)
    lines = [f"point {id}, from {point.origin} in iteration {point.iteration}"]
    lines += [f"  {name:12} {value: .6f}" for name, value in run.parameters(id).items()]
    if event is None:
        return "\n".join([*lines, "not simulated yet"])
    if "failure" in event:
        return "\n".join([*lines, f"{event['failure']}: {event['error']}: {event['message']}", event["traceback"]])
    where = f"{event['seconds']:.1f} s on {event['host']}"
    lines.append(f"{event['phase']}, confidence {event['confidence']:.2f}, energy per site {event['energy']:.8f}, {where}")
    lines += [f"  - {step}" for step in event["path"]]
    return "\n".join([*lines, *(f"  {name:12} {value:.6g}" for name, value in event["numbers"].items())])
