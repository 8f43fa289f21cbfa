"""The other way to a rule: identities taken one by one, each eliminating the heaviest integral left.

A `SearchGround` has the identities around a target; in a `Position` it says which `Moves` there are, and what comes `after` one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ibp.elimination import solve_for, substitute
from ibp.families import Expression
from ibp.identities import Equations
from ibp.rules import Action
from ibp.sectors import Sector
from ibp.tables import is_member, run_numbers

BEAM_REACH = 3  # seeds of a beam search are at most so far from the target in one index,
BEAM_NORM = 6  # and in all together
StepPath = tuple[tuple[Action, ...], Expression]  # what a search took, and what the target is by it


@dataclass(frozen=True, eq=False)
class Position:
    """Where a search for a one-step reduction stands: the identities used, and what the target is modulo them.

    Keys are relative to the target's, and what is lighter than the target is left out. open: {key: value} with target = sum of value *
    I[key] + lighter; {0: 1} at the start, empty at the end. solved: {key: {key: value}}, what each eliminated integral is, free of all
    eliminated ones. score: sum of the logarithms of the probabilities that the policy gave to the actions.
    """

    actions: tuple[Action, ...] = ()
    open: dict[int, int] = field(default_factory=lambda: {0: 1})
    solved: dict[int, dict[int, int]] = field(default_factory=dict)
    score: float = 0.0

    @property
    def heaviest(self) -> int:
        """The integral that the next action eliminates."""
        return max(self.open)


@dataclass(frozen=True, eq=False)
class Moves:
    """Actions that may be taken in a position, and what their identities contain.

    operator [C], seed [C, n]. Entry e is a term with a non-zero coefficient: of action `action[e]`, with `key[e]` relative to the
    target where it stays in the sector (`own[e]`), changes (dr[e], ds[e]) relative to the target. Entries of an action are adjacent.
    """

    operator: np.ndarray
    seed: np.ndarray
    action: np.ndarray
    key: np.ndarray
    own: np.ndarray
    dr: np.ndarray
    ds: np.ndarray

    def only(self, chosen: np.ndarray) -> Moves:
        """Those of the actions that are chosen, bool [C]."""
        kept = chosen[self.action]
        action = (np.cumsum(chosen) - 1)[self.action[kept]]
        entries = (getattr(self, name)[kept] for name in ("key", "own", "dr", "ds"))
        return Moves(self.operator[chosen], self.seed[chosen], action, *entries)


class SearchGround:
    """The identities around one target of a sector at one point: which actions there are, and what they do to a position."""

    def __init__(self, sector: Sector, equations: Equations, target: np.ndarray):
        self.sector, self.equations, self.target = sector, equations, target
        self.target_key = sector.encode(target[None])[0]
        self.key_shift = equations.shift @ sector.weights
        self.first = np.searchsorted(equations.operator, np.arange(equations.count + 1))
        self.dr_shift, self.ds_shift = sector.r_and_s(equations.shift)
        self.rows: dict[Action, dict[int, int]] = {}

    def moves(self, position: Position) -> Moves:
        """All actions whose identity, after substitution of what is solved, contains the heaviest open integral.

        Such an identity contains that integral itself or a solved one; seeds are in the sector and not far from the target.
        """
        sector, shift = self.sector, self.equations.shift
        pivots = np.array([position.heaviest, *position.solved], sector.layout.dtype)
        seed = (sector.decode(pivots + self.target_key)[:, None] - shift).reshape(-1, sector.n)
        term = np.tile(np.arange(len(shift)), len(pivots))
        distance = np.abs(seed - self.target)
        near = (distance.max(1) <= BEAM_REACH) & (distance.sum(1) <= BEAM_NORM) & sector.contains(seed)
        seed, term = seed[near], term[near]
        present = self._values(term, seed) != 0
        seed, operator = seed[present], self.equations.operator[term[present]]
        place = ((seed - self.target) @ sector.weights) * self.equations.count + operator
        _, once = np.unique(place, return_index=True)
        moves, value = self._identities(operator[once], seed[once])
        factors = {position.heaviest: 1} | {key: line.get(position.heaviest, 0) for key, line in position.solved.items()}
        known = np.sort(pivots)
        factor = np.array([factors[key] for key in known.tolist()])
        found = is_member(moves.key, known) & moves.own
        part = factor[np.searchsorted(known, moves.key[found])] * value[found] % self.equations.prime
        total = np.zeros(len(moves.operator), np.int64)
        np.add.at(total, moves.action[found], part)
        return moves.only(total % self.equations.prime != 0)

    def _values(self, term: np.ndarray, seed: np.ndarray) -> np.ndarray:
        coefficient = self.equations.coefficient[term]
        return (coefficient[:, 0] + (coefficient[:, 1:] * seed).sum(1)) % self.equations.prime

    def _identities(self, operator: np.ndarray, seed: np.ndarray) -> tuple[Moves, np.ndarray]:
        """The identities of these operators [C] at these seeds [C, n], and the values of their entries."""
        size = self.first[operator + 1] - self.first[operator]
        action, term = np.repeat(np.arange(len(operator)), size), run_numbers(self.first[operator], size)
        value = self._values(term, seed[action])
        action, term, value = action[value != 0], term[value != 0], value[value != 0]
        dr, ds = self.sector.r_and_s(seed - self.target)
        key = ((seed - self.target) @ self.sector.weights)[action] + self.key_shift[term]
        own = self.sector.contains(seed[action] + self.equations.shift[term])
        return Moves(operator, seed, action, key, own, dr[action] + self.dr_shift[term], ds[action] + self.ds_shift[term]), value

    def row(self, action: Action) -> dict[int, int]:
        """The identity of an action down to the target: {key: value}; not to be changed."""
        if action not in self.rows:
            operator, change = action
            moves, value = self._identities(np.array([operator]), (self.target + np.array(change))[None])
            keep = moves.own & (moves.key >= 0)
            self.rows[action] = dict(zip(moves.key[keep].tolist(), value[keep].tolist()))
        return self.rows[action]

    def after(self, position: Position, action: Action, score: float = 0.0) -> Position | None:
        """The position after an action; None if its identity does not contain what is to be eliminated."""
        p, heaviest = self.equations.prime, position.heaviest
        row = substitute(self.row(action), position.solved, p)
        if heaviest not in row:
            return None
        solved = dict(position.solved)
        solve_for(heaviest, row, solved, p)
        return Position((*position.actions, action), substitute(position.open, solved, p), solved, position.score + score)
