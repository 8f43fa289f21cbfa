"""tasks."""

import os
import pickle
import shutil
import threading
import tracemalloc
from pathlib import Path

import pytest
import support_executors as jobs
from hypothesis import given, settings
from hypothesis import strategies as st
from support import DEADLINE_S, Planted, limited_file_size

from executors.errors import ExecutorError, NotPicklable
from executors.local import LocalExecutor
from executors.tasks import Description, Shared, TimeLimits


def test_shared_values(tmp_path, monkeypatch):
    value = {"rules": [(1, 2)] * 1000}
    shared = Shared.write(value, tmp_path / "a" / "b")
    assert Path(shared.path).name == f"{shared.digest}.shared" and Path(shared.path).parent == tmp_path / "a" / "b"
    written = os.stat(shared.path)
    assert Shared.write(value, tmp_path / "a" / "b") == shared and len(list((tmp_path / "a" / "b").iterdir())) == 1
    assert os.stat(shared.path).st_ino == written.st_ino
    assert Shared.write([1], tmp_path / "a" / "b").digest != shared.digest
    assert shared.get() == value and shared.get() is shared.get()
    with LocalExecutor(1) as executor:
        assert executor.submit(jobs.read, shared).result(DEADLINE_S) == value
    (tmp_path / "here").mkdir()
    shutil.copy(shared.path, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    assert Shared(f"/nowhere/{shared.digest}.shared", shared.digest).get() == value
    with pytest.raises(NotPicklable):
        Shared.write(threading.Lock(), tmp_path)


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b"", lambda b: b + b"x", lambda b: pickle.dumps(Planted("trap")), None])
def test_a_damaged_shared_value_is_refused(tmp_path, monkeypatch, change):
    monkeypatch.chdir(tmp_path)
    shared = Shared.write({"rules": [(1, 2)] * 10}, tmp_path)
    path = Path(shared.path)
    path.unlink() if change is None else path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ExecutorError, match=shared.digest[:8]) as info:
        shared.get()
    assert "\n" not in str(info.value) and not (tmp_path / "trap").exists()


def test_shared_values_on_a_full_disk(tmp_path):
    with limited_file_size(100_000), pytest.raises(OSError):
        Shared.write("x" * 1_000_000, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_fixed_limit():
    assert TimeLimits(None).limit_s(Description()) is None and TimeLimits(7).limit_s(Description("a", 100)) == 7
    limits = TimeLimits(7)
    for _ in range(50):
        limits.note(Description("a"), 1000)
    assert limits.limit_s(Description("a")) == 7


def test_ten_tasks_of_a_group_make_a_limit():
    limits = TimeLimits(None, auto=True, floor_s=30)
    for _ in range(9):
        limits.note(Description("a", size=2), 20)
    assert limits.limit_s(Description("a")) is None
    limits.note(Description("a", size=4), 40)
    assert limits.limit_s(Description("a")) == pytest.approx(60)  # 6 times 10 s per unit
    assert limits.limit_s(Description("a", size=5)) == pytest.approx(300)
    assert limits.limit_s(Description("a", size=0.1)) == 30  # the floor
    assert limits.limit_s(Description("b")) is None
    capped = TimeLimits(100, auto=True, floor_s=30)
    for _ in range(10):
        capped.note(Description("a"), 10)
    assert (capped.limit_s(Description("a")), capped.limit_s(Description("a", size=9)), capped.limit_s(Description("b"))) == (60, 100, 100)


SECONDS = st.lists(st.floats(0, 1e4), min_size=10, max_size=60)


@settings(max_examples=40, deadline=None)
@given(seconds=SECONDS, size=st.floats(0.01, 1e3), scale=st.floats(0.01, 50), data=st.data())
def test_laws_of_the_learned_limit(seconds, size, scale, data):
    def limit(seconds, size, noted_size=1.0, **options):
        limits = TimeLimits(None, auto=True, **({"floor_s": 0} | options))
        for value in seconds:
            limits.note(Description("a", size=noted_size), value)
        return limits.limit_s(Description("a", size=size))

    usual = limit(seconds, size)
    assert limit(data.draw(st.permutations(seconds)), size) == pytest.approx(usual)  # order
    assert limit([scale * value for value in seconds], size) == pytest.approx(scale * usual)  # unit of time
    assert limit(seconds, size, noted_size=scale) == pytest.approx(usual / scale)  # unit of size
    assert limit(seconds, 2 * size) == pytest.approx(2 * usual)
    assert 6 * size * sorted(seconds)[len(seconds) // 2 - 1] * 0.999999 <= usual <= 6 * size * max(seconds) * 1.000001
    assert limit(seconds, size, floor_s=7) == pytest.approx(max(7, usual))
    slower = [value + 1 for value in seconds]
    assert limit(slower, size) > usual


def test_limits_keep_their_memory_and_stand_several_threads():
    limits, failures = TimeLimits(None, auto=True), []

    def note(offset):
        try:
            for x in range(3_000):
                limits.note(Description("a"), 100 + (offset + x * 7919) % 1000 / 1000)
                assert x < 10 or 600 <= limits.limit_s(Description("a")) <= 606.1
        except BaseException as error:
            failures.append(error)

    note(0)
    tracemalloc.start()
    try:
        threads = [threading.Thread(target=note, args=(offset,)) for offset in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S)
        assert tracemalloc.get_traced_memory()[0] < 300_000
    finally:
        tracemalloc.stop()
    assert failures == []
