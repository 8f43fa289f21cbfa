"""Guides, weights and lessons for the tests of guide, weights, learning and training."""

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
from support import Touches, flipped

from ibp.console import Reporter
from ibp.discovery import RuleFinder
from ibp.families import BUILT_IN_FAMILIES
from ibp.guide import GUIDE_SHAPES
from ibp.identities import generic_equations
from ibp.sectors import Layout, Sector
from ibp.training import Training, TrainingFiles, TrainingPlan, train
from ibp.training_data import TrainingSet
from ibp.weights import GUIDE_MEMBER, unpack_policy


def guide_of(scale=1.0, seed=0):
    """Weights that have learned nothing."""
    rng = np.random.default_rng(seed)
    return {name: (scale * rng.normal(size=shape)).astype(np.float32) for name, shape in GUIDE_SHAPES.items()}


def guide_ground(name, bits=None):
    """A rule finder for a sector of a family, by default the highest one, at the generic point."""
    family = BUILT_IN_FAMILIES[name]
    return RuleFinder(Sector(Layout(family.n, 30, 30), (1 << family.lines) - 1 if bits is None else bits), generic_equations(family))


def training_in(directory, data, **plan):
    """Two epochs of a small training in a directory, if no plan says otherwise."""
    files = TrainingFiles(data, directory / "policy.pt", directory / "training.checkpoint")
    return Training(TrainingSet(data), TrainingPlan(**{"epochs": 2} | plan), "cpu", files)


def run_training(training):
    """What it says."""
    said = []
    training.restore()
    train(training, Reporter().show, said.append)
    return said


def weights_file(path, guide=None):
    """A weights file with this as its guide."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"")
        if guide is not None:
            archive.writestr(GUIDE_MEMBER, guide)
    return str(path)


def curve_of(table):
    """The lines of a curve without the seconds."""
    return [[value for number, value in enumerate(line.split(",")) if number != 1] for line in Path(table).read_text().splitlines()]


def same_weights(one, other):
    one, other = (unpack_policy(Path(path).read_bytes())[0].state_dict() for path in (one, other))
    return one.keys() == other.keys() and all(bool((one[name] == other[name]).all()) for name in one)


def saved(value):
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


BAD_BYTES = {
    "empty": lambda data: b"",
    "text": lambda data: b"hello\n",
    "truncated": lambda data: data[:-300],
    "half": lambda data: data[: len(data) // 2],
    "bit": lambda data: flipped(data, len(data) // 2),
    "pickle": lambda data: pickle.dumps(Touches()),
}
