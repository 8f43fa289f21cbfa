"""Paths of beam searches, replayed from their file."""

import functools
import json
import math
from pathlib import Path

import pytest
from support import BUBBLE_JSON, exit_code, patch_rooms, said
from support_oracles import equations_of

from ibp.errors import InputError, ReductionError
from ibp.families import BUILT_IN_FAMILIES
from ibp.identities import derive_identities
from ibp.paths import replay_paths
from ibp.sectors import find_nonzero_sectors, show


def replay(capsys, lines, code):
    Path("p").write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    line = said(capsys, ["verify", "p", "--family", "box"], code)
    assert line.count("\n") == 1 and len(line) < 1000, line
    return line


def test_paths_are_replayed_and_whatever_is_changed_is_noticed(paths_file, place, capsys):
    """Every number of every path once."""
    header, *lines = map(json.loads, paths_file.read_text().splitlines())
    identities = sum(len(line["path"]) for line in lines)
    assert f"{len(lines)} paths of {identities} identities" in replay(capsys, [header, *lines], 0)
    assert len(lines) > 10 and len({len(line["path"]) for line in lines}) > 1

    replayed = functools.partial(replay_paths, Path("p"), BUILT_IN_FAMILIES["box"])

    def caught(changed):
        Path("p").write_text(json.dumps(header) + "\n" + json.dumps(changed) + "\n")
        with pytest.raises(ReductionError) as error:
            replayed()
        return show(changed["integral"]) in str(error.value) or "damaged" in str(error.value)

    operators = derive_identities(BUILT_IN_FAMILIES["box"])
    nonzero = find_nonzero_sectors(equations_of("box"), 4)
    with pytest.MonkeyPatch.context() as patch:  # what is the same for all of them
        patch_rooms(patch, "ibp", "derive_identities", lambda _: operators)
        patch_rooms(patch, "ibp", "find_nonzero_sectors", lambda *_: nonzero)
        changes = 0
        for line in sorted(lines, key=lambda line: len(line["path"]))[::2]:
            for number, (operator, seed) in enumerate(line["path"]):
                rest = [action for place, action in enumerate(line["path"]) if place != number]
                assert caught(line | {"path": rest})
                for other in {(operator + 1) % len(operators), (operator + 3) % len(operators)}:
                    if [other, seed] not in line["path"]:
                        assert caught(line | {"path": [*rest, [other, seed]]})
                further = [a + (i == 0) for i, a in enumerate(seed)]
                if [operator, further] not in line["path"]:
                    assert caught(line | {"path": [*rest, [operator, further]]})
                changes += 1
            for number, (term, value) in enumerate(line["expression"]):
                rest = [pair for place, pair in enumerate(line["expression"]) if place != number]
                assert caught(line | {"expression": rest}) and caught(line | {"expression": [*rest, [term, value + 1]]})
                assert caught(line | {"expression": [*rest, [term, value + 1009]]})
            assert caught(line | {"integral": [a + (i == 0) for i, a in enumerate(line["integral"])]})
        assert changes > 8


HEADERS = [
    ("kind", "other"), ("format", 2), ("family", "bubble"), ("identifier", "0"), *(("prime", value) for value in (
        0, 4, 1001, -7, 10**30, "1009", None, True)),
    *(("d", value) for value in ("1/0", "nan", 41.0, math.inf, "1e999999999")),
    *(("kinematics", value) for value in ({}, [], {"s": "1/1009", "t": "7"})),
]  # fmt: skip
LINES = {
    "no object": lambda line: [1],
    "a number": lambda line: 7,
    "no path": lambda line: {key: value for key, value in line.items() if key != "path"},
    "a path that is none": lambda line: line | {"path": 3},
    "an operator that is none": lambda line: line | {"path": [[99, seed] for _, seed in line["path"]]},
    "a negative operator": lambda line: line | {"path": [[-1, seed] for _, seed in line["path"]]},
    "operators with fractions": lambda line: line | {"path": [[operator + 0.5, seed] for operator, seed in line["path"]]},
    "operators in words": lambda line: line | {"path": [[str(operator), seed] for operator, seed in line["path"]]},
    "infinite operators": lambda line: line | {"path": [[math.inf, seed] for _, seed in line["path"]]},
    "a short seed": lambda line: line | {"path": [[0, [1, 1]]]},
    "a vast seed": lambda line: line | {"path": [[0, [10**30] * 4]]},
    "fractions in a seed": lambda line: line | {"path": [[0, [1.5] * 4]]},
    "a short integral": lambda line: line | {"integral": [1, 2]},
    "an integral in words": lambda line: line | {"integral": "1111"},
    "a coefficient with a fraction": lambda line: line | {"expression": [[term, value + 0.5] for term, value in line["expression"]]},
    "a coefficient in words": lambda line: line | {"expression": [[term, str(value)] for term, value in line["expression"]]},
    "an infinite coefficient": lambda line: line | {"expression": [[term, math.inf] for term, _ in line["expression"]]},
    "a term twice": lambda line: line | {"expression": [*line["expression"], line["expression"][0]]},
}


@pytest.mark.parametrize(("name", "value"), HEADERS)
def test_paths_with_another_header_are_refused(name, value, paths_file, place, capsys):
    header, first, *_ = map(json.loads, paths_file.read_text().splitlines())
    assert "p: " in replay(capsys, [header | {name: value}, first], 2) or value == {"s": "1/1009", "t": "7"}


@pytest.mark.parametrize("what", LINES)
def test_paths_that_are_none_are_refused(what, paths_file, place, capsys):
    header, first, *_ = map(json.loads, paths_file.read_text().splitlines())
    assert "p: damaged" in replay(capsys, [header, LINES[what](first)], 2)


def test_file_that_holds_no_paths_is_refused(paths_file, place, capsys):
    text = paths_file.read_text()
    for content in "", "[]\n", "null\n", "\0", "[" * 100_000, text[: len(text) - 40], text[40:], "\n" + text:
        Path("p").write_text(content)
        with pytest.raises(InputError, match="^p: damaged"):
            replay_paths(Path("p"), BUILT_IN_FAMILIES["box"])
    Path("p").write_bytes(b"{" + bytes(range(256)))
    assert "p: damaged" in said(capsys, ["verify", "p"], 2)
    assert "give --family" in said(capsys, ["verify", str(paths_file)], 2)


def test_family_of_the_same_name_with_another_definition_is_refused(trained, place, capsys):
    """Weights know which families they were trained on, paths which family they are of."""
    (first, mass), second = BUBBLE_JSON["propagators"]
    changed = BUBBLE_JSON | {"propagators": [[first, "0"], second]}
    assert mass != "0"
    Path("other.json").write_text(json.dumps(changed))
    Path("renamed.json").write_text(json.dumps(changed | {"name": "another"}))
    search = ["--integral", "3,2", "--engine", "beam", "--policy", str(trained / "policy.pt"), "--quiet", "--paths", "p", "--no-rules"]
    assert exit_code([*search, "--family", "bubble"]) == exit_code([*search, "--family", "renamed.json", "--paths", "q"]) == 0
    line = said(capsys, [*search, "--family", "other.json"], 2)
    assert line.count("\n") == 1 and "another family that is called bubble" in line
    line = said(capsys, ["verify", "p", "--family", "other.json"], 2)
    assert line.count("\n") == 1 and "as it is defined here" in line
    assert "paths of" in said(capsys, ["verify", "p", "--family", "bubble"], 0)
