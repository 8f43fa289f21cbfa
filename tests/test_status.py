"""What a run's files say of it."""

import json
import os

import pytest
from support import run_steps

from ibp.errors import InputError, ReductionError
from ibp.run_directory import RunDirectory
from ibp.status import STATUS_TRUSTED_S, status_text

HERE = os.uname().nodename


@pytest.fixture
def unfinished(shelves, tmp_path):
    """The directory of a run whose journal is still there, claimed by this process."""
    run_steps(tmp_path, "bubble", [(3, 2)], shelves=shelves)
    (tmp_path / "controller.json").write_text(json.dumps({"pid": os.getpid(), "host": HERE}))
    return RunDirectory(tmp_path)


@pytest.mark.parametrize(
    ("host", "age_s", "alive"), [(HERE, 0, True), (HERE, 1e4, True), ("elsewhere", 0, True), ("elsewhere", STATUS_TRUSTED_S + 9, False)]
)
def test_who_is_at_work_is_seen_here_and_judged_by_age_elsewhere(host, age_s, alive, unfinished):
    status = json.loads(unfinished.status.read_text())
    unfinished.status.write_text(json.dumps(status | {"time": status["time"] - age_s}))
    (unfinished.path / "controller.json").write_text(json.dumps({"pid": os.getpid(), "host": host}))
    text, found = status_text(unfinished)
    assert found == alive and f"on {host}, {'at work' if alive else 'GONE'}" in text and ("pace" in text) == alive
    assert "I[3,2] of bubble" in text and ("same command" in text) != alive


DAMAGES = [("status.json", text) for text in (b"", b"{", b"[]", b'{"time": 3}', b'{"format": 1}', b"\xff")]
DAMAGES += [("controller.json", text) for text in (b"", b"{}", b'{"host": "%s", "pid": 1e99}' % HERE.encode())]


@pytest.mark.parametrize(("name", "content"), DAMAGES, ids=str)
def test_damage_is_said_in_one_line(name, content, unfinished):
    (unfinished.path / name).write_bytes(content)
    with pytest.raises(ReductionError, match=name) as caught:
        status_text(unfinished)
    assert "\n" not in str(caught.value)


def test_where_no_run_was_started(tmp_path):
    with pytest.raises(InputError, match="holds no run"):
        status_text(RunDirectory(tmp_path / "nowhere"))
