"""support executors."""

import os
import sys
import threading
from pathlib import Path

from support import wait_until


def square(x):
    return x * x


def add(x, *, y=0):
    return x + y


class SectorError(ValueError):
    pass


class TwoArguments(Exception):
    """Pickles, but does not unpickle."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


class NotEven(Exception):
    """Does not pickle."""

    def __reduce__(self):
        raise TypeError("no way")


class Unspeakable(NotEven):
    def __str__(self):
        raise TypeError("no way")


def fail(exception_type, *args):
    raise exception_type(*args)


def return_lock():
    return threading.Lock()


def leave(code):
    sys.exit(code)


def append_to(numbers):
    numbers.append(len(numbers))
    return numbers


def environment(name):
    return os.environ.get(name)


def process_id():
    return os.getpid()


def note_attempt(folder):
    """Leave a file named by this process in a folder, and return how many there are now."""
    (Path(folder) / str(os.getpid())).touch()
    return len(attempts(folder))


def block_first(folder):
    """Block forever in the first attempt; the number of the attempt in later ones."""
    if note_attempt(folder) == 1:
        threading.Event().wait()
    return len(attempts(folder))


def block(folder):
    note_attempt(folder)
    threading.Event().wait()


def block_until(path, folder):
    """The number of attempts, once there is a file."""
    note_attempt(folder)
    wait_until(Path(path).exists)
    return len(attempts(folder))


def kill_self(folder, signal_number):
    print("last words")
    note_attempt(folder)
    os.kill(os.getpid(), signal_number)


def exit_self(code):
    os._exit(code)


def scaled(array, factor):
    return array * factor


def attempts(folder):
    return [int(path.name) for path in Path(folder).iterdir()]
