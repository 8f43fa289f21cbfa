"""Losses and measures: against plain sums and ranks, and that the guide learns."""

import math

import numpy as np
import pytest
from support_learning import guide_of

from ibp.guide import NEAR, describe_rows, guide_rows, guide_scores
from ibp.learning import first_guide, guide_loss, measure_guide, measure_policy, row_scores, train_guide
from ibp.policy import action_scores, make_network
from ibp.rules import NEIGHBOURHOODS, border_distance
from ibp.training_data import TrainingSet, unpack_rules
from ibp.weights import unpack_policy


@pytest.mark.parametrize("which", ["untrained", "trained", "indifferent"])
def test_accuracy_counts_what_the_search_would_take_before_a_right_action(which, examples, trained, network):
    """Against ranks by sorting; where all actions are equally good, they are taken in order."""
    data = TrainingSet(examples)
    if which == "trained":
        network = unpack_policy((trained / "policy.pt").read_bytes())[0]
    elif which == "indifferent":
        network = make_network(4)
        for parameter in network["score"].parameters():
            parameter.data.zero_()
    measured = measure_policy(network, data, "cpu")
    assert 20 < len(data.held_out) < 128  # one batch
    batch = data.batch(data.held_out)
    everything = action_scores(network, batch).detach().numpy().astype(float)
    ranks, losses = [], []
    for number in range(len(data.held_out)):
        own = batch["actions_owner"].numpy() == number
        right, scores = batch["right"].numpy()[own], everything[own] - np.logaddexp.reduce(everything[own])
        ranks.append(right[np.argsort(-np.round(scores, 4), kind="stable")].argmax())
        losses.append(-math.log(np.exp(scores[right]).sum()))
    ranks, scrambled = np.array(ranks), data.arrays["scrambled"][data.held_out]
    assert measured["top1"] == pytest.approx((ranks == 0).mean()) and measured["top5"] == pytest.approx((ranks < 5).mean())
    assert measured["top1_eliminations"] == pytest.approx((ranks[~scrambled] == 0).mean())
    assert measured["top1_scrambles"] == pytest.approx((ranks[scrambled] == 0).mean())
    assert measured["held_out_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert (ranks > 0).any()


def test_arrays_and_tensors_give_the_same_scores(lessons):
    torch = pytest.importorskip("torch")
    weights = guide_of(0.3)
    tensors = {name: torch.from_numpy(values) for name, values in weights.items()}
    for lesson in unpack_rules(lessons):
        some = np.arange(min(len(lesson.targets), 3))
        theirs = row_scores(tensors, lesson, some)[0].numpy()
        seeds = NEIGHBOURHOODS[lesson.level].seeds(lesson.sector)
        arrays = describe_rows(lesson.sector, lesson.equations, seeds, lesson.level)
        parts = guide_rows(weights, arrays)
        for line, target in enumerate(lesson.targets[some]):
            near = border_distance(target, lesson.sector.positive, NEAR - 1)[None]
            ours = guide_scores(weights, arrays, parts, near)[0]
            assert np.abs(ours - theirs[line]).max() < 1e-3 * np.abs(theirs[line]).max()


def test_a_guide_learns(lessons, trained_guide):
    weights, first = trained_guide
    unpacked = unpack_rules(lessons)
    assert sum(len(lesson.targets) for lesson in unpacked) == len(lessons["rule_level"])
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(values) for name, values in weights.items()}
    held_out = [lesson for lesson in unpacked if lesson.held_out.any()]
    losses = [
        np.mean([float(guide_loss(some, lesson, np.flatnonzero(lesson.held_out)).detach()) for lesson in held_out])
        for some in (tensors, first)
    ]
    assert losses[0] < 0.7 * losses[1]
    assert measure_guide(tensors, unpacked) > max(0.5, measure_guide(first, unpacked))


def test_a_loss_that_is_no_number_ends_the_training_of_the_guide(lessons):
    torch = pytest.importorskip("torch")
    weights = first_guide(0)
    with torch.no_grad():
        weights["row_score"] += math.inf
    assert not train_guide(weights, torch.optim.AdamW(weights.values()), unpack_rules(lessons), np.random.default_rng(0))
