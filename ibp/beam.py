"""Beam search: several ways to a rule followed at once.

A `Beam` says how; `beam_search` is the search itself, `search_path` makes a rule of the best way that it finds.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from ibp.discovery import RuleFinder
from ibp.elimination import CANDIDATES
from ibp.helpers import kept_context
from ibp.identities import Equations
from ibp.policy import Policy, describe_moves
from ibp.positions import Position, SearchGround
from ibp.rules import Rule
from ibp.weights import load_policy

SCORED_TOGETHER = 8  # positions: some thousand entries, so that memory stays small
BEAM_BRANCHES = 6  # actions of a position that are followed
BEAM_STEPS = 30  # of a search; where it found nothing by then, one of a wider beam is the shorter way:
BEAM_WIDENINGS = ((1, BEAM_STEPS), (4, 2 * BEAM_STEPS), (16, 2 * BEAM_STEPS))  # so many times the width, and how many steps


@dataclass(frozen=True)
class Beam:
    """order: how positions are sorted; reuse: a path found is a rule, tried on other integrals; policy: what `load_policy` takes."""

    width: int = 20
    max_steps: int = 10**15
    order: str = "policy"
    reuse: bool = True
    policy: bytes | str = "fixed"


BEAM_ORDERS: dict[str, Callable[[Position], tuple]] = {
    "weight": lambda position: (position.heaviest, len(position.open), -position.score, position.actions),
    "size": lambda position: (len(position.open), position.heaviest, -position.score, position.actions),
    "policy": lambda position: (-position.score, position.heaviest, position.actions),
}


def beam_search(beam: Beam, children: Callable[[list[Position]], list[Position]]) -> tuple[list[Position], int]:
    """Search for identities that express the target through lighter integrals: the finished positions of one length, and the steps made.

    Each step eliminates the heaviest open integral of every position of the beam, by its most probable actions; of positions with the
    same content the most probable one is kept. children: `beam_children` of the positions.
    """
    positions, steps, seen = [Position()], 0, set()
    while positions and steps < beam.max_steps:
        steps += 1
        reached = sorted(children(positions), key=lambda child: (-child.score, child.actions))
        if finished := [child for child in reached if not child.open]:
            return finished, steps
        best: dict[tuple, Position] = {}
        for child in reached:
            content = tuple(sorted(child.open.items()))
            if content not in seen:
                best.setdefault(content, child)
        positions = sorted(best.values(), key=BEAM_ORDERS[beam.order])[: beam.width]
        seen.update(tuple(sorted(position.open.items())) for position in positions)
    return [], steps


def search_path(
    finder: RuleFinder, target: np.ndarray, equations: Equations, beam: Beam, helpers: Executor | None = None
) -> tuple[Rule | None, int]:
    """The rule that a beam search for one integral [n] finds, and the steps made. helpers: processes that share the positions of a step."""
    ground = SearchGround(finder.sector, equations, target)
    context = pickle.dumps((ground, beam.policy)) if helpers is not None else b""

    def children(positions: Sequence[Position]) -> list[Position]:
        if helpers is None:
            return beam_children(ground, load_policy(beam.policy), positions)
        parts = (positions[number :: helpers.processes] for number in range(helpers.processes))
        futures = [helpers.submit(_helped_children, context, part) for part in parts if part]
        return [child for future in futures for child in future.result()]

    finished, steps = beam_search(beam, children)
    rules = (finder.find_among(target, position.actions, equations) for position in finished[:CANDIDATES])
    found = [rule for rule in rules if rule is not None]
    return min(found, key=lambda rule: (finder.heaviest_result(rule, target, equations), rule.rows), default=None), steps


def beam_children(ground: SearchGround, policy: Policy, positions: Sequence[Position]) -> list[Position]:
    """What the most probable actions of each position lead to."""
    children = []
    for begin in range(0, len(positions), SCORED_TOGETHER):
        part = positions[begin : begin + SCORED_TOGETHER]
        moves = [ground.moves(position) for position in part]
        features = [describe_moves(ground, position, some) for position, some in zip(part, moves)]
        for position, some, scores in zip(part, moves, policy.scores(features)):
            for place in np.argsort(-scores, kind="stable")[:BEAM_BRANCHES]:
                action = (int(some.operator[place]), tuple((some.seed[place] - ground.target).tolist()))
                if child := ground.after(position, action, float(scores[place])):
                    children.append(child)
    return children


def _helped_children(context: bytes, positions: Sequence[Position]) -> list[Position]:
    """`beam_children` in a helper process. context: pickle of (ground, what `load_policy` takes)."""
    ground, policy = kept_context(context)
    return beam_children(ground, load_policy(policy), positions)
