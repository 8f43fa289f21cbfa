"""Examples for the policy: trajectories of which it is known what was left to do at each position.

A trajectory is a rule of local elimination, whose identities may be taken in any order, or a scramble: random identities that make an
integral complicated, to be undone. `follow` walks along it and notes an `Example` at each position.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ibp.discovery import RuleFinder
from ibp.elimination import substitute
from ibp.policy import Features, describe_moves
from ibp.positions import Position, SearchGround
from ibp.rules import LAST_NEIGHBOURHOOD, Action, Rule
from ibp.sectors import Sector

LONGEST_SCRAMBLE = 6


@dataclass(frozen=True, eq=False)
class Example:
    """One position of a trajectory: its features, and which actions bool [C] are right: known to be left to do, or ending it at once."""

    features: Features
    right: np.ndarray


def random_target(sector: Sector, rng: np.random.Generator) -> np.ndarray:
    """Indices [n] with a few dots and numerators; every second one is close to the corner, where reductions are long."""
    target, most = sector.positive.astype(np.int64), rng.choice((2, 5))
    for places, step in ((np.flatnonzero(sector.positive), 1), (np.flatnonzero(~sector.positive), -1)):
        if len(places):
            np.add.at(target, rng.choice(places, rng.integers(0, most + 1)), step)
    return target


def local_rule(finder: RuleFinder, target: np.ndarray) -> Rule | None:
    """What local elimination finds for a target [n], at the lowest level where there is something."""
    levels = range(LAST_NEIGHBOURHOOD + 1)
    return next((rule for level in levels if (rule := finder.find(target, level, finder.structure))), None)


def scramble(finder: RuleFinder, base: np.ndarray, rng: np.random.Generator) -> tuple[SearchGround, Position, list[Action]] | None:
    """A trajectory in reverse: random identities make an integral complicated; to be undone down to what it was.

    The lightest integral that is heavier than the first one becomes the target, so that the same position is empty at the end.
    """
    ground = SearchGround(finder.sector, finder.structure, base)
    expression, used, p = {0: 1}, [], finder.structure.prime
    for _ in range(rng.integers(1, LONGEST_SCRAMBLE + 1)):
        key = sorted(expression)[rng.integers(len(expression))]
        moves = ground.moves(Position((), {key: 1}, {}))
        if not len(moves.operator):
            return None
        place = rng.integers(len(moves.operator))
        action = (int(moves.operator[place]), tuple((moves.seed[place] - base).tolist()))
        row = ground.row(action)
        factor = -pow(row[key], -1, p) % p
        line = {other: value * factor % p for other, value in row.items() if other != key}
        expression = substitute(expression, {key: line}, p)
        used.append(action)
        if not expression:
            return None
    heavy = {key: value for key, value in expression.items() if key > 0}
    if not heavy:
        return None
    lightest = min(heavy)
    target = finder.sector.decode(np.array([lightest + ground.target_key], finder.sector.layout.dtype))[0]
    moved = [(operator, tuple((base + np.array(change) - target).tolist())) for operator, change in used]
    return (
        SearchGround(finder.sector, finder.structure, target),
        Position((), {key - lightest: value for key, value in heavy.items()}),
        list(dict.fromkeys(moved)),
    )


def follow(ground: SearchGround, position: Position, left: list[Action], rng: np.random.Generator, limit: int | None) -> list[Example]:
    """The samples of a trajectory: at each position one of the identities that are left to do and can be taken is taken.

    limit: how many actions of a position are shown. A trajectory that leaves the reach of the search ends there.
    """
    samples = []
    while position.open:
        moves = ground.moves(position)
        actions = list(zip(moves.operator.tolist(), map(tuple, (moves.seed - ground.target).tolist())))
        features = describe_moves(ground, position, moves)
        known = [place for place, action in enumerate(actions) if action in left]
        if not known:
            break
        right = np.zeros(len(actions), bool)
        right[known] = True
        new, in_open, in_solved = features.actions[:, 1], features.actions[:, 3], features.actions[:, 4]
        for place in np.flatnonzero((new == 0) & ((in_open >= min(len(position.open), 15)) | (in_solved > 0)) & ~right):
            after = ground.after(position, actions[place])
            right[place] = after is not None and not after.open
        if len(known) < len(actions):  # else there is nothing to learn
            samples.append(_shown(Example(features, right), limit, rng))
        action = actions[rng.choice(known)]
        left = [other for other in left if other != action]
        position = ground.after(position, action)
    return samples


def _shown(sample: Example, limit: int | None, rng: np.random.Generator) -> Example:
    """A sample with a random choice of its wrong actions, so that it has `limit` in all."""
    features, right = sample.features, sample.right
    if limit is None or len(right) <= limit:
        return sample
    wrong = np.flatnonzero(~right)
    keep = right.copy()
    keep[rng.choice(wrong, max(limit - int(right.sum()), 1), replace=False)] = True
    entries = keep[features.action]
    number = np.cumsum(keep) - 1
    kept = Features(
        features.entries[entries],
        number[features.action[entries]],
        features.indices[np.repeat(keep, features.indices_each)],
        features.actions[keep],
        features.open,
    )
    return Example(kept, right[keep])
