"""examples."""

import numpy as np
import pytest
from support_oracles import SEARCHED, NaivePosition, actions_of, as_integrals, equations_of, ground_of, moved, oracle_weight, sector_for

from ibp.discovery import RuleFinder
from ibp.examples import Example, _shown, follow, scramble
from ibp.policy import describe_moves
from ibp.positions import Position, SearchGround


class Recorded(SearchGround):
    """Remembers the positions that were asked for their moves, the moves, and the last position reached."""

    def __init__(self, *args):
        super().__init__(*args)
        self.asked, self.last = [], None

    def moves(self, position):
        self.asked.append((position, super().moves(position)))
        return self.asked[-1][1]

    def after(self, position, action, score=0.0):
        self.last = super().after(position, action, score)
        return self.last


def check_labels(name, ground, start, left, samples):
    """Each right action is one that is left to do, or ends the search; all that are left to do and can be done are right."""
    target, remaining = tuple(ground.target.tolist()), iter(samples)
    for position, moves in ground.asked:
        actions, todo = actions_of(ground, moves), [action for action in left if action not in position.actions]
        naive = NaivePosition(name, target, start)
        for action in position.actions:
            naive = naive.after(*moved(target, action))
        if all(action in todo for action in actions):
            continue  # nothing to choose
        sample = next(remaining)
        assert len(sample.right) == len(actions) and sample.right.any()
        for action, right in zip(actions, sample.right):
            ends = right and action not in todo and not naive.after(*moved(target, action)).open
            assert right == (action in todo or ends)
    assert next(remaining, None) is None


@pytest.mark.parametrize(("name", "target"), SEARCHED)
def test_rule_can_be_followed_to_its_end_in_any_order(name, target):
    finder = RuleFinder(sector_for(name, target), equations_of(name))
    rule = next(rule for level in range(6) if (rule := finder.find(np.array(target), level, finder.structure)))
    for seed in range(4):
        ground = ground_of(name, target, Recorded)
        samples = follow(ground, Position(), list(rule.rows), np.random.default_rng(seed), None)
        assert not ground.last.open and set(ground.last.actions) == set(rule.rows)
        check_labels(name, ground, None, rule.rows, samples)


@pytest.mark.parametrize(("name", "base"), [("box", (2, 1, 1, 2)), ("sunrise", (1, 1, 1, -1, -1)), ("trianglebox", (1, 0, 1, 1, 1, 1, -1))])
def test_scramble_is_undone_by_the_identities_that_made_it(name, base):
    finder, rng, undone = RuleFinder(sector_for(name, base), equations_of(name)), np.random.default_rng(5), 0
    for _ in range(12):
        if (scrambled := scramble(finder, np.array(base), rng)) is None:
            continue
        ground, position, left = scrambled
        target = tuple(ground.target.tolist())
        start = as_integrals(ground, position.open)
        assert min(start, key=oracle_weight) == target and oracle_weight(target) > oracle_weight(base)
        naive = NaivePosition(name, target)
        naive.rows = [moved(target, action) for action in left]
        assert naive.follows_from_rows(start) and len(set(left)) == len(left)
        recorded = Recorded(ground.sector, ground.equations, ground.target)
        samples = follow(recorded, position, left, rng, None)
        check_labels(name, recorded, start, left, samples)
        undone += recorded.last is not None and not recorded.last.open
    assert undone > 3


def test_shown_actions_are_the_right_ones_and_some_others():
    ground = ground_of("trianglebox", (1, 1, 1, 1, 1, 1, -2))
    position = ground.after(Position(), actions_of(ground, ground.moves(Position()))[0])
    features = describe_moves(ground, position, ground.moves(position))
    count, rng = len(features.actions), np.random.default_rng(0)
    assert count > 20
    right = np.isin(np.arange(count), [1, count - 1])
    whole = Example(features, right)
    assert _shown(whole, None, rng) is whole and _shown(whole, count, rng) is whole
    shown = _shown(whole, 9, rng)
    assert len(shown.right) == len(shown.features.actions) == 9 and shown.right.sum() == 2

    def by_action(features):
        n = features.indices_each
        return [
            (line.tolist(), features.indices[n * i : n * i + n].tolist(), features.entries[features.action == i].tolist())
            for i, line in enumerate(features.actions)
        ]

    every, some = by_action(features), by_action(shown.features)
    assert all(part in every for part in some)
    assert [part for part, good in zip(some, shown.right) if good] == [every[1], every[-1]]
