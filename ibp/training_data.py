"""The examples that policy and guide learn from: trajectories and rules, made sector by sector, in a file that is checked when it is read.

A trajectory is a rule of local elimination, whose identities may be taken in any order, or a scramble: random identities that make an
integral complicated, to be undone. `follow` notes an `Example` at each position, for the policy; the guide has `Lesson`s, rows of rules.
`make_training_data` writes the file, `TrainingSet` reads it. A tenth of the targets is held out: these measure and never train.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import zipfile
from collections.abc import Sequence
from concurrent.futures import Executor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from executors.files import replace_file
from ibp.console import Reporter
from ibp.discovery import RuleFinder
from ibp.elimination import subtract
from ibp.errors import UNREADABLE, PolicyRefused
from ibp.families import Family
from ibp.guide import GUIDE_LEVELS, NEAR
from ibp.identities import Equations, generic_equations
from ibp.policy import INPUTS, Features, describe_moves, gather_lines, make_batch
from ibp.positions import Position, SearchGround
from ibp.residues import GENERIC_PRIME
from ibp.rules import LAST_NEIGHBOURHOOD, NEIGHBOURHOODS, Action, Rule, border_distance
from ibp.sectors import Layout, Sector, find_nonzero_sectors
from ibp.tables import run_numbers
from ibp.weights import POLICY_FORMAT

LONGEST_SCRAMBLE = 6
TRAINING_FORMAT = 2
HELD_OUT = 0.1  # share of the targets whose trajectories measure and never train
SHOWN_ACTIONS = 64  # of a position to train on: the right ones and a random choice of the others


@dataclass(frozen=True, eq=False)
class Example:
    """One position of a trajectory: its features, and which actions bool [C] are right: known to be left to do, or ending it at once."""

    features: Features
    right: np.ndarray


def random_target(sector: Sector, rng: np.random.Generator) -> np.ndarray:
    """Indices [n] with a few dots and numerators; every second one is close to the corner, where reductions are long."""
    target, most = sector.positive.astype(np.int64), rng.choice((2, 5))
    for places, step in ((np.flatnonzero(sector.positive), 1), (np.flatnonzero(~sector.positive), -1)):
        if len(places):
            np.add.at(target, rng.choice(places, rng.integers(0, most + 1)), step)
    return target


def local_rule(finder: RuleFinder, target: np.ndarray) -> Rule | None:
    """What local elimination finds for a target [n], at the lowest level where there is something."""
    levels = range(LAST_NEIGHBOURHOOD + 1)
    return next((rule for level in levels if (rule := finder.find(target, level, finder.structure))), None)


def scramble(finder: RuleFinder, base: np.ndarray, rng: np.random.Generator) -> tuple[SearchGround, Position, list[Action]] | None:
    """A trajectory in reverse: random identities make an integral complicated; to be undone down to what it was.

    The lightest integral that is heavier than the first one becomes the target, so that the same position is empty at the end.
    """
    ground = SearchGround(finder.sector, finder.structure, base)
    expression, used, p = {0: 1}, [], finder.structure.prime
    for _ in range(rng.integers(1, LONGEST_SCRAMBLE + 1)):
        key = sorted(expression)[rng.integers(len(expression))]
        moves = ground.moves(Position((), {key: 1}, {}))
        if not len(moves.operator):
            return None
        place = rng.integers(len(moves.operator))
        action = (int(moves.operator[place]), tuple((moves.seed[place] - base).tolist()))
        row = ground.row(action)
        subtract(expression, row, expression[key] * pow(row[key], -1, p), p)
        used.append(action)
        if not expression:
            return None
    heavy = {key: value for key, value in expression.items() if key > 0}
    if not heavy:
        return None
    lightest = min(heavy)
    target = finder.sector.decode(np.array([lightest + ground.target_key], finder.sector.layout.dtype))[0]
    moved = [(operator, tuple((base + np.array(change) - target).tolist())) for operator, change in used]
    position = Position((), {key - lightest: value for key, value in heavy.items()})
    return SearchGround(finder.sector, finder.structure, target), position, list(dict.fromkeys(moved))


def follow(ground: SearchGround, position: Position, left: list[Action], rng: np.random.Generator, limit: int | None) -> list[Example]:
    """The samples of a trajectory: at each position one of the identities that are left to do and can be taken is taken.

    limit: how many actions of a position are shown. A trajectory that leaves the reach of the search ends there.
    """
    samples = []
    while position.open:
        moves = ground.moves(position)
        actions = list(zip(moves.operator.tolist(), map(tuple, (moves.seed - ground.target).tolist())))
        features = describe_moves(ground, position, moves)
        known = [place for place, action in enumerate(actions) if action in left]
        if not known:
            break
        right = np.zeros(len(actions), bool)
        right[known] = True
        new, in_open, in_solved = features.actions[:, 1], features.actions[:, 3], features.actions[:, 4]
        for place in np.flatnonzero((new == 0) & ((in_open >= min(len(position.open), 15)) | (in_solved > 0)) & ~right):
            after = ground.after(position, actions[place])
            right[place] = after is not None and not after.open
        if len(known) < len(actions):  # else there is nothing to learn
            samples.append(_shown(Example(features, right), limit, rng))
        action = actions[rng.choice(known)]
        left = [other for other in left if other != action]
        position = ground.after(position, action)
    return samples


def _shown(sample: Example, limit: int | None, rng: np.random.Generator) -> Example:
    """A sample with a random choice of its wrong actions, so that it has `limit` in all."""
    features, right = sample.features, sample.right
    if limit is None or len(right) <= limit:
        return sample
    wrong = np.flatnonzero(~right)
    keep = right.copy()
    keep[rng.choice(wrong, max(limit - int(right.sum()), 1), replace=False)] = True
    entries = keep[features.action]
    number = np.cumsum(keep) - 1
    kept = Features(
        features.entries[entries],
        number[features.action[entries]],
        features.indices[np.repeat(keep, features.indices_each)],
        features.actions[keep],
        features.open,
    )
    return Example(kept, right[keep])


def _number_from(*parts: Any) -> int:
    """A number of 64 bits, the same for the same parts everywhere."""
    return int.from_bytes(hashlib.sha256(" ".join(map(str, parts)).encode()).digest()[:8], "big")


def is_held_out(family: Family, target: np.ndarray) -> bool:
    """Whether trajectories of this target [n] measure: whatever the seed, so that none is ever trained on. Half of random targets recur."""
    return _number_from(family.identifier, target.tolist()) < HELD_OUT * 2**64


def sector_samples(family: Family, bits: int, trajectories: int, seed: int) -> dict[str, Any]:
    """Training samples of one sector, ragged arrays: half from eliminations, half from scrambles; the same for the same seed."""
    equations = generic_equations(family)
    finder = RuleFinder(Sector(Layout(family.n, 30, 30), bits), equations)
    rng = np.random.default_rng(_number_from(family.identifier, bits, seed))
    samples, marks, rules = [], [], []
    for number in range(trajectories):
        base, scrambled, trajectory = random_target(finder.sector, rng), number % 2 == 1, None
        if scrambled:
            trajectory = scramble(finder, base, rng)
        elif rule := local_rule(finder, base):  # a trajectory from the target down to what is lighter, by the rows that were used
            trajectory = SearchGround(finder.sector, equations, base), Position(), list(rule.rows)
            rules.append((base, rule))
        if trajectory is None:
            continue
        held = is_held_out(family, trajectory[0].target)
        new = follow(*trajectory, rng, None if held else SHOWN_ACTIONS)
        samples += new
        marks += [(scrambled, held, number)] * len(new)
    kinds, held_out, numbers = np.array(marks, np.int64).reshape(-1, 3).T
    about = {"scrambled": kinds.astype(bool), "held_out": held_out.astype(bool), "trajectory": numbers}
    return pack_samples(samples) | about | pack_rules(family, finder, rules)


def pack_rules(family: Family, finder: RuleFinder, found: Sequence[tuple[np.ndarray, Rule]]) -> dict[str, np.ndarray]:
    """What the guide learns from: targets and the rows of their rules, one of those that are equally far from the border.

    The sector, its operators and their shifts come along, out of which `describe_rows` makes features.
    """
    sector, equations = finder.sector, finder.structure
    learned = [(base, rule) for base, rule in found if rule.level < GUIDE_LEVELS]
    chosen = list({border_distance(base, sector.positive, NEAR - 1).tobytes(): (base, rule) for base, rule in learned}.values())
    rows = []
    for base, rule in chosen:
        seeds = finder.space(rule.level, base).seeds
        place = {tuple(seed): number for number, seed in enumerate(seeds.tolist())}
        rows.append([place[seed] * equations.count + operator for operator, seed in rule.rows])
    return {
        "rule_target": np.array([base for base, _ in chosen], np.int8).ravel(),
        "rule_level": np.array([rule.level for _, rule in chosen], np.int8),
        "rule_rows": np.array(list(itertools.chain(*rows)), np.int32),
        "rule_rows_count": np.array([len(part) for part in rows], np.int32),
        "rule_held_out": np.array([is_held_out(family, base) for base, _ in chosen], bool),
        "ground": np.array([[sector.bits, sector.n, equations.count, len(equations.shift), len(chosen)]]),
        "ground_operator": equations.operator.astype(np.int16),
        "ground_shift": equations.shift.astype(np.int8).ravel(),
    }


def pack_samples(samples: Sequence[Example]) -> dict[str, np.ndarray]:
    """Samples as arrays: lines of all of them one after the other, and how many lines each has."""
    lines, counts, action = gather_lines([sample.features for sample in samples])
    packed = {key: array for name in INPUTS for key, array in ((name, lines[name]), (f"{name}_count", counts[name]))}
    right = np.concatenate([np.zeros(0, bool), *(sample.right for sample in samples)])
    return packed | {"action": action.astype(np.int16), "right": right}


def make_training_data(
    families: Sequence[Family], trajectories: int, seed: int, path: Path, executor: Executor, reporter: Reporter
) -> dict[str, int]:
    """Write samples of all sectors of the families to a file; returns what there is in it. trajectories: for each sector."""
    sectors = []
    for family in families:
        sectors += [(family, bits) for bits in find_nonzero_sectors(generic_equations(family), family.lines)]
    futures = [executor.submit(sector_samples, family, bits, trajectories, seed) for family, bits in sectors]
    for number, future in enumerate(futures):
        reporter.show("sectors", number, len(futures), "")
        wait([future])
    parts = [future.result() for future in futures]
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    arrays["sector"] = np.repeat(np.arange(len(parts)), [len(part["trajectory"]) for part in parts])
    header = {"format": TRAINING_FORMAT, "policy": POLICY_FORMAT, "families": _identifiers(families), "seed": seed}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, header=np.array(json.dumps(header)), **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, buffer.getvalue())
    return {
        "trajectories": len(np.unique(np.stack([arrays["sector"], arrays["trajectory"]]), axis=1).T),
        "positions": len(arrays["trajectory"]),
        "held_out": int(arrays["held_out"].sum()),
        "bytes": len(buffer.getvalue()),
    }


def _identifiers(families: Sequence[Family]) -> dict[str, str]:
    return {family.name: family.identifier for family in families}


class TrainingSet:
    """Samples of a file, any of which make a batch. Raises PolicyRefused where the file is not what it should be."""

    def __init__(self, path: Path):
        try:
            with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
                self.arrays = {name: file[name] for name in file.files}
            self.header = json.loads(str(self.arrays.pop("header")))
            fits = (self.header["format"], self.header["policy"]) == (TRAINING_FORMAT, POLICY_FORMAT)
            families = [*self.header["families"].items()]
            whole = all(isinstance(text, str) for pair in families for text in pair) and _are_whole(self.arrays)
            self.lessons = unpack_rules(self.arrays) if fits and whole else []
        except OSError as error:
            raise PolicyRefused(f"training data {path}: {error.strerror or error}; make some by the command 'examples'") from None
        except (*UNREADABLE, RuntimeError, zipfile.BadZipFile) as error:
            raise PolicyRefused(f"training data {path}: damaged ({type(error).__name__}); make it anew") from None
        if not fits or not whole:
            raise PolicyRefused(f"training data {path}: of another version, or damaged; make it anew")
        self.begin = {name: np.cumsum(self.arrays[f"{name}_count"]) - self.arrays[f"{name}_count"] for name in INPUTS}
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

    def is_of(self, families: Sequence[Family]) -> bool:
        """Whether the examples are of these families."""
        return self.header["families"] == _identifiers(families)

    def batch(self, samples: np.ndarray) -> dict[str, Any]:
        """These samples as tensors, as `make_batch` makes them, and `right`."""
        counts = {name: self.arrays[f"{name}_count"][samples] for name in INPUTS}
        chosen = {name: run_numbers(self.begin[name][samples], counts[name]) for name in INPUTS}
        lines = {name: self.arrays[name][some] for name, some in chosen.items()}
        lines["right"] = self.arrays["right"][chosen["actions"]]
        return make_batch(lines, counts, self.arrays["action"][chosen["entries"]])


@dataclass(frozen=True, eq=False)
class Lesson:
    """Rules of one level of a sector that the guide learns from: targets [M, n], for each the numbers of its rows; held_out bool [M]."""

    sector: Sector
    equations: Equations
    level: int
    targets: np.ndarray
    rows: list[np.ndarray]
    held_out: np.ndarray


def unpack_rules(arrays: dict[str, np.ndarray]) -> list[Lesson]:
    """Raises ValueError or IndexError where the arrays of `pack_rules`, joined, do not fit each other."""
    lessons, rows = [], np.split(arrays["rule_rows"], np.cumsum(arrays["rule_rows_count"])[:-1])
    terms = numbers = indices = shifts = 0
    for bits, n, count, size, rules in arrays["ground"].tolist():
        operator = arrays["ground_operator"][terms : terms + size].astype(np.int64)
        shift = arrays["ground_shift"][shifts : shifts + size * n].reshape(size, n).astype(np.int64)
        equations = Equations(GENERIC_PRIME, count, operator, shift, np.zeros((size, n + 1), np.int64))
        targets = arrays["rule_target"][indices : indices + rules * n].reshape(rules, n).astype(np.int64)
        sector = Sector(Layout(n, 30, 30), bits)
        if rules and not sector.contains(targets).all():
            raise ValueError("targets of another sector")
        level, held_out = (arrays[name][numbers : numbers + rules] for name in ("rule_level", "rule_held_out"))
        for k in np.unique(level).tolist():
            chosen = np.flatnonzero(level == k)
            some = [rows[numbers + number] for number in chosen]
            if not 0 <= max(map(max, some)) < len(NEIGHBOURHOODS[k].seeds(sector)) * count or min(map(min, some)) < 0:
                raise ValueError("rows of another neighbourhood")
            lessons.append(Lesson(sector, equations, k, targets[chosen], some, held_out[chosen]))
        terms, numbers, indices, shifts = terms + size, numbers + rules, indices + rules * n, shifts + size * n
    return lessons


def _are_whole(arrays: dict[str, np.ndarray]) -> bool:
    """Whether arrays are what `sector_samples` makes: sizes that fit, owners that exist, a right action in each position."""
    count = {name: arrays[f"{name}_count"] for name in INPUTS}
    positions = len(count["actions"])
    if any(each.dtype != np.int32 or each.shape != (positions,) or (each < (name != "entries")).any() for name, each in count.items()):
        return False
    lines = {name: int(each.sum()) for name, each in count.items()}
    expected: dict[str, tuple[type, tuple[int, ...]]] = {name: (np.int8, (lines[name], width)) for name, width in INPUTS.items()}
    expected |= {"action": (np.int16, (lines["entries"],)), "right": (bool, (lines["actions"],))}
    expected |= {"scrambled": (bool, (positions,)), "held_out": (bool, (positions,))}
    if not positions or any(arrays[name].dtype != kind or arrays[name].shape != shape for name, (kind, shape) in expected.items()):
        return False
    if (count["indices"] % count["actions"]).any():
        return False
    action = arrays["action"]
    owned = ((action >= 0) & (action < np.repeat(count["actions"], count["entries"]))).all()
    return bool(owned and np.logical_or.reduceat(arrays["right"], np.cumsum(count["actions"]) - count["actions"]).all())
