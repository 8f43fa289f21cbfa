"""What policy and guide learn by: their losses on examples, one pass of the guide, and how both are measured on what is held out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from ibp.guide import GUIDE_SHAPES, GUIDED_LEVEL, GUIDED_SHARE, NEAR, RowFeatures, describe_rows, guide_rows, guide_scores, inside_rows
from ibp.policy import action_scores
from ibp.rules import NEIGHBOURHOODS, border_distance
from ibp.training_data import Lesson, TrainingSet

IMPOSSIBLE = -1e9  # score of what cannot be taken
GUIDE_TARGETS = 24  # of a level of a sector, trained on together


def _by_position(scores: Any, batch: dict[str, Any]) -> Any:
    """Scores [2, positions, actions] of all actions, and of the right ones; what is not there is IMPOSSIBLE."""
    import torch

    owner = batch["actions_owner"]
    place = torch.arange(len(owner), device=owner.device) - torch.searchsorted(owner, owner)
    table = scores.new_full((2, int(owner[-1]) + 1, int(place.max()) + 1), IMPOSSIBLE)
    table[0, owner, place] = scores
    table[1, owner, place] = torch.where(batch["right"], scores, scores.new_tensor(IMPOSSIBLE))
    return table


def position_losses(scores: Any, batch: dict[str, Any]) -> Any:
    """Minus the logarithm of the probability of all right actions together, for each position."""
    total, right = _by_position(scores, batch).logsumexp(2)
    return total - right


def right_ranks(scores: Any, batch: dict[str, Any]) -> Any:
    """How many actions of each position the search would take before the first right one: rounded as its scores are, ties in order."""
    table, right = _by_position(scores.double(), batch)
    rounded = (table - table.logsumexp(1, keepdim=True)).round(decimals=4)
    best = rounded.masked_fill(right == IMPOSSIBLE, -math.inf).amax(1, keepdim=True)
    earlier = ((rounded == best) & (right != IMPOSSIBLE)).cumsum(1) == 0
    return ((rounded > best) | ((rounded == best) & earlier)).sum(1)


def measure_policy(network: Any, data: TrainingSet, device: str) -> dict[str, float]:
    """Loss, top-1 and top-5 on the held-out trajectories, where every action competes."""
    import torch

    losses, ranks = [], []
    with torch.inference_mode():
        for part in np.array_split(data.held_out, max(len(data.held_out) // 64, 1)):
            batch = {name: tensor.to(device) for name, tensor in data.batch(part).items()}
            scores = action_scores(network, batch)
            losses.append(position_losses(scores, batch))
            ranks.append(right_ranks(scores, batch))
    rank = torch.cat(ranks).cpu().numpy()
    scrambled = data.arrays["scrambled"][data.held_out]

    def share(values: np.ndarray) -> float:
        return float(values.mean()) if len(values) else math.nan

    return {
        "held_out_loss": float(torch.cat(losses).mean()),
        "top1": share(rank < 1),
        "top5": share(rank < 5),
        "top1_eliminations": share(rank[~scrambled] < 1),
        "top1_scrambles": share(rank[scrambled] < 1),
    }


def first_guide(seed: int) -> dict[str, Any]:
    """Parameters of a guide that has learned nothing."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in GUIDE_SHAPES.items():
        scale = 0.0 if name.endswith("bias") else shape[0] ** -0.5 if len(shape) == 2 else 0.1
        weights[name] = torch.nn.Parameter(scale * torch.randn(shape, generator=generator))
    return weights


def row_scores(weights: dict[str, Any], lesson: Lesson, some: np.ndarray) -> tuple[Any, Any, Any]:
    """Tensors [M, S * O] for some of the targets: scores of the rows, which of them are right, and which are possible."""
    import torch

    seeds = NEIGHBOURHOODS[lesson.level].seeds(lesson.sector)
    features = describe_rows(lesson.sector, lesson.equations, seeds, lesson.level)
    features = RowFeatures(*(torch.from_numpy(np.ascontiguousarray(getattr(features, f.name))) for f in fields(RowFeatures)))
    possible = inside_rows(lesson.sector, seeds, lesson.targets[some], lesson.equations.count)
    right = np.zeros_like(possible)
    for line, number in enumerate(some):
        right[line, lesson.rows[number]] = True
    distance = torch.from_numpy(border_distance(lesson.targets[some], lesson.sector.positive, NEAR - 1))
    scores = guide_scores(weights, features, guide_rows(weights, features), distance)
    return scores, torch.from_numpy(right), torch.from_numpy(possible)


def guide_loss(weights: dict[str, Any], lesson: Lesson, some: np.ndarray) -> Any:
    """How far wrong rows come before each of the right ones: mean of log(1 + sum over wrong ones of exp(score - that of the right one))."""
    import torch

    scores, right, possible = row_scores(weights, lesson, some)
    wrong = scores.masked_fill(right | ~possible, IMPOSSIBLE).logsumexp(1)
    return torch.nn.functional.softplus(wrong[:, None] - scores)[right].mean()


def train_guide(weights: dict[str, Any], optimizer: Any, lessons: Sequence[Lesson], rng: np.random.Generator) -> bool:
    """One pass; False where the loss is not a number any more."""
    for number in rng.permutation(len(lessons)):
        some = np.flatnonzero(~lessons[number].held_out)
        if len(some):
            loss = guide_loss(weights, lessons[number], rng.permutation(some)[:GUIDE_TARGETS])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if not math.isfinite(float(loss.detach())):
                return False
    return True


def measure_guide(weights: dict[str, Any], lessons: Sequence[Lesson]) -> float:
    """Share of the held-out rules of the guided level all of whose rows are among those that the guide would choose."""
    import torch

    within = []
    with torch.inference_mode():
        for lesson in lessons:
            some = np.flatnonzero(lesson.held_out)
            if len(some) and lesson.level == GUIDED_LEVEL:
                scores, right, possible = row_scores(weights, lesson, some)
                scores = scores.masked_fill(~possible, -math.inf)
                last = scores.masked_fill(~right, math.inf).amin(1, keepdim=True)
                within += ((scores > last).sum(1) < (possible.sum(1) * GUIDED_SHARE).long().clip(1)).tolist()
    return float(np.mean(within)) if within else math.nan
