"""What all executors have in common."""

import concurrent.futures
import random
import threading
import traceback

import pytest
import support_executors as jobs
from support import DEADLINE_S, wait_until
from support_condor import results

from executors.base import InlineExecutor
from executors.errors import NotPicklable, RemoteError
from executors.local import LocalExecutor


@pytest.fixture(params=["inline", "local", "condor"])
def executor(request):
    if request.param == "condor":
        request.getfixturevalue("fake").set(run="now")
        yield request.getfixturevalue("make")()
    elif request.param == "local":
        yield request.getfixturevalue("pool")
    else:
        with InlineExecutor() as inline:
            yield inline


of_this_machine = pytest.mark.parametrize("executor", ["inline", "local"], indirect=True)


def test_results_do_not_depend_on_order(executor):
    executor.warm_up()
    numbers = list(range(60))
    random.Random(3).shuffle(numbers)
    futures = {executor.submit(jobs.square, x): x for x in numbers}
    assert {futures[f]: f.result(0) for f in concurrent.futures.as_completed(futures, DEADLINE_S)} == {x: x * x for x in numbers}
    assert list(executor.map(jobs.square, numbers, timeout=DEADLINE_S)) == [x * x for x in numbers]
    assert executor.submit(jobs.add, 1, y=2).result(DEADLINE_S) == 3


def test_arguments_travel_by_value(executor):
    numbers = [7]
    assert executor.submit(jobs.append_to, numbers).result(DEADLINE_S) == [7, 1]
    assert numbers == [7]


@of_this_machine
def test_exception_is_raised_as_itself_with_its_origin(executor):
    with pytest.raises(jobs.SectorError, match=r"^sector 42 is empty$") as info:
        executor.submit(jobs.fail, jobs.SectorError, "sector 42 is empty").result(DEADLINE_S)
    text = "".join(traceback.format_exception(info.value))
    assert "in fail\n" in text and "raise exception_type(*args)" in text
    with pytest.raises(SystemExit) as info:  # an outcome like others, not the end of the process
        executor.submit(jobs.leave, 3).result(DEADLINE_S)
    assert info.value.code == 3


@pytest.mark.parametrize(
    ("exception_type", "args", "message"),
    [
        (jobs.TwoArguments, ("a", "b"), "TwoArguments: a and b"),
        (jobs.NotEven, ("7",), "NotEven: 7"),
        (jobs.Unspeakable, (), "Unspeakable: <"),
    ],
)
def test_exception_that_cannot_travel_becomes_a_remote_error(executor, exception_type, args, message):
    with pytest.raises(RemoteError, match=message) as info:
        executor.submit(jobs.fail, exception_type, *args).result(DEADLINE_S)
    assert info.value.type_name == exception_type.__name__
    assert "in fail\n" in info.value.traceback_text and "in fail\n" in "".join(traceback.format_exception(info.value))
    assert executor.submit(jobs.square, 3).result(DEADLINE_S) == 9


def test_unpicklable_result_and_task(executor):
    with pytest.raises(NotPicklable, match="the result .*lock"):
        executor.submit(jobs.return_lock).result(DEADLINE_S)
    with pytest.raises(NotPicklable, match="lambda"):
        executor.submit(lambda: 1).result(DEADLINE_S)
    with pytest.raises(NotPicklable, match="square or its arguments .*lock"):
        executor.submit(jobs.square, threading.Lock()).result(DEADLINE_S)
    assert executor.submit(jobs.square, 3).result(DEADLINE_S) == 9


@of_this_machine
def test_arrays(executor):
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(2_000_000, dtype=numpy.int64)  # 16 MB, far beyond the pipe's buffer
    assert numpy.array_equal(executor.submit(jobs.scaled, array, 3).result(DEADLINE_S), 3 * array)


def test_every_executor_tells_the_same(executor):
    before = executor.statistics["tasks"]
    assert executor.processes >= 1
    done, failed = [executor.submit(jobs.square, x) for x in range(3)], executor.submit(jobs.fail, ValueError, "x")
    assert results(done) == [0, 1, 4] and isinstance(failed.exception(DEADLINE_S), ValueError)
    assert executor.statistics["tasks"] == before + 4 and executor.statistics["stragglers"] == 0
    assert all(isinstance(value, (int, dict)) for value in executor.statistics.values())
    wait_until(lambda: executor.counts()["running"] == 0)
    assert executor.counts().keys() == {"queued", "idle", "running", "held", "done", "failed"}
    assert executor.counts()["queued"] == executor.counts()["idle"] == executor.counts()["held"] == 0
    assert executor.report(done[0])["seconds"] >= 0
    for future in done:
        assert executor.forget(future) is None


def test_after_shutdown_nothing_is_taken(fake, make):
    for executor in InlineExecutor(), LocalExecutor(1), make():
        executor.shutdown()
        executor.shutdown()
        with pytest.raises(RuntimeError, match="cannot submit square"):
            executor.submit(jobs.square, 2)
