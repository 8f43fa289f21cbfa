"""history."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support import HERE
from support_explorer import KILLED, SMALL_BOX, make_run, run_toy

from executors.errors import DirectoryRefused
from phases.errors import InputError
from phases.history import History


def test_killed_and_resumed_run_is_the_undisturbed_one(tmp_path):
    plain = run_toy(tmp_path / "plain")
    path, rng, environment = tmp_path / "killed", np.random.default_rng(3), os.environ | {"TMPDIR": str(tmp_path / "scratch")}
    (tmp_path / "scratch").mkdir()
    for _ in range(6):
        code = KILLED.format(module=Path(__file__).stem, here=str(HERE), path=str(path), after=rng.integers(1, 8), share=rng.random())
        process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
        assert process.returncode == -9, process.stderr
    again = run_toy(path)
    assert not list((tmp_path / "scratch").iterdir())
    assert again.points == plain.points and again.answers == plain.answers and again.iterations == plain.iterations
    assert len(plain.points) == 8 + 3 * 5 and {p.name for p in (path / "spins").iterdir()} == {f"{p.id}.npz" for p in plain.points}
    stored = np.load(path / "spins" / "3.npz")
    assert stored["spins"].dtype == np.float32 and stored["spins"].shape == (8, 3)
    assert run_toy(path).points == plain.points  # and a finished one stays as it is


def test_torn_line_at_every_byte(tmp_path):
    whole = run_toy(tmp_path / "run")
    path = tmp_path / "run" / "history.jsonl"
    content = path.read_bytes()
    content = content[: content.index(b"\n", content.rfind(b'{"event":"told"')) + 1]
    last = content.rfind(b"\n", 0, -1) + 1
    before = content.rfind(b"\n", 0, last - 1) + 1
    for end in [*range(before, len(content) + 1), *range(0, content.find(b"\n") + 1, 7)]:
        for file in (tmp_path / "run").glob("state.json"):
            file.unlink()
        path.write_bytes(content[:end])
        history = History(tmp_path / "run", SMALL_BOX, {"L": 2}, 7)
        sound = content[: content.rfind(b"\n", 0, end) + 1] or content[: content.find(b"\n") + 1]
        assert path.read_bytes() == sound and len(history.past) == sound.count(b"\n") - (end <= content.find(b"\n"))
        history.close()
    assert whole.points


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
        with pytest.raises(InputError):
            make_run(tmp_path, seed=7)
        assert path.read_bytes() == other
    path.write_bytes(content)
    (tmp_path / "state.json").write_bytes(b"nonsense")
    with make_run(tmp_path, seed=7) as run:
        assert len(run.explorer.points) == 23


def test_snapshot_and_history_tell_the_same(tmp_path):
    whole = run_toy(tmp_path)
    state = json.loads((tmp_path / "state.json").read_text())
    assert state["offset"] == (tmp_path / "history.jsonl").stat().st_size
    with make_run(tmp_path, seed=7) as fast:
        pass
    (tmp_path / "state.json").unlink()
    with make_run(tmp_path, seed=7) as slow:
        pass
    for run in (fast, slow):
        assert (run.explorer.points, run.explorer.answers, run.explorer.iterations) == (whole.points, whole.answers, whole.iterations)


def test_directory_in_use(tmp_path):
    with make_run(tmp_path), pytest.raises(DirectoryRefused, match="in use"):
        make_run(tmp_path)
    make_run(tmp_path).close()
