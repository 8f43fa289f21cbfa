"""Examples: what is right in them; their file: the same for the same seed, what it holds, and what is refused."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from support import Touches, patch_rooms
from support_learning import BAD_BYTES, guide_ground
from support_oracles import (
    ROUNDED,
    SEARCHED,
    NaivePosition,
    actions_of,
    as_integrals,
    equations_of,
    ground_of,
    moved,
    oracle_weight,
    positions_on_the_way,
    sector_for,
)

import ibp.training_data
from executors.base import InlineExecutor
from ibp.console import Reporter
from ibp.discovery import RuleFinder
from ibp.errors import PolicyRefused
from ibp.families import BUILT_IN_FAMILIES
from ibp.policy import INPUTS, Policy, action_scores, describe_moves
from ibp.positions import Position, SearchGround
from ibp.rules import NEIGHBOURHOODS
from ibp.training import position_losses
from ibp.training_data import (
    Example,
    TrainingSet,
    _shown,
    follow,
    local_rule,
    make_training_data,
    pack_samples,
    scramble,
    sector_samples,
    unpack_rules,
)


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


def test_examples_are_the_same_for_the_same_seed(pool, tmp_path):
    def made(seed, executor):
        make_training_data([BUILT_IN_FAMILIES["bubble"]], 12, seed, tmp_path / "t.npz", executor, Reporter())
        return (tmp_path / "t.npz").read_bytes()

    first = made(0, InlineExecutor())
    assert made(0, pool) == first != made(1, InlineExecutor())


def test_no_target_is_both_held_out_and_trained_on(monkeypatch):
    followed, original = [], ibp.training_data.follow

    def follow(ground, position, left, rng, limit):
        followed.append((tuple(ground.target.tolist()), limit is None))
        return original(ground, position, left, rng, limit)

    patch_rooms(monkeypatch, "ibp", "follow", follow)
    for seed in 0, 1:
        data = sector_samples(BUILT_IN_FAMILIES["sunrise"], 7, 60, seed)
        assert 0 < data["held_out"].sum() < len(data["held_out"]) / 3
        for number in set(data["trajectory"].tolist()):
            assert len(set(data["held_out"][data["trajectory"] == number].tolist())) == 1
    held, shown = ({target for target, out in followed if out == wanted} for wanted in (True, False))
    assert held and shown and not held & shown
    assert len(followed) > len(held) + len(shown)  # targets recur, so it says something


def test_batches_are_what_the_search_sees(examples, network):
    """Scores of samples from the file equal those of the positions they were made of."""
    parts = positions_on_the_way("box", (2, 1, 1, 2)) + positions_on_the_way("box", (1, 2, 2, 1))
    samples = [Example(part, np.arange(len(part.actions)) == 1) for part in parts]
    data = TrainingSet(examples)
    data.arrays = pack_samples(samples)
    data.begin = {name: np.cumsum(data.arrays[f"{name}_count"]) - data.arrays[f"{name}_count"] for name in INPUTS}
    order = np.array([2, 0, 1])
    batch = data.batch(order)
    scores = action_scores(network, batch)
    losses = position_losses(scores, batch).detach().numpy()
    expected = [-Policy(network).scores([parts[number]])[0][1] for number in order]
    assert np.abs(losses - expected).max() < ROUNDED


def test_lessons_are_the_rules_that_were_found(lessons):
    for lesson in unpack_rules(lessons):
        seeds = NEIGHBOURHOODS[lesson.level].seeds(lesson.sector)
        for target, rows in zip(lesson.targets[:4], lesson.rows):
            found = local_rule(guide_ground("trianglebox", lesson.sector.bits), target)
            used = {(int(row) % lesson.equations.count, tuple(seeds[row // lesson.equations.count].tolist())) for row in rows}
            assert used == set(found.rows) and found.level == lesson.level


@pytest.mark.parametrize("name", ["rule_target", "rule_rows", "ground"])
def test_lessons_that_do_not_fit_are_refused(lessons, name):
    damaged = lessons | {name: lessons[name].astype(np.int64) * 0 + 10**6}
    with pytest.raises((ValueError, IndexError)):
        unpack_rules(damaged)


def arrays_with(**changes):
    """Training data in which arrays were changed: by a function, or left out by None."""

    def change(arrays):
        return {name: changes.get(name, lambda array: array)(array) for name, array in arrays.items() if changes.get(name, 1) is not None}

    return change


def header_with(**changes):
    return arrays_with(header=lambda array: np.array(json.dumps(json.loads(str(array)) | changes)))


BAD_EXAMPLES = {
    "no held_out": arrays_with(held_out=None),
    "no scrambled": arrays_with(scrambled=None),
    "no header": arrays_with(header=None),
    "held_out numbers": arrays_with(held_out=lambda a: a.astype(int)),
    "held_out short": arrays_with(held_out=lambda a: a[:-1]),
    "all held out": arrays_with(held_out=lambda a: a | True),
    "scrambled short": arrays_with(scrambled=lambda a: a[:3]),
    "owners too large": arrays_with(action=lambda a: a + np.int16(100)),
    "owners negative": arrays_with(action=lambda a: a - np.int16(5)),
    "right numbers": arrays_with(right=lambda a: a.astype(np.int8)),
    "nothing right": arrays_with(right=lambda a: a & False),
    "entries floats": arrays_with(entries=lambda a: a * math.nan),
    "entries short": arrays_with(entries=lambda a: a[:-1]),
    "entries flat": arrays_with(entries=np.ravel),
    "entries a number": arrays_with(entries=lambda a: np.array(3)),
    "counts zero": arrays_with(actions_count=lambda a: a * np.int32(0)),
    "counts negative": arrays_with(entries_count=lambda a: np.concatenate([[-1, a[0] + a[1] + 1], a[2:]]).astype(np.int32)),
    "counts rolled": arrays_with(indices_count=lambda a: np.roll(a, 1)),
    "counts too many": arrays_with(open_count=lambda a: np.append(a, np.int32(0))),
    "format": header_with(format=9),
    "format of the policy": header_with(policy=9),
    "families": header_with(families=["bubble"]),
    "families' names": header_with(families={"bubble": 3}),
    "header a list": arrays_with(header=lambda a: np.array("[1]")),
    "header broken": arrays_with(header=lambda a: np.array("{")),
    "header deep": arrays_with(header=lambda a: np.array("[" * 100_000)),
    "header malicious": arrays_with(header=lambda a: np.array([Touches()], object)),
}


@pytest.mark.parametrize("what", [*BAD_EXAMPLES, *BAD_BYTES, "an array alone"])
@pytest.mark.filterwarnings("error")
def test_unusable_examples_are_refused_in_one_line(what, examples, place):
    if what in BAD_EXAMPLES:
        with np.load(examples) as file:
            np.savez("t.npz", **BAD_EXAMPLES[what](dict(file)))
    elif what in BAD_BYTES:
        Path("t.npz").write_bytes(BAD_BYTES[what](examples.read_bytes()))
    else:
        np.save("t.npy", np.arange(3))
        os.rename("t.npy", "t.npz")
    with pytest.raises(PolicyRefused, match="^training data t.npz: .{,200}$"):
        TrainingSet(Path("t.npz"))
    assert not Path("broken-out").exists()
