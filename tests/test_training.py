"""training."""

import importlib.util
import io
import json
import math
import os
import pickle
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import BUBBLE, TRIANGLEBOX, check_refused, ended, exit_code, flipped, patch_rooms, python, reduced, said, write_input_files
from support_oracles import EXAMPLES, ROUNDED, TRAIN, positions_on_the_way

import ibp.examples
from ibp.examples import SAMPLE_WIDTHS, Example
from ibp.families import BUILT_IN_FAMILIES
from ibp.learning import measure_policy, position_losses
from ibp.policy import Policy, action_scores, make_network, pack_policy
from ibp.training import TRAINING_CURVE, Training, write_curve
from ibp.training_data import TrainingSet, pack_samples, sector_samples
from ibp.weights import read_policy, unpack_policy


def test_examples_are_the_same_for_the_same_seed(examples, place):
    for words, same in ([], True), (["--local", "2"], True), (["--seed", "1"], False):
        assert exit_code([*EXAMPLES, "--work-dir", "w", *words]) == 0
        assert (Path("w/training.npz").read_bytes() == examples.read_bytes()) == same


def test_no_target_is_both_held_out_and_trained_on(monkeypatch):
    followed, original = [], ibp.examples.follow

    def follow(ground, position, left, rng, limit):
        followed.append((tuple(ground.target.tolist()), limit is None))
        return original(ground, position, left, rng, limit)

    patch_rooms(monkeypatch, "ibp", "follow", follow)
    for seed in 0, 1:
        data = sector_samples(BUILT_IN_FAMILIES["sunrise"], 7, 60, seed)
        assert 0 < data["held_out"].sum() < len(data["held_out"]) / 3
        for number in set(data["trajectory"].tolist()):
            assert len(set(data["held_out"][data["trajectory"] == number].tolist())) == 1
    held, shown = ({target for target, out in followed if out == wanted} for wanted in (True, False))
    assert held and shown and not held & shown
    assert len(followed) > len(held) + len(shown)  # targets recur, so it says something


def test_batches_are_what_the_search_sees(examples, network):
    """Scores of samples from the file equal those of the positions they were made of."""
    parts = positions_on_the_way("box", (2, 1, 1, 2)) + positions_on_the_way("box", (1, 2, 2, 1))
    samples = [Example(part, np.arange(len(part.actions)) == 1) for part in parts]
    data = TrainingSet(examples)
    data.arrays = pack_samples(samples)
    data.begin = {name: np.cumsum(data.arrays[f"{name}_count"]) - data.arrays[f"{name}_count"] for name in SAMPLE_WIDTHS}
    order = np.array([2, 0, 1])
    batch = data.batch(order)
    scores = action_scores(network, batch)
    losses = position_losses(scores, batch).detach().numpy()
    expected = [-Policy(network).scores([parts[number]])[0][1] for number in order]
    assert np.abs(losses - expected).max() < ROUNDED


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


def curve_of(table):
    """The lines of a curve without the seconds."""
    return [[value for number, value in enumerate(line.split(",")) if number != 1] for line in Path(table).read_text().splitlines()]


def weights_in(path):
    return {name: values.numpy() for name, values in unpack_policy(Path(path).read_bytes())[0].state_dict().items()}


def same_weights(one, other):
    one, other = weights_in(one), weights_in(other)
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_training_learns(trained):
    header, *lines = curve_of(trained / "policy.csv")
    assert header == ["epoch", "loss", "held_out_loss", "top1", "top5", "top1_eliminations", "top1_scrambles", "guide"]
    assert [line[0] for line in lines] == ["1", "2", "3"]
    assert float(lines[-1][1]) < 0.8 * float(lines[0][1]) and float(lines[-1][2]) < float(lines[0][2])
    assert (trained / "policy.pt").stat().st_size < 5_000_000
    record = unpack_policy((trained / "policy.pt").read_bytes())[1]
    assert record["families"] == {name: BUILT_IN_FAMILIES[name].identifier for name in ("bubble", "box")}


def test_training_on_examples_of_another_family_is_refused(examples, place, capsys):
    for family in "sunrise", "box":
        line = said(capsys, [*TRAIN, "--family", family, "--training-data", str(examples)], 2)
        assert (
            line.count("\n") == 1 and f"--family {family}" in line and "examples of bubble, box" in line and "--make-training-data" in line
        )
    assert not Path("ibp_work/policy.pt").exists()
    assert exit_code([*TRAIN, "--epochs", "1", "--family", "box,bubble", "--training-data", str(examples)]) == 0


@pytest.mark.parametrize(("seed", "same"), [("0", True), ("1", False)])
def test_training_is_the_same_for_the_same_seed(seed, same, trained, examples, place):
    assert exit_code([*TRAIN, "--training-data", str(examples), "--seed", seed]) == 0
    assert same_weights("ibp_work/policy.pt", trained / "policy.pt") == same
    assert (curve_of("ibp_work/policy.csv") == curve_of(trained / "policy.csv")) == same


# training that stops once a checkpoint is written, before its weights are, until it gets a line
TRAIN_HELD = """
import sys, ibp_reduce
original = Training.save

def save(self):
    original(self)
    if len(self.curve) == int(sys.argv[1]):
        print('held', flush=True)
        sys.stdin.readline()

Training.save = save
sys.exit(ibp_reduce.main(sys.argv[2:]))
"""


@pytest.mark.parametrize("epoch", [1, 3])
def test_killed_training_goes_on_as_if_nothing_had_been(epoch, trained, examples, bare, place, capsys):
    words = [*TRAIN, "--training-data", str(examples)]
    environment = os.environ | {"PYTHONPATH": str(bare), "OMP_NUM_THREADS": "1"}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    command = [sys.executable, "-c", TRAIN_HELD, str(epoch), *words]
    with ended(subprocess.Popen(command, cwd=place, env=environment, text=True, **pipes)) as run:
        assert run.stdout.readline() == "held\n", run.communicate()
        run.kill()
    assert Path("ibp_work/policy.pt").exists() == (epoch > 1)
    assert exit_code(words) == 0
    assert curve_of("ibp_work/policy.csv") == curve_of(trained / "policy.csv")
    assert same_weights("ibp_work/policy.pt", trained / "policy.pt")
    refusal = said(capsys, [*words, "--epochs", "4"], 2)
    assert refusal.count("\n") == 1 and "training.checkpoint" in refusal and "--fresh" in refusal
    other = said(capsys, [*TRAIN, "--make-training-data", "--family", "bubble", "--trajectories", "40"], 2)
    assert other.count("\n") == 1 and "training.checkpoint" in other and "other data" in other
    Path("ibp_work/policy.pt").unlink()
    assert exit_code(words) == 0 and same_weights("ibp_work/policy.pt", trained / "policy.pt")  # nothing left to train: there all the same


def test_diverging_training_stops_and_keeps_what_is_good(trained, examples, place, capsys, monkeypatch):
    words = [*TRAIN, "--training-data", str(examples), "--policy", "mine.pt"]
    shutil.copy(trained / "policy.pt", "mine.pt")
    line = said(capsys, [*words, "--learning-rate", "1e30"], 1)
    assert line.count("\n") == 1 and "not a number in the first epoch" in line and "--learning-rate" in line
    assert same_weights("mine.pt", trained / "policy.pt")  # those that were there

    original = Training.run_epoch

    def run_epoch(self, tick):
        if len(self.curve) == 1:
            self.network["score"].bias.data *= math.nan
        return original(self, tick)

    monkeypatch.setattr(Training, "run_epoch", run_epoch)
    line = said(capsys, words, 1)
    assert line.count("\n") == 1 and "epoch 2" in line and "epoch 1 are kept in mine.pt" in line
    assert read_policy("mine.pt", TRIANGLEBOX) and curve_of("mine.csv") == curve_of(trained / "policy.csv")[:2]
    monkeypatch.undo()
    monkeypatch.chdir(place)
    assert exit_code(words) == 0 and same_weights("mine.pt", trained / "policy.pt")


def test_curve_is_drawn_where_there_is_matplotlib(trained, monkeypatch, tmp_path):
    matplotlib = importlib.util.find_spec("matplotlib")
    picture = trained / "policy.png"
    assert picture.exists() == bool(matplotlib) and (not matplotlib or picture.read_bytes().startswith(b"\x89PNG"))
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    line = dict.fromkeys(TRAINING_CURVE, 1.0)
    write_curve([line], tmp_path / "c.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["c.csv"]


class Malicious:
    """A pickle that leaves a trace if it is loaded."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def saved(value):
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def record_with(change):
    """A weights file of a small network after a change of its record."""
    import torch

    torch.manual_seed(0)
    record = torch.load(io.BytesIO(pack_policy(make_network(4), {}, {})), weights_only=True)
    return saved(change(record))


def state_with(change):
    return record_with(lambda record: record | {"state": change(record["state"])})


def bit_flipped(data):
    return flipped(data, data.index(b"state") + len(data) // 2)


BAD_WEIGHTS = {
    "empty": (lambda: b"", "not readable"),
    "text": (lambda: b"hello\n", "not readable"),
    "truncated": (lambda: record_with(dict)[:-500], "not readable"),
    "half": (lambda: record_with(dict)[:700], "not readable"),
    "bit": (lambda: bit_flipped(record_with(dict)), "not readable"),
    "bare pickle": (lambda: pickle.dumps(Malicious()), "not readable"),
    "malicious": (lambda: record_with(lambda r: r | {"more": Malicious()}), "not readable"),
    "another archive": (lambda: saved([1, 2]), "no policy"),
    "another kind": (lambda: record_with(lambda r: r | {"kind": "other"}), "no policy"),
    "format": (lambda: record_with(lambda r: r | {"format": 2}), "format 2"),
    "no format": (lambda: record_with(lambda r: {k: v for k, v in r.items() if k != "format"}), "format None"),
    "tensor for a format": (lambda: record_with(lambda r: r | {"format": next(iter(r["state"].values()))}), "format"),
    "another width": (lambda: record_with(lambda r: r | {"width": 5}), "damaged"),
    "vast": (lambda: record_with(lambda r: r | {"width": 10**7}), "damaged"),
    "no width": (lambda: record_with(lambda r: r | {"width": "4"}), "damaged"),
    "families": (lambda: record_with(lambda r: r | {"families": [1]}), "damaged"),
    "missing tensor": (lambda: state_with(lambda s: dict(list(s.items())[1:])), "damaged"),
    "nan": (lambda: state_with(lambda s: {k: v * math.nan for k, v in s.items()}), "not finite"),
    "complex": (lambda: state_with(lambda s: {k: v * 1j for k, v in s.items()}), "damaged"),
    "integers": (lambda: state_with(lambda s: {k: v.int() for k, v in s.items()}), "damaged"),
    "of another family": (lambda: record_with(lambda r: r | {"families": {"bubble": "other"}}), "another family that is called bubble"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_WEIGHTS)
@pytest.mark.filterwarnings("error")
def test_unusable_weights_are_refused_in_one_line(what, place, capsys):
    make, fragment = BAD_WEIGHTS[what]
    Path("w.pt").write_bytes(make())
    check_refused([*BUBBLE, "--engine", "beam", "--policy", "w.pt"], place, capsys, ["policy w.pt", fragment])


def test_good_weights_are_taken(place):
    Path("w.pt").write_bytes(record_with(dict))
    assert reduced(*BUBBLE, "--engine", "beam", "--policy", "w.pt", "--beam-width", "2")["success"]


def arrays_with(**changes):
    """Training data in which arrays were changed: by a function, or left out by None."""

    def change(arrays):
        return {name: changes.get(name, lambda array: array)(array) for name, array in arrays.items() if changes.get(name, 1) is not None}

    return change


def header_with(**changes):
    return arrays_with(header=lambda array: np.array(json.dumps(json.loads(str(array)) | changes)))


BAD_EXAMPLES = {
    "no held_out": arrays_with(held_out=None),
    "no scrambled": arrays_with(scrambled=None),
    "no header": arrays_with(header=None),
    "held_out numbers": arrays_with(held_out=lambda a: a.astype(int)),
    "held_out short": arrays_with(held_out=lambda a: a[:-1]),
    "all held out": arrays_with(held_out=lambda a: a | True),
    "scrambled short": arrays_with(scrambled=lambda a: a[:3]),
    "owners too large": arrays_with(action=lambda a: a + np.int16(100)),
    "owners negative": arrays_with(action=lambda a: a - np.int16(5)),
    "right numbers": arrays_with(right=lambda a: a.astype(np.int8)),
    "nothing right": arrays_with(right=lambda a: a & False),
    "entries floats": arrays_with(entries=lambda a: a * math.nan),
    "entries short": arrays_with(entries=lambda a: a[:-1]),
    "entries flat": arrays_with(entries=np.ravel),
    "entries a number": arrays_with(entries=lambda a: np.array(3)),
    "counts zero": arrays_with(actions_count=lambda a: a * np.int32(0)),
    "counts negative": arrays_with(entries_count=lambda a: np.concatenate([[-1, a[0] + a[1] + 1], a[2:]]).astype(np.int32)),
    "counts rolled": arrays_with(indices_count=lambda a: np.roll(a, 1)),
    "counts too many": arrays_with(open_count=lambda a: np.append(a, np.int32(0))),
    "format": header_with(format=9),
    "format of the policy": header_with(policy=9),
    "families": header_with(families=["bubble"]),
    "families' names": header_with(families={"bubble": 3}),
    "header a list": arrays_with(header=lambda a: np.array("[1]")),
    "header broken": arrays_with(header=lambda a: np.array("{")),
    "header deep": arrays_with(header=lambda a: np.array("[" * 100_000)),
    "header malicious": arrays_with(header=lambda a: np.array([Malicious()], object)),
}
BAD_BYTES = {
    "empty": lambda data: b"",
    "text": lambda data: b"hello\n",
    "truncated": lambda data: data[:-300],
    "half": lambda data: data[: len(data) // 2],
    "bit": lambda data: flipped(data, len(data) // 2),
    "pickle": lambda data: pickle.dumps(Malicious()),
}


@pytest.mark.parametrize("what", [*BAD_EXAMPLES, *BAD_BYTES, "an array alone"])
@pytest.mark.filterwarnings("error")
def test_unusable_examples_are_refused_in_one_line(what, examples, place, capsys):
    if what in BAD_EXAMPLES:
        with np.load(examples) as file:
            np.savez("t.npz", **BAD_EXAMPLES[what](dict(file)))
    elif what in BAD_BYTES:
        Path("t.npz").write_bytes(BAD_BYTES[what](examples.read_bytes()))
    else:
        np.save("t.npy", np.arange(3))
        os.rename("t.npy", "t.npz")
    line = said(capsys, [*TRAIN, "--training-data", "t.npz"], 2)
    assert line.count("\n") == 1 and "training data t.npz" in line and len(line) < 300
    assert not Path("executed").exists() and not Path("ibp_work/policy.pt").exists()


@pytest.mark.parametrize("what", [*BAD_BYTES, "malicious", "nothing in it", "a list", "bad curve"])
@pytest.mark.filterwarnings("error")
def test_unusable_checkpoint_is_refused_in_one_line(what, trained, examples, place, capsys):
    import torch

    good = (trained / "w/training.checkpoint").read_bytes()
    state = torch.load(io.BytesIO(good), weights_only=True)
    foreign = {"malicious": state | {"more": Malicious()}, "nothing in it": {}, "a list": [1], "bad curve": state | {"curve": [{}]}}
    Path("ibp_work").mkdir()
    checkpoint = Path("ibp_work/training.checkpoint")
    checkpoint.write_bytes(BAD_BYTES[what](good) if what in BAD_BYTES else saved(foreign[what]))
    words = [*TRAIN, "--training-data", str(examples)]
    line = said(capsys, words, 2)
    assert line.count("\n") == 1 and "ibp_work/training.checkpoint: damaged" in line and "--fresh" in line and len(line) < 300
    assert not Path("executed").exists()
    if what == "bit":
        assert exit_code([*words, "--fresh"]) == 0 and same_weights("ibp_work/policy.pt", trained / "policy.pt")


BAD_SEARCHES = {
    "--engine=other": ("--engine other", "rules or beam"),
    "--engine=beam --policy=fixed --beam-width=0": ("--beam-width 0", "at least 1"),
    "--engine=beam --policy=fixed --beam_width=-2": ("--beam-width -2", "at least 1"),
    "--engine=beam --policy=fixed --max-steps=0": ("--max-steps 0", "at least 1"),
    "--engine=beam --policy=fixed --beam-order=other": ("--beam-order other", "weight, size, policy"),
    "--engine=beam --beam-width=many": ("--beam-width", "many"),
    "--engine=beam": ("nothing shipped/policy.pt", "No such file", "--train-policy", "--policy fixed"),
    "--engine=beam --policy=missing.pt": ("missing.pt", "No such file", "--train-policy"),
    "--engine=beam --policy=directory": ("policy directory", "directory"),
    "--engine=beam --policy=": ("policy",),
    "--engine=beam --policy=fixed --paths=directory": ("--paths", "directory"),
    "--engine=beam --policy=fixed --paths=p --output=p": ("--paths", "--output"),
    "--engine=beam --policy=fixed --paths=good.txt --integrals=good.txt": ("--paths", "--integrals"),
    "--replay=missing": ("--replay missing", "No such file"),
    "--replay=directory": ("--replay directory", "directory"),
    "--replay=binary.txt": ("--replay binary.txt", "damaged"),
    "--benchmark-search=0": ("--benchmark-search 0", "at least 1"),
    "--benchmark-search=-3": ("--benchmark-search -3", "at least 1"),
    "--benchmark-search=2 --seed=-1": ("--seed -1",),
    "--benchmark-search=2 --policy=missing.pt": ("missing.pt",),
    "--train-policy --device=other": ("--device other", "cpu"),
    "--train-policy --seed=-1": ("--seed -1",),
    "--train-policy --epochs=0": ("--epochs", "above 0"),
    "--train-policy --learning-rate=0": ("--learning-rate", "above 0"),
    "--train-policy --learning-rate=nan": ("--learning-rate", "above 0"),
    "--train-policy --learning-rate=inf": ("--learning-rate", "above 0"),
    "--train-policy --policy=fixed": ("--policy fixed", "another name"),
    "--train-policy --policy=curve.csv": ("curve.csv", "files of their own"),
    "--train-policy --policy=curve.png": ("curve.png", "files of their own"),
    "--train-policy --policy=same --training-data=same": ("same", "files of their own"),
    "--train-policy --policy=ibp_work/training.checkpoint": ("training.checkpoint", "files of their own"),
    "--train-policy --policy=directory": ("--policy directory", "regular file"),
    "--train-policy --training-data=directory": ("--training-data directory", "regular file"),
    '--train-policy --work-dir="a file"': ("--work-dir", "a file"),
    "--make-training-data --trajectories=0": ("--trajectories", "above 0"),
    "--verify=x --local=0": ("--local 0", "at least 1"),
    "--make-training-data --local=0": ("--local 0", "at least 1"),
    "--make-training-data --condor": ("--make-training-data", "--condor", "on this machine"),
    "--make-training-data --family=bubble,other": ("'other'", "bubble"),
    "--make-training-data --family=bubble,": ("family",),
    "--make-training-data --family=bubble,bubble.json": ("two families of the same name",),
}  # fmt: skip


@pytest.mark.parametrize("command", BAD_SEARCHES)
def test_bad_search_or_training_is_refused_in_one_line_and_nothing_is_written(command, place, capsys):
    write_input_files(place)
    default = (
        [] if any(word in command for word in ("--train", "--make", "--repl", "--bench", "--integ")) else ["--integral=1,1,1,1,1,1,-1"]
    )
    check_refused(shlex.split(command) + default, place, capsys, BAD_SEARCHES[command])


def test_training_on_a_missing_device_is_refused(place, capsys, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check_refused(["--train-policy", "--device", "cuda"], place, capsys, ["--device cuda", "no GPU"])


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
import ibp.examples
import ibp_reduce
sys.exit(ibp_reduce.main(sys.argv[1:]))
"""


def test_without_torch_there_is_one_line_or_no_need_for_it(trained, bare, place):
    for words in [*BUBBLE, "--engine", "beam", "--policy", str(trained / "policy.pt")], TRAIN:
        run = python(bare, place, WITHOUT_TORCH, *words)
        assert (run.returncode, run.stdout) == (2, "") and run.stderr.count("\n") == 1
        assert "torch is missing" in run.stderr and "pip install torch" in run.stderr
    for words in [*BUBBLE, "--quiet"], [*BUBBLE, "--engine", "beam", "--policy", "fixed", "--no-rules", "--quiet"]:
        assert python(bare, place, WITHOUT_TORCH, *words).returncode == 0
