"""Results as pickles."""

import io
import os
import pickle
from pathlib import Path

import pytest
from support import BUBBLE, exit_code, reduced, snapshot

RECORD = {
    **dict.fromkeys(("format", "prime", "d", "steps", "peak_memory_kb"), int),
    **dict.fromkeys(("family", "version"), str),
    **dict.fromkeys(("kinematics", "reductions", "statistics"), dict),
    **dict.fromkeys(("masters", "unreduced"), list),
    **{"success": bool, "time": float},
}
SINGLE = {"original_integral": tuple, "final_expr": dict}


class NothingButBuiltins(pickle.Unpickler):
    def find_class(self, module, name):
        raise AssertionError(f"the pickle names {module}.{name}")


def types_within(value):
    """Exact types of a value and of everything in it."""
    found = {type(value)}
    for part in [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
        found |= types_within(part)
    return found


@pytest.mark.parametrize("single", [True, False], ids=["one integral", "two integrals"])
@pytest.mark.parametrize("local", ["1", "2"])
def test_pickle_has_the_documented_keys_and_types(single, local, place):
    Path("t.txt").write_text("2,1\n1,2")
    which = ["--integral", "2,1"] if single else ["--integrals", "t.txt"]
    assert exit_code(["--family", "bubble", *which, "--output", "r.pkl", "--quiet", "--local", local]) == 0
    result = NothingButBuiltins(io.BytesIO(Path("r.pkl").read_bytes())).load()
    assert {key: type(value) for key, value in result.items()} == RECORD | (SINGLE if single else {})
    assert types_within(result) <= {dict, list, tuple, int, float, str, bool}
    assert (result["format"], result["success"], result["unreduced"]) == (1, True, [])
    coefficients = [value for expression in result["reductions"].values() for value in expression.values()]
    assert coefficients and all(1 <= value < 1009 for value in coefficients)
    assert all(set(expression) <= set(result["masters"]) for expression in result["reductions"].values())
    assert len(set(result["masters"])) == len(result["masters"])
    if single:
        assert result["reductions"] == {result["original_integral"]: result["final_expr"]}


@pytest.mark.parametrize("failure, code", [(OSError(28, "No space left on device"), 1), (KeyboardInterrupt(), 130)])
def test_failing_write_leaves_the_old_result_and_no_temporary_file(failure, code, place, capsys, monkeypatch):
    reduced(*BUBBLE)
    before = {path: data for path, data in snapshot(place).items() if path.suffix == ".pkl"}

    def fail(*_):
        raise failure

    monkeypatch.setattr(os, "replace", fail)
    capsys.readouterr()
    assert exit_code(["--family", "bubble", "--integral", "2,1", "--output", "r.pkl"]) == code
    assert capsys.readouterr().err.count("\n") == 1
    assert {path: data for path, data in snapshot(place).items() if "r.pkl" in path.name} == before


def test_result_in_a_new_directory_and_over_an_old_one(place):
    for _ in range(2):
        assert exit_code([*BUBBLE, "--quiet", "--output", "a/b/r.pkl"]) == 0
    assert [path.name for path in (place / "a/b").iterdir()] == ["r.pkl"]
