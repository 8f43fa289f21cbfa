"""Directories that are private and claimed by one controller."""

import contextlib
import json
import os
import re
import subprocess
import sys

import pytest
from support import HERE

from executors.directories import claim_directory, private_directory
from executors.errors import DirectoryRefused, ExecutorError


def test_a_claimed_directory_is_private(tmp_path):
    with claim_directory(tmp_path / "a" / "b") as path:
        assert path == tmp_path / "a" / "b" and path.stat().st_mode & 0o777 == 0o700
        controller = json.loads((path / "controller.json").read_text(encoding="utf-8"))
        assert controller["pid"] == os.getpid() and controller.keys() >= {"host", "pid", "started", "command"}
    with claim_directory(tmp_path / "a" / "b"):
        pass


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777, 0o1777])
def test_a_directory_that_others_may_write_to_is_refused(tmp_path, mode):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(mode)
    for use in private_directory, lambda path: claim_directory(path).__enter__():
        with pytest.raises(DirectoryRefused, match=r"open.*others.*chmod go-w") as info:
            use(tmp_path / "open")
        assert "\n" not in str(info.value) and isinstance(info.value, ExecutorError)


def test_a_directory_that_others_may_read_is_made_private_or_left(tmp_path):
    (tmp_path / "readable").mkdir(mode=0o755)
    assert private_directory(tmp_path / "readable") == tmp_path / "readable"


def test_what_is_not_our_directory_is_refused(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "foreign").mkdir()
    cases = ["file", "file/below"]
    if os.geteuid() == 0:
        os.chown(tmp_path / "foreign", 12345, -1)
        cases.append("foreign")
    for name in cases:
        with pytest.raises(DirectoryRefused, match=name.partition("/")[0]) as info:
            private_directory(tmp_path / name)
        assert "\n" not in str(info.value)


CLAIM = """
import sys
from executors.directories import claim_directory
with claim_directory(sys.argv[1]):
    print('claimed', flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def claimed_elsewhere(path):
    """A process that holds the claim on a directory; it is killed at the end."""
    process = subprocess.Popen([sys.executable, "-c", CLAIM, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=HERE)
    try:
        assert process.stdout.readline() == "claimed\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_second_claim_names_the_first(tmp_path):
    with (
        claim_directory(tmp_path / "mine"),
        pytest.raises(DirectoryRefused, match=rf"\b{os.getpid()}\b"),
        claim_directory(tmp_path / "mine"),
    ):
        pass
    with claimed_elsewhere(tmp_path / "mine") as process:
        with pytest.raises(DirectoryRefused, match=rf"(?=.*{re.escape(os.uname().nodename)})(?=.*\b{process.pid}\b)") as info:
            claim_directory(tmp_path / "mine").__enter__()
        assert "\n" not in str(info.value)
    with claim_directory(tmp_path / "mine"):  # free again after a SIGKILL
        with pytest.raises(DirectoryRefused):
            claim_directory(tmp_path / "mine").__enter__()
        with claim_directory(tmp_path / "other"):
            pass


def test_a_claim_by_a_path_that_looks_different(tmp_path):
    (tmp_path / "mine").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    with claim_directory(tmp_path / "mine"), pytest.raises(DirectoryRefused), claim_directory(tmp_path / "link"):
        pass


def test_a_claim_where_native_locks_fail(tmp_path, monkeypatch):
    filelock = pytest.importorskip("filelock")

    class NoLocks(filelock.FileLock):
        def _acquire(self):
            raise NotImplementedError("FileSystem does not appear to support flock; use SoftFileLock instead")

    monkeypatch.setattr(filelock, "FileLock", NoLocks)
    with claim_directory(tmp_path / "mine"):
        assert (tmp_path / "mine" / "controller.softlock").exists()
        with pytest.raises(DirectoryRefused, match=str(os.getpid())):
            claim_directory(tmp_path / "mine").__enter__()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / "mine" / "controller.softlock").write_text(f"{dead.pid}\n{os.uname().nodename}\n", encoding="utf-8")
    controller = {"host": os.uname().nodename, "pid": dead.pid, "started": 0, "command": "x"}
    (tmp_path / "mine" / "controller.json").write_text(json.dumps(controller), encoding="utf-8")
    with claim_directory(tmp_path / "mine"):  # taken over: its holder is dead
        pass


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"pid": []}'])
def test_a_claim_beside_a_damaged_controller_file(tmp_path, content):
    with claimed_elsewhere(tmp_path / "mine"):
        path = tmp_path / "mine" / "controller.json"
        path.unlink() if content is None else path.write_text(content, encoding="utf-8")
        with pytest.raises(DirectoryRefused, match="mine") as info:
            claim_directory(tmp_path / "mine").__enter__()
        assert "\n" not in str(info.value)
