"""How the policy and the guide learn, and how they are measured."""

from __future__ import annotations

import hashlib
import io
import json
import math
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from executors.files import replace_file
from ibp.console import write_output
from ibp.errors import PolicyRefused
from ibp.examples import SAMPLE_WIDTHS, TRAINING_FORMAT, Lesson, samples_are_whole, unpack_rules
from ibp.families import Family
from ibp.guide import GUIDE_SHAPES, GUIDED_LEVEL, GUIDED_SHARE
from ibp.identities import derive_identities, evaluate_identities, generic_point
from ibp.policy import POLICY_FORMAT, action_scores, load_tensors, make_network, pack_policy
from ibp.sectors import corner, find_nonzero_sectors

BATCH_POSITIONS = 32
IMPOSSIBLE = -1e9  # score of what cannot be taken
GUIDE_PASSES = 4  # in an epoch, through the rules that local elimination found: a pass takes a fraction of a second
GUIDE_TARGETS = 24  # of a level of a sector, trained on together
TRAINING_CURVE = ("epoch", "seconds", "loss", "held_out_loss", "top1", "top5", "top1_eliminations", "top1_scrambles", "guide")


class TrainingSet:
    """Samples of a file, any of which make a batch. Raises PolicyRefused where the file is not what it should be."""

    def __init__(self, path: Path):
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
                self.arrays = {name: file[name] for name in file.files}
            self.header = json.loads(str(self.arrays.pop("header")))
            fits = (self.header["format"], self.header["policy"]) == (TRAINING_FORMAT, POLICY_FORMAT)
            families = [*self.header["families"].items()]
            whole = all(isinstance(text, str) for pair in families for text in pair) and samples_are_whole(self.arrays)
            self.lessons = unpack_rules(self.arrays) if fits and whole else []
        except OSError as error:
            raise PolicyRefused(f"training data {path}: {error.strerror or error}; make some with --make-training-data") from None
        except (
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RuntimeError,
            EOFError,
            MemoryError,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            raise PolicyRefused(f"training data {path}: damaged ({type(error).__name__}); make it anew") from None
        if not fits or not whole:
            raise PolicyRefused(f"training data {path}: of another version, or damaged; make it anew")
        self.begin = {name: np.cumsum(self.arrays[f"{name}_count"]) - self.arrays[f"{name}_count"] for name in SAMPLE_WIDTHS}
        self.held_out = np.flatnonzero(self.arrays["held_out"])
        self.shown = np.flatnonzero(~self.arrays["held_out"])
        if not len(self.shown) or not len(self.held_out):
            raise PolicyRefused(f"training data {path}: too few trajectories ({len(self.shown)} positions); make more")

    @property
    def name(self) -> str:
        """What tells these data from others."""
        digest = hashlib.sha256(json.dumps(self.header, sort_keys=True).encode())
        digest.update(self.arrays["right"].tobytes() + self.arrays["entries"].tobytes() + self.arrays["rule_rows"].tobytes())
        return digest.hexdigest()[:16]

    def lines(self, name: str, samples: np.ndarray) -> np.ndarray:
        """Numbers of the lines of these samples in the ragged array `name`."""
        count, begin = self.arrays[f"{name}_count"][samples], self.begin[name][samples]
        return np.arange(count.sum()) + np.repeat(begin - np.cumsum(count) + count, count)

    def batch(self, samples: np.ndarray) -> dict[str, Any]:
        """Tensors as `join_features` makes them, and `right`."""
        import torch

        lines = {name: self.lines(name, samples) for name in SAMPLE_WIDTHS}
        batch = {name: self.arrays[name][some] for name, some in lines.items()}
        counts = {name: self.arrays[f"{name}_count"][samples] for name in SAMPLE_WIDTHS}
        actions = counts["actions"].astype(np.int64)
        begins = np.cumsum(actions) - actions
        batch["entries_owner"] = self.arrays["action"][lines["entries"]] + np.repeat(begins, counts["entries"])
        batch["indices_owner"] = np.repeat(np.arange(actions.sum()), np.repeat(counts["indices"] // actions, actions))
        batch["open_owner"] = np.repeat(np.arange(len(samples)), counts["open"])
        batch["actions_owner"] = np.repeat(np.arange(len(samples)), actions)
        batch["right"] = self.arrays["right"][lines["actions"]]
        return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in batch.items()}


def by_position(scores: Any, batch: dict[str, Any]) -> Any:
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
    total, right = by_position(scores, batch).logsumexp(2)
    return total - right


def right_ranks(scores: Any, batch: dict[str, Any]) -> Any:
    """How many actions of each position the search would take before the first right one: rounded as its scores are, ties in order."""
    table, right = by_position(scores.double(), batch)
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


def guide_loss(weights: dict[str, Any], lesson: Lesson, some: np.ndarray) -> Any:
    """How far wrong rows come before each of the right ones: mean of log(1 + sum over wrong ones of exp(score - that of the right one))."""
    import torch

    scores, right, possible = lesson.scored(weights, some)
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
                scores, right, possible = lesson.scored(weights, some)
                scores = scores.masked_fill(~possible, -math.inf)
                last = scores.masked_fill(~right, math.inf).amin(1, keepdim=True)
                within += ((scores > last).sum(1) < (possible.sum(1) * GUIDED_SHARE).long().clip(1)).tolist()
    return float(np.mean(within)) if within else math.nan


@dataclass(frozen=True)
class TrainingPlan:
    """How a policy is trained; a checkpoint goes on only with the plan it was made with."""

    epochs: int = 12
    learning_rate: float = 2e-3
    width: int = 96
    seed: int = 0


class Training:
    """A policy in training: network, optimiser, and the curve so far; saved after each epoch."""

    def __init__(self, data: TrainingSet, plan: TrainingPlan, device: str, checkpoint: Path):
        import torch

        self.data, self.plan, self.device, self.checkpoint = data, plan, device, checkpoint
        torch.manual_seed(plan.seed)
        self.network = make_network(plan.width).to(device)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), plan.learning_rate, weight_decay=0.01)
        self.guide = first_guide(plan.seed)
        self.guide_optimizer = torch.optim.AdamW(self.guide.values(), plan.learning_rate, weight_decay=0.01)
        self.curve: list[dict[str, float]] = []
        self.seconds = 0.0

    @property
    def name(self) -> str:
        return f"{self.data.name} {self.plan}"

    def restore(self) -> None:
        """Go on from the checkpoint, if there is one. Raises PolicyRefused where it belongs to other data or another plan."""
        import torch

        if not self.checkpoint.exists():
            return
        try:
            state = load_tensors(self.checkpoint.read_bytes(), self.device)
            if state["name"] == self.name:
                self.network.load_state_dict(state["network"])
                self.optimizer.load_state_dict(state["optimizer"])
                with torch.no_grad():
                    for name, parameter in self.guide.items():
                        parameter.copy_(state["guide"][name])
                self.guide_optimizer.load_state_dict(state["guide_optimizer"])
                self.curve = [{name: float(line[name]) for name in TRAINING_CURVE} for line in state["curve"]]
                self.seconds = float(state["seconds"])
        except Exception as error:  # torch raises a dozen kinds
            raise PolicyRefused(f"checkpoint {self.checkpoint}: damaged ({type(error).__name__}); delete it, or give --fresh") from None
        if state["name"] != self.name:
            raise PolicyRefused(f"checkpoint {self.checkpoint}: of a training with other data or options; delete it, or give --fresh")

    def save(self) -> None:
        import torch

        buffer = io.BytesIO()
        state = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        state |= {"guide": {name: values.detach() for name, values in self.guide.items()}}
        state |= {"guide_optimizer": self.guide_optimizer.state_dict()}
        torch.save({"name": self.name, "curve": self.curve, "seconds": self.seconds} | state, buffer)
        replace_file(self.checkpoint, buffer.getvalue())

    def run_epoch(self, tick: Callable[[int, int], None]) -> bool:
        """Train once on everything; False where the loss is not a number any more, and then nothing is kept of the epoch.

        tick: is told how many batches are done, and how many there are.
        """
        import torch

        started, epoch = time.monotonic(), len(self.curve)
        order = np.random.default_rng((self.plan.seed, epoch)).permutation(self.data.shown)
        batches = np.array_split(order, max(len(order) // BATCH_POSITIONS, 1))
        total = 0.0
        for number, part in enumerate(batches):
            done = (epoch + number / len(batches)) / self.plan.epochs
            for group in (*self.optimizer.param_groups, *self.guide_optimizer.param_groups):
                group["lr"] = self.plan.learning_rate * (1 - done)
            batch = {name: tensor.to(self.device) for name, tensor in self.data.batch(part).items()}
            loss = position_losses(action_scores(self.network, batch), batch).mean()
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
            self.optimizer.step()
            if not math.isfinite(value := float(loss.detach())):
                return False
            total += value
            tick(number + 1, len(batches))
        rng = np.random.default_rng((self.plan.seed, epoch, 1))
        if not all(train_guide(self.guide, self.guide_optimizer, self.data.lessons, rng) for _ in range(GUIDE_PASSES)):
            return False
        measured = measure_policy(self.network, self.data, self.device) | {"guide": measure_guide(self.guide, self.data.lessons)}
        if not math.isfinite(measured["held_out_loss"]):
            return False
        self.seconds += time.monotonic() - started
        self.curve.append({"epoch": epoch + 1, "seconds": round(self.seconds, 1), "loss": total / len(batches)} | measured)
        self.save()
        return True


def write_curve(curve: Sequence[dict[str, float]], table: Path) -> None:
    """Loss and accuracy as CSV, and as a picture where matplotlib is there."""
    write_table(table, [TRAINING_CURVE, *([f"{line[name]:.6g}" for name in TRAINING_CURVE] for line in curve)])
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        return
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    epochs = [line["epoch"] for line in curve]
    for name, label in (("loss", "trained on"), ("held_out_loss", "held out")):
        loss.plot(epochs, [line[name] for line in curve], marker=".", label=label)
    for name in ("top1", "top5"):
        accuracy.plot(epochs, [100 * line[name] for line in curve], marker=".", label=name.replace("top", "top-"))
    loss.set(xlabel="epoch", ylabel="loss of a position")
    accuracy.set(xlabel="epoch", ylabel="% of held-out positions")
    for axes in (loss, accuracy):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.legend()
        axes.grid(alpha=0.3)
    write_figure(table.with_suffix(".png"), figure)


def write_table(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    """Comma-separated values. Raises ReductionError."""
    import csv

    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_output(path, text.getvalue().encode(), "table")


def write_figure(path: Path, figure: Any) -> None:
    """PNG. Raises ReductionError."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_output(path, buffer.getvalue(), "figure")


def write_trained(training: Training, weights: Path) -> None:
    """The weights file, and the curve beside it."""
    trained = {"seconds": training.seconds, "positions": len(training.data.shown)} | training.curve[-1]
    guide = {name: values.detach().numpy() for name, values in training.guide.items()}
    replace_file(weights, pack_policy(training.network, training.data.header["families"], trained, guide))
    write_curve(training.curve, weights.with_suffix(".csv"))


def search_targets(family: Family, count: int, seed: int) -> list[tuple[int, np.ndarray]]:
    """Random integrals (sector, indices [n]) of all sectors, with r <= 13 and s <= 7, none of them a corner."""
    rng = np.random.default_rng((seed, 1))
    generic = evaluate_identities(derive_identities(family), generic_point(family))
    nonzero, targets = find_nonzero_sectors(generic, family.lines), []
    while len(targets) < count:
        bits = nonzero[len(targets) % len(nonzero)]
        target = np.array(corner(bits, family.n))
        inside, outside = np.flatnonzero(target), np.flatnonzero(target == 0)
        np.add.at(target, rng.choice(inside, rng.integers(0, 14 - len(inside))), 1)
        if len(outside):
            np.add.at(target, rng.choice(outside, rng.integers(0, 8)), -1)
        if tuple(target.tolist()) not in (corner(bits, family.n), *family.paper_masters):
            targets.append((bits, target))
    return targets
