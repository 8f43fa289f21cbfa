"""What is explored: box, lattice, and the simulation of each point, by `spin_plan` the program's own, by `user_plan` one of the user's."""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from phases.active_learning import ActiveLearningExplorer
from phases.annealer import MODES, Simulation, simulate
from phases.box import DEFAULT_BOX, Box
from phases.errors import InputError
from phases.model import Couplings

PROGRAM_MODEL = "honeycomb 1"  # changes when the same parameters give other states or labels


@dataclass(frozen=True)
class Plan:
    """What is explored, and by which simulation."""

    box: Box
    L: int
    mode: str  # for people
    model: dict[str, Any]  # what the labels depend on, beside box and L
    simulation: Callable[[Mapping[str, float]], Any]  # a module-level function, or partial of one
    seed: int

    def start(self, directory: str | Path, strategy: str = "balanced", target_phase: str | None = None) -> ActiveLearningExplorer:
        """The exploration in a directory, begun or continued. Raises InputError, DirectoryRefused."""
        return ActiveLearningExplorer(directory, self.L, target_phase, strategy, self.seed, self.box, model=self.model)


def spin_plan(
    mode: str = "fast", L: int | None = None, seed: int = 0, box: Box = DEFAULT_BOX, fixed: Mapping[str, float] | None = None
) -> Plan:
    """Annealing of the spin model. Raises InputError for parameters that it does not have."""
    fixed, size = dict(fixed or {}), MODES[mode].L if L is None else L
    for corner in (box.low, box.high):
        Couplings.from_parameters(dict(zip(box.names, corner)) | fixed)
    model = {"simulation": PROGRAM_MODEL, "mode": mode, "fixed": fixed}
    return Plan(box, size, mode, model, partial(simulate_spins, L=size, mode=mode, seed=seed, fixed=fixed), seed)


def user_plan(name: str, L: int | None, seed: int, box: Box, fixed: Mapping[str, float]) -> Plan:
    """The function MODULE:FUNCTION of the user's. Raises InputError where it cannot be loaded."""
    function = load_function(name)
    simulation = partial(with_fixed, function=function, fixed=fixed) if fixed else function
    return Plan(box, MODES["fast"].L if L is None else L, name, {"simulation": name, "fixed": dict(fixed)}, simulation, seed)


def simulate_spins(parameters: Mapping[str, float], L: int, mode: str, seed: int, fixed: Mapping[str, float] | None = None) -> Simulation:
    couplings = dict(fixed or {}) | dict(parameters)
    return simulate(couplings, L, mode, point_seed(seed, couplings))


def with_fixed(parameters: Mapping[str, float], function: Callable, fixed: Mapping[str, float]) -> Any:
    return function(dict(fixed) | dict(parameters))


def point_seed(seed: int, parameters: Mapping[str, float]) -> int:
    """A seed for a point, whoever simulates it and when."""
    return zlib.crc32(json.dumps([seed, sorted(parameters.items())]).encode())


def read_box(text: str | None) -> tuple[Box, dict[str, float]]:
    """Parameter box, and the parameters that stay fixed, from a JSON file or JSON itself. Raises InputError."""
    if text is None:
        return DEFAULT_BOX, {}
    try:
        content = text if text.lstrip().startswith("{") else Path(text).read_text(encoding="utf-8-sig")
        entries = json.loads(content, object_pairs_hook=unrepeated)
        if not isinstance(entries, dict):
            raise ValueError('expected {"name": [low, high], ...}')
        fixed = {name: float(value) for name, value in entries.items() if isinstance(value, (int, float)) and not isinstance(value, bool)}
    except (OSError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"parameters {text[:200]}: not readable as JSON of a box ({error})") from None
    if not all(math.isfinite(value) for value in fixed.values()):
        raise InputError(f"parameters {text}: fixed values must be finite numbers")
    return Box.of({name: value for name, value in entries.items() if name not in fixed}), fixed


def unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For JSON. Raises ValueError where it gives a name twice."""
    if len({name for name, _ in pairs}) < len(pairs):
        raise ValueError("a name is given twice")
    return dict(pairs)


def load_function(text: str) -> Callable:
    """MODULE:FUNCTION, the module found from the present directory on. Raises InputError."""
    module_name, _, name = text.partition(":")
    if not name or not all(part.isidentifier() for part in (*module_name.split("."), name)):
        raise InputError(f"simulation {text}: expected MODULE:FUNCTION, such as my_model:simulate for my_model.py here")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)  # which the workers inherit
    try:
        function = getattr(importlib.import_module(module_name), name)
    except Exception as error:
        raise InputError(f"simulation {text}: cannot be loaded ({type(error).__name__}: {error})") from None
    if not callable(function):
        raise InputError(f"simulation {text}: {name} is {type(function).__name__}, not a function")
    return function
