"""Ask and tell: what is known of a phase diagram, and which points to look at next. Reads no clock and writes no file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from phases.acquisition import CANDIDATES, STRATEGIES, candidates, check_strategy, choose
from phases.box import Box, on_grain, r_sequence
from phases.errors import InputError
from phases.surrogate import LEAST_WEIGHT, Surrogate, fit_labels, squared_distances

PROBES = 256


@dataclass(frozen=True)
class Point:
    """A point that is to be, or was, simulated."""

    id: int  # counts from 0 in the order of asking
    unit: tuple[float, ...]
    origin: str  # where it comes from: seeds, lhs, or a strategy
    iteration: int


@dataclass(frozen=True)
class Answer:
    """What was told of a point: a label, or why there is none."""

    label: str | None = None
    confidence: float = 1.0
    failure: str | None = None  # "TIMEOUT", "FAILED"


@dataclass(frozen=True)
class Iteration:
    """How an iteration ended."""

    number: int
    predicted: tuple[str, ...]  # labels of the probes
    changed: float | None  # fraction of the probes whose label differs from that of the iteration before
    entropy: float | None  # mean over the probes, in nats; None: no labels yet


class Explorer:
    """Ask and tell: chooses the points, learns from their labels, and knows neither the model nor who simulates it.

    All it says is a function of (box, seed, what was asked and told so far); the order of telling does not matter.
    no_phase: labels that are kept but not learnt from.
    """

    def __init__(self, box: Box, seed: int = 0, strategy: str = "balanced", target: str | None = None, no_phase: Iterable[str] = ()):
        self.box, self.seed, self.strategy, self.target = box, seed, check_strategy(strategy), target
        self.no_phase = frozenset(no_phase)
        self.points: list[Point] = []
        self.answers: dict[int, Answer] = {}
        self.iterations: list[Iteration] = []
        self._known: set[tuple[float, ...]] = set()
        self._surrogate: Surrogate | None = None

    @property
    def iteration(self) -> int:
        """The one now under way."""
        return len(self.iterations)

    @property
    def pending(self) -> list[Point]:
        return [point for point in self.points if point.id not in self.answers]

    @property
    def failed(self) -> list[Point]:
        return [point for point in self.points if point.id in self.answers and self.answers[point.id].failure]

    def propose(self, n: int, strategy: str | None = None) -> list[Point]:
        """The n points that are worth most now, not yet registered. Raises InputError, ExplorerError where no point is left."""
        strategy = check_strategy(strategy or self.strategy)
        if n < 1:
            raise InputError(f"{n} points asked for; ask for at least 1")
        rng = np.random.default_rng([self.seed, len(self.points)])
        taken = np.array([point.unit for point in self.points]).reshape(-1, len(self.box.names))
        if not STRATEGIES[strategy]:
            pool = on_grain(rng.random((2 * n + 100, len(self.box.names))))
            free = squared_distances(pool, taken, 1.0).min(axis=1, initial=np.inf) > 1e-10
            chosen = pool[free][:n]
        elif not self.has_labels:
            pool = r_sequence(CANDIDATES + 10 * n, rng.random(len(self.box.names)))
            chosen = pool[choose([np.ones(len(pool))] * n, pool, taken, 1.0)]
        else:
            chosen = self._most_worth(n, strategy, taken, rng)
        return self._new_points(chosen.tolist(), strategy)

    def _most_worth(self, n, strategy, taken, rng):
        """Unit points (n, d), each kind of worth that makes up the strategy in its turn."""
        surrogate = self.surrogate()
        pool = candidates(surrogate.points, self._sorted_labels(), rng, n)
        p = surrogate.probabilities(pool)
        target = surrogate.labels.index(self.target) if self.target in surrogate.labels else None
        worths = [worth(p, target) for worth in STRATEGIES[strategy]]
        turns = [worths[(len(self.points) + k) % len(worths)] for k in range(n)]
        return pool[choose(turns, pool, taken, surrogate.scales)]

    def new_points(self, units: Iterable[Sequence[float]], origin: str) -> list[Point]:
        """Points of the caller's choice, without those that are known already; not yet registered."""
        fresh = dict.fromkeys(tuple(unit) for unit in units)
        return self._new_points([unit for unit in fresh if unit not in self._known], origin)

    def _new_points(self, units, origin):
        return [Point(len(self.points) + k, tuple(unit), origin, self.iteration) for k, unit in enumerate(units)]

    def register(self, points: Iterable[Point]) -> None:
        """Make points pending. Raises InputError if they do not continue the ids, or one is known already."""
        for point in points:
            if point.id != len(self.points) or point.unit in self._known:
                raise InputError(f"point {point.id} is known already, or out of turn: {len(self.points)} points are registered")
            self.points.append(point)
            self._known.add(point.unit)

    def ask(self, n: int, strategy: str | None = None) -> list[Point]:
        """n new points, pending from now on."""
        points = self.propose(n, strategy)
        self.register(points)
        return points

    def tell(self, id: int, label: str | None = None, confidence: float = 1.0, failure: str | None = None) -> None:
        """What came of a point: a label with its confidence in [0, 1], or a failure. Telling the same again changes nothing.

        Raises InputError for a point that was never asked for, and for a label that contradicts an earlier one.
        """
        if not 0 <= id < len(self.points):
            raise InputError(f"point {id} was never asked for; {len(self.points)} points are known")
        if (label is None) == (failure is None):
            raise InputError(f"point {id}: tell either a label or a failure")
        before = self.answers.get(id, Answer())
        if before.label is not None and label != before.label:
            raise InputError(f"point {id} has the label {before.label} already; {label or failure} contradicts it")
        self.answers[id] = Answer(label, float(confidence), failure)
        self._surrogate = None

    def retry(self, ids: Iterable[int]) -> None:
        """Failed points become pending again."""
        for id in ids:
            if self.answers.get(id, Answer()).failure:
                del self.answers[id]

    @property
    def has_labels(self) -> bool:
        """Whether there is anything to learn from."""
        return bool(self._training())

    def _training(self):
        """(point, answer) of all points to learn from, sorted as in the surrogate."""
        pairs = [(self.points[id], answer) for id, answer in self.answers.items() if answer.label and answer.label not in self.no_phase]
        return sorted(pairs, key=lambda pair: pair[0].unit[::-1])

    def _sorted_labels(self):
        return np.array([answer.label for _, answer in self._training()])

    def surrogate(self) -> Surrogate:
        """Fitted to all labels told so far. Raises InputError if there are none."""
        if self._surrogate is None:
            pairs = self._training()
            if not pairs:
                raise InputError("no point has a label yet; simulate some first")
            weights = np.clip([answer.confidence for _, answer in pairs], LEAST_WEIGHT, 1)
            self._surrogate = fit_labels(np.array([point.unit for point, _ in pairs]), self._sorted_labels(), weights)
        return self._surrogate

    def probes(self) -> np.ndarray:
        return r_sequence(PROBES, np.full(len(self.box.names), 0.5))

    def summarise(self) -> Iteration:
        """How the present iteration ends."""
        if not self.has_labels:
            return Iteration(self.iteration, (), None, None)
        surrogate = self.surrogate()
        p = surrogate.probabilities(self.probes())
        predicted = tuple(surrogate.labels[c] for c in p.argmax(axis=1))
        before = self.iterations[-1].predicted if self.iterations else ()
        changed = float(np.mean([a != b for a, b in zip(predicted, before)])) if before else None
        return Iteration(self.iteration, predicted, changed, float(-(p * np.log(p)).sum(axis=1).mean()))

    def should_stop(self, change_below: float | None = None, entropy_below: float | None = None) -> str:
        """Why to stop after the last iteration, or ''. change_below applies to the last two iterations."""
        changes = [iteration.changed for iteration in self.iterations[-2:] if iteration.changed is not None]
        if change_below is not None and len(changes) == 2 and max(changes) < change_below:
            return f"fewer than {change_below:.2%} of the predicted labels changed in each of two iterations"
        entropy = self.iterations[-1].entropy if self.iterations else None
        if entropy_below is not None and entropy is not None and entropy < entropy_below:
            return f"the mean entropy {entropy:.3f} is below {entropy_below:g}"
        return ""

    def importances(self) -> dict[str, float]:
        """How much each parameter matters: mean change of the probabilities when it alone is drawn anew, relative to their sum."""
        surrogate, probes = self.surrogate(), self.probes()
        p, other = surrogate.probabilities(probes), np.random.default_rng(0).permutation(probes)
        effects = []
        for j in range(len(self.box.names)):
            changed = probes.copy()
            changed[:, j] = other[:, j]
            effects.append(0.5 * np.abs(surrogate.probabilities(changed) - p).sum(axis=1).mean())
        total = sum(effects)
        return {name: float(effect / total) if total > 0 else 0.0 for name, effect in zip(self.box.names, effects)}
