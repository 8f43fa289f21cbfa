"""Positions and moves, against dictionaries of integrals."""

import dataclasses
import itertools

import numpy as np
import pytest
from support import bits_of, combine, patch_rooms
from support_oracles import SEARCHED, NaivePosition, actions_of, as_integrals, ground_of, moved, oracle_weight, raw_identity, raw_operators

from ibp.families import BUILT_IN_FAMILIES
from ibp.policy import describe_moves
from ibp.positions import Position
from ibp.training_data import sector_samples


@pytest.mark.parametrize(("name", "target"), SEARCHED)
def test_positions_after_random_actions_are_what_the_identities_say(name, target):
    rng, ended_early = np.random.default_rng(1), 0
    for _ in range(4):
        ground, position, naive = ground_of(name, target), Position(), NaivePosition(name, target)
        for _ in range(7):
            actions = actions_of(ground, ground.moves(position))
            if not actions:
                break
            action = actions[rng.integers(len(actions))]
            position, naive = ground.after(position, action), naive.after(*moved(target, action))
            assert position.actions[-1] == action
            open_now = as_integrals(ground, position.open)
            assert naive.follows_from_rows(combine((1, {target: 1}), (-1, open_now)))
            assert (not open_now) == naive.follows_from_rows({target: 1})
            solved = {as_integrals(ground, {k: 1}).popitem()[0]: as_integrals(ground, line) for k, line in position.solved.items()}
            assert len(solved) == len(position.actions)
            assert all(naive.follows_from_rows(combine((1, {pivot: 1}), (-1, line))) for pivot, line in solved.items())
            assert not any(term in solved for line in (open_now, *solved.values()) for term in line)
            assert (open_now, solved) == (naive.open, naive.lines)
            if not open_now:
                ended_early += 1
                break
            assert position.heaviest == max(position.open) and position.heaviest >= 0
    assert len(position.actions) > 1 or ended_early


def test_positions_do_not_depend_on_how_integrals_are_packed(monkeypatch):
    """Where keys are Python integers everything is as it is where they are int64, training samples included."""
    name, target = "trianglebox", (1, 1, 1, 1, 1, 1, -2)

    def walk():
        rng, ground, position, seen = np.random.default_rng(3), ground_of(name, target), Position(), []
        for _ in range(4):
            moves = ground.moves(position)
            described = describe_moves(ground, position, moves)
            seen.append((actions_of(ground, moves), *(getattr(described, f.name).tolist() for f in dataclasses.fields(described))))
            position = ground.after(position, seen[-1][0][rng.integers(len(moves.operator))])
            seen.append([as_integrals(ground, position.open), *(as_integrals(ground, line) for line in position.solved.values())])
        samples = sector_samples(BUILT_IN_FAMILIES["bubble"], 3, 12, 0)
        return ground.sector.layout.dtype, seen, {key: array.tolist() for key, array in samples.items()}

    plain = walk()
    patch_rooms(monkeypatch, "ibp", "KEY_BITS", 8)
    python_integers = walk()
    assert (plain[0], python_integers[0]) == (np.int64, object) and plain[1:] == python_integers[1:]


@pytest.mark.parametrize(("name", "target", "reach", "norm"), [
    ("bubble", (3, 2), 3, 6), ("bubble", (4, -2), 3, 6), ("box", (2, 1, 1, 2), 3, 4), ("box", (2, 0, 1, -1), 2, 4),
    ("sunrise", (2, 1, 1, -1, -1), 2, 3), ("trianglebox", (1, 1, 1, 1, 1, 1, -1), 2, 3), ("doublebox", (1, 0, 1, 1, 1, 0, 1, -1, 0), 1, 2),
])  # fmt: skip
def test_moves_are_all_identities_with_the_heaviest_open_integral(name, target, reach, norm, monkeypatch):
    patch_rooms(monkeypatch, "ibp", "BEAM_REACH", reach)
    patch_rooms(monkeypatch, "ibp", "BEAM_NORM", norm)
    signs = [change for change in itertools.product(range(-reach, reach + 1), repeat=len(target)) if sum(map(abs, change)) <= norm]
    seeds = [seed for change in signs if bits_of(seed := tuple(map(int.__add__, target, change))) == bits_of(target)]
    every = [(operator, seed) for seed in seeds for operator in range(len(raw_operators(name)))]
    rng, ground, position, naive = np.random.default_rng(2), ground_of(name, target), Position(), NaivePosition(name, target)
    for step in range(3):
        heaviest = max(naive.open, key=oracle_weight)
        expected = {action for action in every if heaviest in naive.reduced(naive.row(*action))}
        moves = ground.moves(position)
        actions = actions_of(ground, moves)
        found = [moved(target, action) for action in actions]
        assert set(found) == expected and len(found) == len(expected)
        for number, (operator, seed) in enumerate(found):
            entries = moves.action == number
            raw = raw_identity(name, operator, seed)
            assert entries.sum() == len(raw) and moves.own[entries].sum() == sum(bits_of(t) == bits_of(target) for t in raw)
            own = [as_integrals(ground, {key: 1}).popitem()[0] for key in moves.key[entries & moves.own].tolist()]
            assert sorted(own) == sorted(t for t in raw if bits_of(t) == bits_of(target))
        if not found:
            assert step
            break
        action = actions[rng.integers(len(actions))]
        position, naive = ground.after(position, action), naive.after(*moved(target, action))
        if not naive.open:
            break


def test_action_that_eliminates_nothing_is_no_action():
    ground = ground_of("trianglebox", (1, 1, 1, 1, 1, 1, -1))
    (first, *_), start = actions_of(ground, ground.moves(Position())), Position()
    assert ground.after(ground.after(start, first), first) is None
    assert ground.after(start, (0, (1, 1, 1, 1, 1, 1, -3))) is None
    assert start.open == {0: 1} and not start.solved
