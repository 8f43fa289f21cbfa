"""A run in words: the summary for a person and for programs, and all that is known of a point."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from executors import __version__
from phases.errors import InputError
from phases.history import Run


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
    if core.has_labels:
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
        "importance": core.importances() if core.has_labels else {},
        "entropy": core.iterations[-1].entropy if core.iterations else None,
        "lowest_energy": min((event["energy"] for event in run.labelled.values()), default=None),
        "seconds": sum(event["seconds"] or 0 for event in run.told.values()),
    }


def point_text(run: Run, id: int) -> str:
    """All that is known of a point. Raises InputError for one that was never asked for."""
    if not 0 <= id < len(run.explorer.points):
        raise InputError(f"point {id}: {run.directory} holds the points 0 to {len(run.explorer.points) - 1}")
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
