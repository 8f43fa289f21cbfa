"""Directories of a run: private to us, and claimed by one controller at a time."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path

from executors.errors import DirectoryRefused
from executors.files import replace_file


def private_directory(path) -> Path:
    """A directory that only we may write to, made if need be. Raises DirectoryRefused."""
    path = Path(path).absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        found = path.stat()
    except OSError as error:
        raise DirectoryRefused(f"{path} cannot be used ({error.strerror}); choose another directory") from error
    if not path.is_dir():
        raise DirectoryRefused(f"{path} is not a directory; choose another")
    if found.st_uid != os.geteuid():
        raise DirectoryRefused(f"{path} belongs to somebody else (user id {found.st_uid}); choose another")
    if found.st_mode & 0o022:
        raise DirectoryRefused(f"{path} may be written by others; chmod go-w it, or choose another")
    return path


@contextlib.contextmanager
def claim_directory(path):
    """A private_directory that no other controller uses within the block. Raises DirectoryRefused."""
    path = private_directory(path)
    lock = _lock_directory(path)
    try:
        claim = {"host": os.uname().nodename, "pid": os.getpid(), "started": time.time(), "command": " ".join(sys.argv)}
        replace_file(path / "controller.json", json.dumps(claim).encode())
        yield path
    finally:
        lock.release()


def _lock_directory(path):
    """The lock of a directory, acquired. Native locks go with their process; where there are none, a file stands for one."""
    from filelock import FileLock, SoftFileLock, Timeout

    host, pid = read_claim(path)
    try:
        try:
            return _acquired(FileLock(path / "controller.lock"))
        except Timeout:  # an OSError too
            raise
        except PermissionError as error:
            raise DirectoryRefused(
                f"{error.filename} cannot be opened ({error.strerror}); chmod it, or choose another directory"
            ) from error
        except (NotImplementedError, OSError):
            if host == os.uname().nodename and not process_exists(pid):
                (path / "controller.softlock").unlink(missing_ok=True)
            return _acquired(SoftFileLock(path / "controller.softlock"))
    except Timeout:
        remedy = "wait for its end, stop it, or choose another directory"
        raise DirectoryRefused(f"{path} is in use by process {pid or 'unknown'} on {host}; {remedy}") from None


def _acquired(lock):
    lock.acquire(timeout=0)
    return lock


def read_claim(path):
    """(host, pid) of the last controller that claimed a directory."""
    try:
        claim = json.loads((path / "controller.json").read_bytes())
        return str(claim["host"]), int(claim["pid"])
    except (OSError, ValueError, KeyError, TypeError):  # not written yet, or not by us
        return "an unknown host", 0


def process_exists(pid):
    try:
        os.kill(pid, 0)
    except PermissionError:  # another user's
        return True
    except ProcessLookupError:
        return False
    return True
