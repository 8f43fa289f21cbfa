"""Histories: a run that was killed anywhere goes on, damage and other runs are refused."""

import os
import subprocess
import sys

import numpy as np
import pytest
from support import HERE
from support_explorer import KILLED, SMALL_BOX, make_run, run_toy

from executors.errors import DirectoryRefused
from phases.errors import InputError
from phases.history import History, read_history


def known(run):
    """All that a run amounts to, without times and places."""
    keys = ("phase", "confidence", "energy", "failure")
    told = {id: [event.get(key) for key in keys] for id, event in run.told.items()}
    return run.explorer.points, told, run.explorer.answers, run.explorer.iterations


def test_killed_and_resumed_run_is_the_undisturbed_one(tmp_path):
    plain = run_toy(tmp_path / "plain")
    path, rng, environment = tmp_path / "killed", np.random.default_rng(3), os.environ | {"TMPDIR": str(tmp_path / "scratch")}
    (tmp_path / "scratch").mkdir()
    for _ in range(6):
        code = KILLED.format(here=[str(HERE), str(HERE / "tests")], path=str(path), after=rng.integers(1, 8), share=rng.random())
        process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
        assert process.returncode == -9, process.stderr
    assert known(run_toy(path)) == known(plain) == known(read_history(path))
    assert not list((tmp_path / "scratch").iterdir())
    points, content = plain.explorer.points, (path / "history.jsonl").read_bytes()
    assert len(points) == 8 + 3 * 5 and {p.name for p in (path / "spins").iterdir()} == {f"{p.id}.npz" for p in points}
    spins, positions = plain.spins(3)
    assert spins.shape == (8, 3) and positions.shape == (8, 2) and np.load(path / "spins" / "3.npz")["spins"].dtype == np.float32
    (path / "state.json").write_text("of version 0.1")
    assert known(run_toy(path)) == known(plain) and (path / "history.jsonl").read_bytes() == content  # a finished one stays as it is


def test_torn_line_at_every_byte(tmp_path):
    run_toy(tmp_path / "run")
    path = tmp_path / "run" / "history.jsonl"
    content = path.read_bytes()
    content = content[: content.index(b"\n", content.rfind(b'{"event":"told"')) + 1]
    last = content.rfind(b"\n", 0, -1) + 1
    before = content.rfind(b"\n", 0, last - 1) + 1
    for end in [*range(before, len(content) + 1), *range(0, content.find(b"\n") + 1, 7)]:
        path.write_bytes(content[:end])
        history = History(tmp_path / "run", SMALL_BOX, {"L": 2}, 7)
        sound = content[: content.rfind(b"\n", 0, end) + 1] or content[: content.find(b"\n") + 1]
        assert path.read_bytes() == sound and len(history.past) == sound.count(b"\n") - 1
        history.file.close()


def test_damage_and_foreign_histories_are_refused(tmp_path):
    run_toy(tmp_path)
    path = tmp_path / "history.jsonl"
    content = path.read_bytes()
    changes = [{"L": 3}, {"seed": 8}, {"parameters": {"x": (-1, 1), "y": (0, 6)}}, {"parameters": {"y": (0, 5), "x": (-1, 1)}}]
    for change in [*changes, {"model": {"mode": "fast"}}]:
        with pytest.raises(InputError, match="of another run") as error:
            make_run(tmp_path, **({"seed": 7} | change))
        assert "\n" not in str(error.value) and path.read_bytes() == content
    damaged = content.replace(b'"asked"', b'"axked"', 1)
    for other in (damaged, b"my notes", b"my notes\n", b"{}\n" + content, content.replace(b'"version":1', b'"version":2')):
        path.write_bytes(other)
        for reader in (lambda: make_run(tmp_path, seed=7), lambda: read_history(tmp_path)):
            with pytest.raises(InputError):
                reader()
        assert path.read_bytes() == other


def test_directory_in_use(tmp_path):
    with make_run(tmp_path), pytest.raises(DirectoryRefused, match="in use"):
        make_run(tmp_path)
    make_run(tmp_path).close()
