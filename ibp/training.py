"""How policy and guide are trained: epoch by epoch, with a checkpoint that a later run goes on from, a weights file and a curve.

`train` does it for a `Training`, made of a `TrainingSet`, a `TrainingPlan` and the `TrainingFiles`, by the losses that stand first.
The same seed gives the same weights.
"""

from __future__ import annotations

import io
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from executors.files import replace_file
from ibp.console import new_figure, write_figure, write_table
from ibp.errors import InputError, PolicyRefused, ReductionError
from ibp.guide import GUIDE_SHAPES, GUIDED_LEVEL, GUIDED_SHARE, NEAR, RowFeatures, describe_rows, guide_rows, guide_scores
from ibp.policy import action_scores, make_network
from ibp.residues import check_device
from ibp.rules import NEIGHBOURHOODS, border_distance
from ibp.training_data import Lesson, TrainingSet
from ibp.weights import load_tensors, pack_weights

IMPOSSIBLE = -1e9  # score of what cannot be taken
GUIDE_TARGETS = 24  # of a level of a sector, trained on together
BATCH_POSITIONS = 32
GUIDE_PASSES = 4  # in an epoch, through the rules that local elimination found: a pass takes a fraction of a second
TRAINING_CURVE = ("epoch", "seconds", "loss", "held_out_loss", "top1", "top5", "top1_eliminations", "top1_scrambles", "guide")


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
    right = {"top1": rank < 1, "top5": rank < 5, "top1_eliminations": rank[~scrambled] < 1, "top1_scrambles": rank[scrambled] < 1}
    shares = {name: float(values.mean()) if len(values) else math.nan for name, values in right.items()}
    return {"held_out_loss": float(torch.cat(losses).mean())} | shares


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
    inside = lesson.sector.contains(lesson.targets[some][:, None] + seeds[None])
    possible = np.repeat(inside, lesson.equations.count, axis=1)
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


@dataclass(frozen=True)
class TrainingPlan:
    """How a policy is trained; a checkpoint goes on only with the plan it was made with."""

    epochs: int = 12
    learning_rate: float = 2e-3
    width: int = 96
    seed: int = 0


@dataclass(frozen=True)
class TrainingFiles:
    """What a training reads and writes; its curve, a table and a picture, is beside the weights."""

    data: Path
    weights: Path
    checkpoint: Path

    def __post_init__(self) -> None:
        """Raises InputError where one file would be two things."""
        uses = (self.data, self.weights, self.weights.with_suffix(".csv"), self.weights.with_suffix(".png"), self.checkpoint)
        if len({os.path.realpath(path) for path in uses}) < len(uses):
            ours = f"--training-data {self.data}, --policy {self.weights}"
            raise InputError(f"{ours}: need files of their own beside the curve and the checkpoint")


def training_device(name: str) -> str:
    """What torch calls a device: a GPU for 'auto', if there is one. Raises InputError where this machine has none of this name."""
    check_device(name)
    import torch

    return name.removeprefix("torch:") if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


class Training:
    """A policy and a guide in training: parameters, optimisers, and the curve so far; saved after each epoch."""

    def __init__(self, data: TrainingSet, plan: TrainingPlan, device: str, files: TrainingFiles):
        import torch

        self.data, self.plan, self.device, self.files = data, plan, device, files
        torch.manual_seed(plan.seed)
        self.network = make_network(plan.width).to(device)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), plan.learning_rate, weight_decay=0.01)
        self.guide = first_guide(plan.seed)
        self.guide_optimizer = torch.optim.AdamW(self.guide.values(), plan.learning_rate, weight_decay=0.01)
        self.curve: list[dict[str, float]] = []
        self.seconds = 0.0

    @property
    def name(self) -> str:
        """What tells this training from others, for its checkpoint."""
        return f"{self.data.name} {self.plan}"

    def __str__(self) -> str:
        size = sum(parameter.numel() for parameter in self.network.parameters())
        return (
            f"{len(self.data.shown):,} positions of {', '.join(self.data.header['families'])} to train on, "
            f"{len(self.data.held_out):,} held out; {size:,} parameters, on {self.device}; "
            f"{len(self.curve)} of {self.plan.epochs} epochs done"
        )

    def restore(self) -> None:
        """Go on from the checkpoint, if there is one. Raises PolicyRefused where it belongs to other data or another plan."""
        import torch

        checkpoint = self.files.checkpoint
        if not checkpoint.exists():
            return
        try:
            state = load_tensors(checkpoint.read_bytes(), self.device)
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
            raise PolicyRefused(f"checkpoint {checkpoint}: damaged ({type(error).__name__}); delete it, or give --fresh") from None
        if state["name"] != self.name:
            raise PolicyRefused(f"checkpoint {checkpoint}: of a training with other data or options; delete it, or give --fresh")

    def save(self) -> None:
        import torch

        buffer, guide = io.BytesIO(), {name: values.detach() for name, values in self.guide.items()}
        state = {"name": self.name, "curve": self.curve, "seconds": self.seconds, "network": self.network.state_dict(), "guide": guide}
        optimizers = {"optimizer": self.optimizer.state_dict(), "guide_optimizer": self.guide_optimizer.state_dict()}
        torch.save(state | optimizers, buffer)
        replace_file(self.files.checkpoint, buffer.getvalue())

    def run_epoch(self, tick: Callable[[int, int], None]) -> bool:
        """Train once on everything; False where the loss is not a number any more, and then nothing is kept of the epoch.

        tick: is told how many batches are done, and how many there are.
        """
        started, epoch = time.monotonic(), len(self.curve)
        loss = self._learn_positions(epoch, tick)
        rng = np.random.default_rng((self.plan.seed, epoch, 1))
        passes = (train_guide(self.guide, self.guide_optimizer, self.data.lessons, rng) for _ in range(GUIDE_PASSES))
        if not math.isfinite(loss) or not all(passes):
            return False
        measured = measure_policy(self.network, self.data, self.device) | {"guide": measure_guide(self.guide, self.data.lessons)}
        if not math.isfinite(measured["held_out_loss"]):
            return False
        self.seconds += time.monotonic() - started
        self.curve.append({"epoch": epoch + 1, "seconds": round(self.seconds, 1), "loss": loss} | measured)
        self.save()
        return True

    def _learn_positions(self, epoch: int, tick: Callable[[int, int], None]) -> float:
        """The mean loss of the policy on all batches, or the first that is not a number."""
        import torch

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
                return value
            total += value
            tick(number + 1, len(batches))
        return total / len(batches)


def train(training: Training, show: Callable[[str, int, int, str], None], tell: Callable[[str], None]) -> None:
    """Train up to the last epoch of the plan; weights, curve and checkpoint are written after each. Raises ReductionError.

    show: is told what is under way, how much of it is done, how much there is; tell: each epoch that is done, in a line.
    """
    weights = training.files.weights
    if training.curve:
        write_trained(training)  # whoever was killed had perhaps no time for it
    while (epoch := len(training.curve) + 1) <= training.plan.epochs:
        name = f"epoch {epoch} of {training.plan.epochs}, batches"
        if not training.run_epoch(lambda done, total, name=name: show(name, done, total, "")):
            raise ReductionError(
                f"training: the loss is not a number in epoch {epoch}; the weights of epoch {epoch - 1} are kept in {weights}"
                if epoch > 1
                else "training: the loss is not a number in the first epoch, nothing is kept; take a smaller --learning-rate"
            )
        write_trained(training)
        tell(
            "epoch {epoch}: loss {loss:.4f}, held out {held_out_loss:.4f}, top-1 {top1:.2%} (eliminations {top1_eliminations:.2%}, "
            "scrambles {top1_scrambles:.2%}), top-5 {top5:.2%}, guide {guide:.2%}, {seconds:.0f} s".format(**training.curve[-1])
        )


def write_trained(training: Training) -> None:
    """The weights file, and the curve beside it. Raises ReductionError."""
    trained = {"seconds": training.seconds, "positions": len(training.data.shown)} | training.curve[-1]
    guide = {name: values.detach().numpy() for name, values in training.guide.items()}
    replace_file(training.files.weights, pack_weights(training.network, training.data.header["families"], trained, guide))
    write_curve(training.curve, training.files.weights.with_suffix(".csv"))


def write_curve(curve: Sequence[dict[str, float]], table: Path) -> None:
    """Loss and accuracy as CSV, and as a picture where matplotlib is there. Raises ReductionError."""
    write_table(table, [TRAINING_CURVE, *([f"{line[name]:.6g}" for name in TRAINING_CURVE] for line in curve)])
    if (figure := new_figure(9, 3.6)) is None:
        return
    from matplotlib.ticker import MaxNLocator

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
