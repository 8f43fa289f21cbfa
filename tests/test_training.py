"""Training: losses and measures; it learns, it goes on from its checkpoint, it ends where the loss is no number; what is refused."""

import io
import math
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from support import BUBBLE, Touches, check_refused, said, write_input_files
from support_learning import BAD_BYTES, curve_of, guide_of, run_training, same_weights, saved, training_in

from ibp.errors import PolicyRefused, ReductionError
from ibp.families import BUILT_IN_FAMILIES
from ibp.guide import NEAR, describe_rows, guide_rows, guide_scores
from ibp.policy import action_scores, make_network
from ibp.rules import NEIGHBOURHOODS, border_distance
from ibp.training import Training, first_guide, guide_loss, measure_guide, measure_policy, row_scores, train_guide, write_curve
from ibp.training_data import TrainingSet, unpack_rules
from ibp.weights import load_guide, read_guide, read_policy, unpack_policy


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


@pytest.fixture
def undrawn(monkeypatch):
    """As if matplotlib were not there, which takes most of the time."""
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)


def test_training_learns(trained):
    header, *lines = curve_of(trained / "policy.csv")
    assert header == ["epoch", "loss", "held_out_loss", "top1", "top5", "top1_eliminations", "top1_scrambles", "guide"]
    assert [line[0] for line in lines] == ["1", "2"] and all(0 <= float(line[-1]) <= 1 for line in lines)
    assert float(lines[-1][1]) < 0.8 * float(lines[0][1]) and float(lines[-1][2]) < float(lines[0][2])
    assert (trained / "policy.pt").stat().st_size < 5_000_000
    record = unpack_policy((trained / "policy.pt").read_bytes())[1]
    assert record["families"] == {name: BUILT_IN_FAMILIES[name].identifier for name in ("bubble", "box")}
    guide = load_guide(read_guide(str(trained / "policy.pt"), BUILT_IN_FAMILIES["box"]))
    untrained = first_guide(0)
    assert all(np.abs(values - untrained[name].detach().numpy()).max() > 1e-4 for name, values in guide.items())


@pytest.mark.parametrize(("seed", "same"), [(0, True), (1, False)])
def test_training_is_the_same_for_the_same_seed(seed, same, trained, examples, tmp_path, undrawn):
    training = training_in(tmp_path, examples, seed=seed)
    assert training.run_epoch(lambda done, total: None)
    write_curve(training.curve, tmp_path / "c.csv")
    assert (curve_of(tmp_path / "c.csv") == curve_of(trained / "policy.csv")[:2]) == same


class Killed(BaseException):
    """In place of a signal that no program survives."""


def test_killed_training_goes_on_as_if_nothing_had_been(trained, examples, tmp_path, monkeypatch, undrawn):
    """Killed once a checkpoint is written, before its weights are."""
    original = Training.save

    def save(self):
        original(self)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Training, "save", save)
        run_training(training_in(tmp_path, examples))
    assert not (tmp_path / "policy.pt").exists()
    assert [line.partition(":")[0] for line in run_training(training_in(tmp_path, examples))] == ["epoch 2"]
    assert curve_of(tmp_path / "policy.csv") == curve_of(trained / "policy.csv")
    assert same_weights(tmp_path / "policy.pt", trained / "policy.pt")


def test_weights_are_written_where_nothing_is_left_to_train(trained, examples, tmp_path, undrawn):
    shutil.copy(trained / "training.checkpoint", tmp_path)
    assert run_training(training_in(tmp_path, examples)) == []
    assert same_weights(tmp_path / "policy.pt", trained / "policy.pt")


def test_checkpoint_of_another_training_is_refused(trained, examples, tmp_path):
    shutil.copy(trained / "training.checkpoint", tmp_path)
    others = [training_in(tmp_path, examples, **plan) for plan in ({"epochs": 4}, {"seed": 1}, {"learning_rate": 1e-3}, {})]
    others[-1].data.arrays["entries"] ^= 1
    for training in others:
        with pytest.raises(PolicyRefused, match="training.checkpoint: of a training with other data or options.*--fresh"):
            training.restore()


def test_diverging_training_stops_and_keeps_what_is_good(trained, examples, tmp_path, monkeypatch, undrawn):
    shutil.copy(trained / "policy.pt", tmp_path)
    with pytest.raises(ReductionError, match="not a number in the first epoch, nothing is kept.*--learning-rate"):
        run_training(training_in(tmp_path, examples, learning_rate=1e30))
    assert same_weights(tmp_path / "policy.pt", trained / "policy.pt")  # those that were there
    original = Training.run_epoch

    def run_epoch(self, tick):
        if len(self.curve) == 1:
            self.network["score"].bias.data *= math.nan
        return original(self, tick)

    with monkeypatch.context() as patch, pytest.raises(ReductionError, match="epoch 2; the weights of epoch 1 are kept in .*policy.pt"):
        patch.setattr(Training, "run_epoch", run_epoch)
        run_training(training_in(tmp_path, examples))
    assert read_policy(str(tmp_path / "policy.pt"), BUILT_IN_FAMILIES["box"])
    assert curve_of(tmp_path / "policy.csv") == curve_of(trained / "policy.csv")[:2]
    run_training(training_in(tmp_path, examples))
    assert same_weights(tmp_path / "policy.pt", trained / "policy.pt")


def test_curve_is_drawn_where_there_is_matplotlib(trained, tmp_path, undrawn, monkeypatch):
    line = dict.fromkeys((trained / "policy.csv").read_text().splitlines()[0].split(","), 1.0)
    write_curve([line], tmp_path / "c.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["c.csv"]
    monkeypatch.undo()
    pytest.importorskip("matplotlib")
    write_curve([line], tmp_path / "c.csv")
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("what", [*BAD_BYTES, "malicious", "nothing in it", "a list", "bad curve"])
@pytest.mark.filterwarnings("error")
def test_unusable_checkpoint_is_refused_in_one_line(what, trained, examples, place):
    import torch

    good = (trained / "training.checkpoint").read_bytes()
    state = torch.load(io.BytesIO(good), weights_only=True)
    foreign = {"malicious": state | {"more": Touches()}, "nothing in it": {}, "a list": [1], "bad curve": state | {"curve": [{}]}}
    Path("training.checkpoint").write_bytes(BAD_BYTES[what](good) if what in BAD_BYTES else saved(foreign[what]))
    with pytest.raises(PolicyRefused, match="training.checkpoint: damaged.*--fresh") as refused:
        training_in(place, examples).restore()
    assert "\n" not in str(refused.value) and not Path("broken-out").exists()


def test_the_command_trains_and_says_so(one_torch_thread, place, capsys, undrawn):
    words = ["train", "--family", "bubble", "--trajectories", "30", "--epochs", "1", "--device", "cpu"]
    Path("ibp_work").mkdir()
    Path("ibp_work/training.checkpoint").write_bytes(b"damaged")
    assert "training.checkpoint: damaged" in said(capsys, words, 2) and not Path("ibp_work/policy.pt").exists()
    printed = said(capsys, [*words, "--fresh"], 0)
    assert "positions of bubble to train on" in printed and "weights in ibp_work/policy.pt, curve in ibp_work/policy.csv" in printed
    assert read_policy("ibp_work/policy.pt", BUILT_IN_FAMILIES["bubble"]) and Path("ibp_work/policy.csv").exists()
    line = said(capsys, [*words, "--family", "box"], 2)
    assert line.count("\n") == 1 and "--family box" in line and "examples of bubble" in line and "command 'examples'" in line


BAD_SEARCHES = {
    "--engine=other": ("--engine other", "rules or beam"),
    "--engine=beam --policy=fixed --beam-width=0": ("--beam-width 0", "from 1"),
    "--engine=beam --policy=fixed --max-steps=0": ("--max-steps 0", "from 1"),
    "--engine=beam --policy=fixed --beam-order=other": ("--beam-order other", "weight, size or policy"),
    "--engine=beam --beam-width=many": ("--beam-width", "many"),
    "--engine=beam": ("nothing shipped/policy.pt", "No such file", "command 'train'", "--policy fixed"),
    "--engine=beam --policy=missing.pt": ("missing.pt", "No such file", "command 'train'"),
    "--engine=beam --policy=binary.txt": ("policy binary.txt", "not readable"),
    "--engine=beam --policy=directory": ("policy directory", "directory"),
    "--engine=beam --policy=": ("policy",),
    "--engine=beam --policy=fixed --paths=directory": ("--paths", "directory"),
    "--engine=beam --policy=fixed --paths=p --output=p": ("--paths", "--output"),
    "--engine=beam --policy=fixed --paths=good.txt --integrals=good.txt": ("--paths", "--integrals"),
    "verify missing": ("missing", "No such file"),
    "verify directory": ("directory",),
    "benchmark-search 0": ("N 0", "from 1"),
    "benchmark-search 2 --seed=-1": ("--seed -1",),
    "benchmark-search 2 --policy=missing.pt": ("missing.pt",),
    "train --device=other": ("--device other", "cpu"),
    "train --seed=-1": ("--seed -1",),
    "train --epochs=0": ("--epochs 0", "from 1"),
    "train --learning-rate=0": ("--learning-rate", "above 0"),
    "train --learning-rate=nan": ("--learning-rate", "above 0"),
    "train --policy=fixed": ("--policy fixed", "another name"),
    "train --policy=curve.csv": ("curve.csv", "files of their own"),
    "train --policy=same --training-data=same": ("same", "files of their own"),
    "train --policy=ibp_work/training.checkpoint": ("training.checkpoint", "files of their own"),
    "train --policy=directory": ("--policy directory", "regular file"),
    "train --training-data=directory": ("--training-data directory", "regular file"),
    'train --work-dir="a file"': ("--work-dir", "a file"),
    "examples --trajectories=0": ("--trajectories 0", "from 1"),
    "examples --condor": ("--condor is no option of examples",),
    "examples --family=bubble,other": ("'other'", "bubble"),
    "examples --family=bubble,": ("family",),
    "examples --family=bubble,bubble.json": ("two families of the same name",),
}  # fmt: skip


@pytest.mark.parametrize("command", BAD_SEARCHES)
def test_bad_search_or_training_is_refused_in_one_line_and_nothing_is_written(command, place, capsys):
    write_input_files(place)
    default = ["--integral=1,1,1,1,1,1,-1"] * (command.startswith("--") and "--integ" not in command)
    check_refused(shlex.split(command) + default, place, capsys, BAD_SEARCHES[command])


@pytest.mark.parametrize("words", [["train"], [*BUBBLE, "--exact"]], ids=["training", "exact run"])
def test_a_missing_device_is_refused(words, place, capsys, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check_refused([*words, "--device", "cuda"], place, capsys, ["--device cuda", "no GPU"])
