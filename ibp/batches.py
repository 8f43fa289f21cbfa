"""One-step tasks cut to size: how many integrals make one, and what its processes are given to know.

`BatchPlan` learns what integrals cost; `SharedRules` keeps the file from which tasks read the rules that are known so far.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from executors.tasks import Shared
from ibp.knowledge import pack_sector
from ibp.run_state import RunState
from ibp.steps import LARGEST_BATCH

KNOWLEDGE_INTERVAL_S = 2.0  # new rules reach new tasks that soon
FIRST_JOBS = 8  # until so many have come back, jobs that go on by themselves are short, so that work to share appears early


class BatchPlan:
    """How many integrals make a task: a fixed number, or what takes job_seconds by the costs learned so far."""

    def __init__(self, fixed: int | None, job_seconds: float):
        self.fixed, self.job_seconds = fixed, job_seconds
        self.jobs = 0
        self.cost: dict[int, tuple[int, float]] = {}

    def note(self, bits: int, integrals: int, seconds: float) -> None:
        """A task that mostly worked in this sector came back."""
        count, total = self.cost.get(bits, (0, 0.0))
        self.cost[bits] = (count + integrals, total + seconds)
        self.jobs += 1

    def size(self, bits: int) -> int | None:
        """Integrals in a full batch; None while nothing is known."""
        if self.fixed is not None:
            return self.fixed
        count, seconds = self.cost.get(bits) or tuple(map(sum, zip(*self.cost.values()))) or (0, 0.0)
        return min(max(int(self.job_seconds * count / max(seconds, 1e-3)), 1), LARGEST_BATCH) if count else None

    @property
    def exploring_seconds(self) -> float:
        return self.job_seconds if self.jobs >= FIRST_JOBS else self.job_seconds / 6


@dataclass(frozen=True, eq=False)
class Batch:
    """A submitted task: its integrals by sector, the sectors that no other task goes on into meanwhile, and the rules it was given."""

    keys: dict[int, np.ndarray]
    claims: tuple[int, ...]
    rules: Shared


class SharedRules:
    """The file with all rules and stored one-step results, renewed now and then; an old one goes with the last task that reads it."""

    def __init__(self, state: RunState, sectors: Iterable[int], directory: Path):
        self._state, self._sectors, self._directory = state, sectors, directory
        self._newest: Shared | None = None
        self._rules_in_it, self._since = 0, -math.inf
        self._users: Counter[Shared] = Counter()

    def newest(self) -> Shared:
        """Raises OSError."""
        state = self._state
        due = self._rules_in_it != state.statistics["rules"] and time.monotonic() > self._since + KNOWLEDGE_INTERVAL_S
        if self._newest is None or due:
            packed = {}
            for bits in self._sectors if not state.problem.corners_stay else ():
                known = state.known.sector(bits)
                rules = pack_sector(known, state.problem.family.n) if known else None
                packed[bits] = (rules, state.known.knowledge.steps.get(bits, {}))
            old, self._newest = self._newest, Shared.write(packed, self._directory)
            self._since, self._rules_in_it = time.monotonic(), state.statistics["rules"]
            self._drop_unused(old)
        return self._newest

    def use(self, rules: Shared) -> None:
        self._users[rules] += 1

    def release(self, rules: Shared) -> None:
        self._users[rules] -= 1
        self._drop_unused(rules)

    def _drop_unused(self, rules: Shared | None) -> None:
        if rules is not None and rules != self._newest and not self._users[rules]:
            Path(rules.path).unlink(missing_ok=True)
