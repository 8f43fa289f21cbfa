"""The policy: what it sees of positions, and the scores it gives."""

import dataclasses

import numpy as np
from support_oracles import ROUNDED, SEARCHED, actions_of, ground_of, positions_on_the_way

from ibp.beam import SCORED_TOGETHER, beam_children
from ibp.identities import generic_point
from ibp.policy import Features, Policy, describe_moves
from ibp.positions import Position
from ibp.weights import load_policy


def features_differ(one, other):
    return [f.name for f in dataclasses.fields(one) if not np.array_equal(getattr(one, f.name), getattr(other, f.name))]


def test_far_from_the_border_only_relative_numbers_count():
    """Indices and point are such that no coefficient vanishes by accident."""
    here, there = (9, 18, 28, 39, 51, 64, -8), (14, 45, 8, 31, 70, 22, -11)
    grounds = [ground_of("trianglebox", target, at=generic_point) for target in (here, there)]
    rng, positions = np.random.default_rng(4), [Position()] * 2
    for _ in range(4):
        moves = [ground.moves(position) for ground, position in zip(grounds, positions)]
        actions = [actions_of(ground, some) for ground, some in zip(grounds, moves)]
        assert actions[0] == actions[1]
        described = [describe_moves(*both) for both in zip(grounds, positions, moves)]
        assert features_differ(*described) == []
        action = actions[0][rng.integers(len(actions[0]))]
        positions = [ground.after(position, action) for ground, position in zip(grounds, positions)]
    near = ground_of("trianglebox", (1, 18, 28, 39, 51, 64, -8), at=generic_point)  # else it would say nothing
    assert features_differ(describe_moves(near, Position(), near.moves(Position())), described[0])


def test_scores_do_not_depend_on_company_or_order(network):
    policy, rng = Policy(network), np.random.default_rng(0)
    parts = [part for name, target in SEARCHED for part in positions_on_the_way(name, target)]
    assert len(parts) > SCORED_TOGETHER and len({part.indices_each for part in parts}) > 3
    together = policy.scores(parts)
    backwards = policy.scores(parts[::-1])[::-1]
    for part, scores, again in zip(parts, together, backwards):
        (alone,) = policy.scores([part])
        assert scores.shape == (len(part.actions),)
        assert np.abs(alone - scores).max() < ROUNDED and np.abs(again - scores).max() < ROUNDED
        assert abs(np.exp(scores).sum() - 1) < ROUNDED
        mixed, waiting = rng.permutation(len(part.entries)), rng.permutation(len(part.open))
        n = part.indices_each
        indices = part.indices.reshape(-1, n, part.indices.shape[1])[:, rng.permutation(n)].reshape(part.indices.shape)
        (shuffled,) = policy.scores([Features(part.entries[mixed], part.action[mixed], indices, part.actions, part.open[waiting])])
        assert np.abs(shuffled - scores).max() < ROUNDED
    assert max(np.ptp(scores) for scores in together) > 100 * ROUNDED  # else it would say nothing


def test_position_without_actions_has_no_scores_and_disturbs_nobody(network):
    """At the end of a batch, alone, and in the midst."""
    policy, (some, *_) = Policy(network), positions_on_the_way("box", (2, 1, 1, 2))
    ground = ground_of("box", (2, 1, 1, 2))
    far = int(ground.sector.encode(np.array([[12, 1, 1, 2]]))[0] - ground.target_key)
    dead_end = Position((), {far: 1}, {})
    nothing = describe_moves(ground, dead_end, ground.moves(dead_end))
    assert len(nothing.actions) == 0
    (alone,) = policy.scores([some])
    for company in [nothing], [some, nothing], [nothing, some, nothing], [nothing] * 9:
        scores = policy.scores(company)
        assert [len(line) for line in scores] == [len(part.actions) for part in company]
        assert all(np.abs(line - alone).max() < ROUNDED for line in scores if len(line))
    assert beam_children(ground, policy, [dead_end]) == []


def test_without_a_network_actions_are_taken_in_order_or_shuffled():
    parts = positions_on_the_way("trianglebox", (1, 1, 1, 1, 1, 1, -2))
    for policy in Policy(), Policy(shuffled=True):
        first, second = policy.scores(parts), policy.scores(parts)
        for scores, again in zip(first, second):
            assert (scores == again).all() and abs(np.exp(scores).sum() - 1) < 1e-3
            assert sorted(np.argsort(-scores)) == list(range(len(scores)))
            assert (np.diff(scores) < 0).all() == (not policy.shuffled)
    names = ("random", "random 0", "random 1", "fixed")
    plain, zero, one, fixed = (np.concatenate(load_policy(name).scores(parts)) for name in names)
    assert (plain == zero).all() and (zero != one).any() and (zero != fixed).any() and (one != fixed).any()
