"""A small set network that says which identity to take next, and what it sees of a position.

`describe_moves` makes `Features` of a position and its moves, `make_batch` tensors of several, `Policy` scores of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ibp.positions import Moves, Position, SearchGround
from ibp.rules import border_distance
from ibp.sectors import Sector
from ibp.tables import is_member

INPUTS = {"entries": 14, "indices": 7, "actions": 8, "open": 6}  # numbers that describe each of them
FAR = 4  # relative indices, r and s are cut off here, so that the policy sees the neighbourhood alone
EMBEDDING_SCALE = 0.2  # sums over a dozen parts become numbers of order one


@dataclass(frozen=True, eq=False)
class Features:
    """A position and its actions as the policy sees them: relative numbers only, so that one policy serves any family.

    entries [F, 14] of the actions' identities, which belong to actions `action` [F]; indices [C * n, 7], n for each action;
    actions [C, 8], how many entries of each identity are of what kind; open [H, 6]; all int8.
    """

    entries: np.ndarray
    action: np.ndarray
    indices: np.ndarray
    actions: np.ndarray
    open: np.ndarray

    @property
    def indices_each(self) -> int:
        return len(self.indices) // max(len(self.actions), 1)


def describe_moves(ground: SearchGround, position: Position, moves: Moves) -> Features:
    """What the policy is told of a position and the moves in it."""
    sector, target, heaviest = ground.sector, ground.target, position.heaviest
    count = len(moves.operator)
    waiting = np.sort(np.fromiter(position.open, sector.layout.dtype, len(position.open)))
    solved = np.sort(np.fromiter(position.solved, sector.layout.dtype, len(position.solved)))
    away = sector.decode(waiting + ground.target_key) - target
    pivot = away[-1]
    away_r, away_s = sector.r_and_s(away)
    own, key = moves.own, moves.key
    in_open, in_solved = own & is_member(key, waiting), own & is_member(key, solved)
    new = own & (key >= 0) & ~in_open & ~in_solved
    kinds = (own & (key == heaviest), new, new & (key > heaviest), in_open, in_solved, own, ~own, own & (key < 0))
    relations = (own, key > heaviest, key == heaviest, (key > 0) & (key < heaviest), key == 0, key < 0, in_open, in_solved, new)
    changes = (moves.dr, moves.ds, moves.dr - away_r[-1], moves.ds - away_s[-1])
    columns = [own & relation for relation in relations] + [~own] + [np.clip(change, -FAR, FAR) * own for change in changes]
    sizes = [np.full(len(waiting), min(len(some), 12)) for some in (position.actions, waiting)]
    still_open = [np.clip(away_r, -FAR, FAR), np.clip(away_s, -FAR, FAR), waiting == heaviest, waiting == 0, *sizes]
    return Features(
        np.stack(columns, 1).astype(np.int8),
        moves.action,
        _index_features(sector, target, pivot, moves.seed),
        np.minimum(np.stack([np.bincount(moves.action[kind], minlength=count) for kind in kinds], 1), 15).astype(np.int8),
        np.stack(still_open, 1).astype(np.int8),
    )


def _index_features(sector: Sector, target: np.ndarray, pivot: np.ndarray, seed: np.ndarray) -> np.ndarray:
    """[C * n, 7]: which indices are lines, how far target and seed are from the border, and where the seed is."""
    positive, change = sector.positive, seed - target
    border = border_distance(np.stack([np.broadcast_to(target, seed.shape), seed], 2), positive[:, None], FAR - 1)
    relative = np.clip(np.stack([np.broadcast_to(pivot, seed.shape), change - pivot, change], 2), -FAR, FAR)
    kind = np.broadcast_to(np.stack([positive, ~positive], 1), (*seed.shape, 2))
    return np.concatenate([kind, border, relative], 2).reshape(-1, 7).astype(np.int8)


def gather_lines(parts: Sequence[Features]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """The lines of several positions, one position after the other; how many each has of them [P]; and `action` of all entries."""
    own = {name: [getattr(part, name) for part in parts] for name in INPUTS}
    lines = {name: np.concatenate([np.zeros((0, INPUTS[name]), np.int8), *some]) for name, some in own.items()}
    counts = {name: np.array(list(map(len, some)), np.int32) for name, some in own.items()}
    return lines, counts, np.concatenate([np.zeros(0, np.int16), *(part.action for part in parts)])


def make_batch(lines: dict[str, np.ndarray], counts: dict[str, np.ndarray], action: np.ndarray) -> dict[str, Any]:
    """Tensors of several positions, out of what `gather_lines` gives; `*_owner` says which action, or position, a line belongs to."""
    import torch

    actions = counts["actions"].astype(np.int64)
    each = counts["indices"] // np.maximum(actions, 1)  # a position may have no actions
    owners = {
        "entries": action + np.repeat(np.cumsum(actions) - actions, counts["entries"]),
        "indices": np.repeat(np.arange(actions.sum()), np.repeat(each, actions)),
        "open": np.repeat(np.arange(len(actions)), counts["open"]),
        "actions": np.repeat(np.arange(len(actions)), actions),
    }
    arrays = lines | {f"{name}_owner": owner for name, owner in owners.items()}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def make_network(width: int) -> Any:
    """A set network: the entries of an identity, its indices and what is open are embedded one by one and summed; no order matters."""
    from torch import nn

    mix = nn.Sequential(nn.Linear(3 * width + INPUTS["actions"], 2 * width), nn.ReLU(), nn.Linear(2 * width, width), nn.ReLU())
    embeddings = {name: nn.Linear(INPUTS[name], width) for name in ("entries", "indices", "open")}
    return nn.ModuleDict(embeddings | {"mix": mix, "score": nn.Linear(width, 1)})


def action_scores(network: Any, batch: dict[str, Any]) -> Any:
    """Scores [C] of all actions of a batch, whose softmax in each position gives the probabilities."""
    import torch

    def embed(name: str, owners: int) -> Any:
        tokens = torch.relu(network[name](batch[name].float()))
        return tokens.new_zeros(owners, tokens.shape[1]).index_add_(0, batch[f"{name}_owner"], tokens)

    owner, actions = batch["actions_owner"], batch["actions"].float()
    count, positions = len(actions), int(batch["open_owner"][-1]) + 1  # by what is open: a position may have no actions
    parts = [embed("entries", count), embed("indices", count), embed("open", positions)[owner], actions]
    return network["score"](network["mix"](EMBEDDING_SCALE * torch.cat(parts, 1)))[:, 0]


class Policy:
    """Gives each action of a position its probability to be on a short way to the end.

    Without a network every action is as good as any other: in the order in which they come, or shuffled, another way for another seed.
    """

    def __init__(self, network: Any = None, shuffled: bool = False, seed: int = 0):
        self.network, self.shuffled, self.seed = network, shuffled, seed

    def scores(self, features: Sequence[Features]) -> list[np.ndarray]:
        """Logarithms of probabilities [C], one array for each position."""
        if self.network is None:
            return [self._arbitrary(len(part.actions), len(part.open)) for part in features]
        import torch

        with torch.inference_mode():
            values = action_scores(self.network, make_batch(*gather_lines(features))).double().numpy()
        parts = np.split(values, np.cumsum([len(part.actions) for part in features])[:-1])
        return [np.round(part - np.logaddexp.reduce(part), 4) for part in parts]  # what differs by rounding alone is the same

    def _arbitrary(self, count: int, still_open: int) -> np.ndarray:
        order = np.random.default_rng((still_open, self.seed)).permutation(count) if self.shuffled else np.arange(count)
        return -math.log(max(count, 1)) - 1e-6 * order
