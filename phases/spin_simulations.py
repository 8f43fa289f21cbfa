"""Simulations of this program."""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from phases.annealer import simulate
from phases.ideal_states import ideal_state
from phases.model import Lattice


def simulate_spins(parameters: Mapping[str, float], L: int, mode: str, seed: int, fixed: Mapping[str, float] | None = None) -> Any:
    """The default simulation: module-level, so that it can be sent to other processes; its seed comes from the parameters alone."""
    couplings = dict(fixed or {}) | dict(parameters)
    return simulate(couplings, L, mode, point_seed(seed, couplings))


def point_seed(seed: int, parameters: Mapping[str, float]) -> int:
    """A seed for a point, whoever simulates it and when."""
    return zlib.crc32(json.dumps([seed, sorted(parameters.items())]).encode())


def with_fixed(parameters: Mapping[str, float], function: Callable, fixed: Mapping[str, float]) -> Any:
    return function(dict(fixed) | dict(parameters))


def spoilt_simulation(parameters: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray, float]:
    """For the benchmark: an ideal state whose name the parameter x decides; 10 % raise, 5 % hang, 5 % crash, decided by x as well."""
    x = parameters["x"]
    fate = zlib.crc32(repr(x).encode()) % 100
    if fate < 10:
        raise ValueError(f"spoilt at x = {x}")
    if fate < 15:
        time.sleep(3600)
    if fate < 20:
        os.kill(os.getpid(), 11)
    time.sleep(0.02)
    name = "zigzag" if x > 0.5 else "ferromagnet"
    return ideal_state(name, 6), np.asarray(Lattice.of(6).positions), x
