"""The test of parallel running fails where it must."""

import pytest
from support import patch_rooms
from support_explorer import explore

import explorer as ex


@pytest.mark.parametrize(
    "times, label, code, says",
    [
        ((10.0, 5.4), "FM", 0, "✓"),
        ((10.0, 5.4), "ZIGZAG", 1, "1 of 2 results differ: point 1"),
        ((10.0, 9.0), "FM", 1, "below 1.40x = 0.7 x min(2 processes, 2 cores)"),
        ((10.0, 1.0), "FM", 1, "more than 2x is not possible"),
        ((1.0, 0.9), "FM", 0, "too short"),
    ],
)
def test_parallel_test_fails_where_it_must(times, label, code, says, monkeypatch, capsys):
    def timed_batch(plan, number, processes, timeout_s):
        return times[processes - 1], {0: ("FM", -1.0), 1: (label if processes > 1 else "FM", -1.0)}

    patch_rooms(monkeypatch, "phases", "timed_batch", timed_batch)
    patch_rooms(monkeypatch, "phases", "usable_cores", lambda: 2.0)
    assert ex.main(["test-parallel", "2", "--n-jobs", "2"]) == code
    printed = capsys.readouterr().out
    assert says in printed and "Efficiency:" in printed


def test_parallel_test_for_real(tmp_path):
    done = explore("test-parallel", "4", "--n-jobs", "2", "--screening", "--lattice-size", "6", cwd=tmp_path)
    assert done.returncode == 0 and "Same labels and energies" in done.stdout and not list(tmp_path.iterdir()), done.stdout
