"""What the tests let tasks do: functions in a module that loads in no time."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

from executors.tasks import task_cpus


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


def square(x):
    return x * x


def add(x, *, y=0):
    return x + y


def same(x):
    return x


def fail(exception_type, *args):
    raise exception_type(*args)


def evaluate(expression):
    return eval(expression)


def return_lock():
    return threading.Lock()


def append_to(numbers):
    numbers.append(len(numbers))
    return numbers


def scaled(array, factor):
    return array * factor


def read(shared):
    return shared.get()


def state():
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "PATH", "PYTHONPATH")
    return {"cwd": os.getcwd(), "cpus": task_cpus(), "pid": os.getpid()} | {name: os.environ.get(name) for name in names}


def note(path, line):
    """Append a line, in one piece."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, f"{line}\n".encode())
    os.close(file)


def noted_square(path, x, seconds=0):
    note(path, x)
    time.sleep(seconds)
    return x * x


def pids(path):
    """Of the processes that left their number in a file, one for each attempt."""
    return [int(line) for line in Path(path).read_text().splitlines()] if Path(path).exists() else []


def hang(path):
    note(path, os.getpid())
    threading.Event().wait()


def hang_first(path):
    """Hang in the first attempt; the number of the attempt in later ones."""
    note(path, os.getpid())
    if len(pids(path)) == 1:
        threading.Event().wait()
    return len(pids(path))


def hang_until(go_on, path):
    """The number of attempts, once there is a file."""
    note(path, os.getpid())
    while not Path(go_on).exists():
        time.sleep(0.005)
    return len(pids(path))


def hang_on_one_cpu(path):
    note(path, os.getpid())
    if task_cpus() == 1:
        threading.Event().wait()
    return task_cpus()


def hang_within_on_one_cpu(path):
    from executors.local import LocalExecutor

    if task_cpus() > 1:
        return "done"
    with LocalExecutor(1) as executor:
        executor.submit(hang, path).result()


def kill_self(path, signal_number=signal.SIGKILL):
    print("last words")
    note(path, os.getpid())
    os.kill(os.getpid(), signal_number)


def exit_self(code):
    os._exit(code)


def leave(code):
    sys.exit(code)
