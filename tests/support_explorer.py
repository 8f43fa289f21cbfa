"""For the tests of the explorer: toy models, small runs, what a page must be."""

import ctypes
import enum
import html.parser
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from support import HERE

from phases.active_learning import ActiveLearningExplorer
from phases.box import Box
from phases.learner import Explorer
from phases.model import PARAMETERS

FULL = {"J1z": 0.3, "D": 0.2, "E": -0.3, "F": 0.15, "G": -0.4, "J3xy": 0.5, "J3z": -0.2, "J2xy": 0.25, "J2z": -0.1}
FULL |= {"hx": 0.1, "hy": -0.2, "hz": 0.3}


def random_spins(rng, *shape):
    spins = rng.standard_normal((*shape, 3))
    return spins / np.linalg.norm(spins, axis=-1, keepdims=True)


def drawn(seed, frustrated=True):
    """Random couplings; frustrated ones are small and have J3xy > 0, so that most are not settled by the bound."""
    values = np.random.default_rng([5, seed]).uniform(-1, 1, 7)
    if frustrated:
        values *= 0.4
        values[5] = abs(values[5])
    return dict(zip(PARAMETERS, values))


SMALL_BOX = Box.of({"x": (-1, 1), "y": (0, 5)})


class Toy(enum.Enum):
    LOW = 0
    MIDDLE = 1
    HIGH = 2
    UNKNOWN = 3


def toy_label(u):  # of a unit point
    return Toy(int(u[1] > 0.3 + 0.3 * np.sin(3 * u[0])) + int(u[1] > 0.8)).name


def toy_simulation(params):
    spins = np.zeros((8, 3))
    spins[:, Toy[toy_label(SMALL_BOX.to_unit(params))].value] = 1
    return spins, np.zeros((8, 2)), -(params["x"] ** 2)


def toy_classify(spins, L):
    return SimpleNamespace(phase=Toy(int(np.argmax(np.abs(spins).sum(0)))), confidence=0.9, path=("largest component",))


def hostile(params):
    """What happens depends on the point, so that a repetition does the same."""
    if os.environ["TMPDIR"] != os.getcwd() or os.listdir("."):
        raise RuntimeError("no directory of my own")
    Path("litter").write_text("x")
    kind = int(round(params["x"]))
    if kind == 1:
        raise ValueError("no such state")
    if kind == 2:
        os.kill(os.getpid(), signal.SIGSEGV)
    if kind == 3:
        ctypes.PyDLL(None).sleep(60)  # holds the interpreter's lock, so that only a kill ends it
    spins, positions, energy = toy_simulation({"x": 0.0, "y": 1.0})
    sound = (spins, positions, energy)
    return {4: (spins[:, :2], *sound[1:]), 5: (spins * np.nan, *sound[1:]), 6: (spins * 2, *sound[1:]), 7: sound[:2]}.get(kind, sound)


def make_run(path, **changes):
    return ActiveLearningExplorer(
        path, **({"L": 2, "parameters": SMALL_BOX, "classify": toy_classify, "target_phase": Toy.MIDDLE} | changes)
    )


def explored(order=lambda points: points, box=SMALL_BOX, rename=lambda label: label, rounds=3, **how):
    explorer = Explorer(box, seed=4, target=rename("MIDDLE"), **how)
    for _ in range(rounds):
        for point in order(explorer.ask(9)):
            explorer.tell(point.id, rename(toy_label(point.unit)))
    return explorer


# ---- history
def run_toy(path, **how):
    with make_run(path, seed=7) as run:
        run.run(toy_simulation, n_initial=8, n_iterations=3, n_per_iteration=5, timeout=None, **how)
        return run.result


KILLED = """
import os, sys
sys.path[:0] = {here!r}
from phases import history as core
import support_explorer
left = {after}
write = core.History.append
def append(self, event, **fields):
    global left
    left -= 1
    if left < 0:
        line = core.encode({{"event": event, **fields}})
        os.write(self.file.fileno(), line[: int(len(line) * {share})])
        os.kill(os.getpid(), 9)
    return write(self, event, **fields)
core.History.append = append
support_explorer.run_toy({path!r})
"""
PROGRAM = HERE / "explorer.py"
TINY = shlex.split("--screening --lattice-size 6 --n-initial 4 --n-iterations 2 --n-per-iteration 3 --seed 5")


def explore(*arguments, cwd, **more):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(PROGRAM), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=100, **more)


# ---- outputs
class Page(html.parser.HTMLParser):
    """Notes what is opened and closed, and every address."""

    VOID = ("meta", "img", "br", "link", "input", "hr")

    def __init__(self):
        super().__init__()
        self.open, self.addresses, self.tags = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check_page(text):
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == [] and all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert "http" not in re.sub(r'"data:[^"]*"', "", text) and "viewport" in text
    return page
