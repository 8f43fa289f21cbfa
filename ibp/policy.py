"""A small set network that says which identity to take; weights and their file."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ibp.errors import PolicyRefused
from ibp.families import Family
from ibp.guide import GUIDE_MEMBER, pack_guide
from ibp.positions import Moves, Position, SearchGround
from ibp.sectors import Sector
from ibp.tables import is_member

POLICY_FORMAT = 1  # of a weights file, and of what its inputs mean
POLICY_KIND = "ibp_reduce policy"
NO_POLICY = ("fixed", "random")  # names that stand for a search without a policy
FAR = 4  # relative indices, r and s are cut off here, so that the policy sees the neighbourhood alone
EMBEDDED_INPUTS = (14, 7, 6)  # of an entry, an index, an open integral
ACTION_INPUTS = 8
LARGEST_WIDTH = 1024  # of a network that is loaded: 8 million parameters
SCORED_TOGETHER = 8  # positions: some thousand entries, so that memory stays small
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
    return Features(
        np.stack(columns, 1).astype(np.int8),
        moves.action,
        _index_features(sector, target, pivot, moves.seed),
        np.minimum(np.stack([np.bincount(moves.action[kind], minlength=count) for kind in kinds], 1), 15).astype(np.int8),
        np.stack(
            [
                np.clip(away_r, -FAR, FAR),
                np.clip(away_s, -FAR, FAR),
                waiting == heaviest,
                waiting == 0,
                np.full(len(waiting), min(len(position.actions), 12)),
                np.full(len(waiting), min(len(waiting), 12)),
            ],
            1,
        ).astype(np.int8),
    )


def _index_features(sector: Sector, target: np.ndarray, pivot: np.ndarray, seed: np.ndarray) -> np.ndarray:
    """[C * n, 7]: which indices are lines, how far target and seed are from the border, and where the seed is."""
    positive, change = sector.positive, seed - target
    border = np.minimum(np.abs(np.stack([np.broadcast_to(target, seed.shape), seed], 2)) - positive[:, None], FAR - 1)
    relative = np.clip(np.stack([np.broadcast_to(pivot, seed.shape), change - pivot, change], 2), -FAR, FAR)
    kind = np.broadcast_to(np.stack([positive, ~positive], 1), (*seed.shape, 2))
    return np.concatenate([kind, border, relative], 2).reshape(-1, 7).astype(np.int8)


def join_features(parts: Sequence[Features]) -> dict[str, Any]:
    """Tensors of several positions together; `*_owner` says which action, or position, a line belongs to."""
    import torch

    counts = [len(part.actions) for part in parts]
    begins = np.cumsum(counts) - counts
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ("entries", "indices", "actions", "open")}
    arrays["entries_owner"] = np.concatenate([part.action + begin for part, begin in zip(parts, begins)])
    arrays["indices_owner"] = np.repeat(np.arange(sum(counts)), np.repeat([part.indices_each for part in parts], counts))
    arrays["open_owner"] = np.repeat(np.arange(len(parts)), [len(part.open) for part in parts])
    arrays["actions_owner"] = np.repeat(np.arange(len(parts)), counts)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def make_network(width: int) -> Any:
    """A set network: the entries of an identity, its indices and what is open are embedded one by one and summed; no order matters."""
    from torch import nn

    mix = nn.Sequential(nn.Linear(3 * width + ACTION_INPUTS, 2 * width), nn.ReLU(), nn.Linear(2 * width, width), nn.ReLU())
    embeddings = {name: nn.Linear(inputs, width) for name, inputs in zip(("entries", "indices", "open"), EMBEDDED_INPUTS)}
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
            values = action_scores(self.network, join_features(features)).double().numpy()
        parts = np.split(values, np.cumsum([len(part.actions) for part in features])[:-1])
        return [np.round(part - np.logaddexp.reduce(part), 4) for part in parts]  # what differs by rounding alone is the same

    def _arbitrary(self, count: int, still_open: int) -> np.ndarray:
        order = np.random.default_rng((still_open, self.seed)).permutation(count) if self.shuffled else np.arange(count)
        return -math.log(max(count, 1)) - 1e-6 * order


def pack_policy(network: Any, families: dict[str, str], trained: dict[str, Any], guide: dict[str, np.ndarray] | None = None) -> bytes:
    """The content of a weights file: the network, what it was trained on ({family name: identifier}) and how, and the guide."""
    import torch

    width = network["score"].in_features
    record = {"kind": POLICY_KIND, "format": POLICY_FORMAT, "width": width, "families": families, "trained": trained}
    buffer = io.BytesIO()
    torch.save(record | {"state": network.state_dict()}, buffer)
    if guide is not None:
        with zipfile.ZipFile(buffer, "a") as archive:
            archive.writestr(GUIDE_MEMBER, pack_guide(guide, families))
    return buffer.getvalue()


def load_tensors(content: bytes, device: str = "cpu") -> Any:
    """What `torch.save` wrote, tensors and builtin types only: nothing in it is executed. Raises many kinds of exceptions for damage."""
    import torch

    with zipfile.ZipFile(io.BytesIO(content)) as archive:  # torch itself does not notice a flipped bit
        if damaged := archive.testzip():
            raise ValueError(f"{damaged} is damaged")
    return torch.load(io.BytesIO(content), map_location=device, weights_only=True)


def unpack_policy(content: bytes) -> tuple[Any, dict[str, Any]]:
    """The network and its record. Raises PolicyRefused; nothing in a foreign file is executed."""
    import torch

    try:
        record = load_tensors(content)
    except Exception as error:  # torch raises a dozen kinds, also for truncated archives
        raise PolicyRefused(f"not readable as weights ({type(error).__name__})") from None
    kind, form, width = (record.get(name) for name in ("kind", "format", "width")) if isinstance(record, dict) else (None,) * 3
    if not isinstance(kind, str) or kind != POLICY_KIND:
        raise PolicyRefused("holds no policy of this program")
    if type(form) is not int or form != POLICY_FORMAT:
        raise PolicyRefused(f"is of format {form!r}, this version reads {POLICY_FORMAT}; train it anew")
    if type(width) is not int or not 0 < width <= LARGEST_WIDTH:
        raise PolicyRefused(f"is damaged (width {width!r})")
    try:
        network = make_network(width)
        if any(values.dtype != torch.float32 for values in record["state"].values()):
            raise TypeError("not of single precision")
        network.load_state_dict(record["state"])
        finite = all(bool(torch.isfinite(values).all()) for values in network.state_dict().values())
        families = {str(name): str(identifier) for name, identifier in record["families"].items()}
    except Exception as error:  # wrong names, shapes or types of any depth
        raise PolicyRefused(f"is damaged ({type(error).__name__})") from None
    if not finite:
        raise PolicyRefused("has weights that are not finite numbers")
    return network.eval(), record | {"families": families}


@lru_cache(maxsize=4)
def load_policy(source: bytes | str) -> Policy:
    """A policy from the content of a weights file, or by name: 'fixed', 'random' or 'random SEED'. Raises PolicyRefused."""
    if isinstance(source, str):
        name, _, seed = source.partition(" ")
        return Policy(shuffled=name == "random", seed=int(seed or 0))
    import torch

    torch.set_num_threads(1)  # processes are the parallelism here
    return Policy(unpack_policy(source)[0])


def read_policy(name: str, family: Family) -> bytes | str:
    """What `load_policy` takes, for a weights file or 'fixed' or 'random'. Raises PolicyRefused with the path."""
    if name in NO_POLICY:
        return name
    try:
        content = Path(name).read_bytes()
    except OSError as error:
        raise PolicyRefused(f"policy {name}: {error.strerror}; train one with --train-policy, or give --policy fixed (slow)") from None
    try:
        trained = unpack_policy(content)[1]["families"]
    except PolicyRefused as error:
        raise PolicyRefused(f"policy {name}: {error}") from None
    if trained.get(family.name, family.identifier) != family.identifier:
        raise PolicyRefused(f"policy {name}: was trained on another family that is called {family.name}; train it anew")
    return content
