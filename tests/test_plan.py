"""What is explored: boxes as JSON, functions by name, the seeds of points."""

import pytest

from phases.errors import InputError
from phases.plan import load_function, point_seed, read_box, spin_plan


def test_point_seed_depends_on_the_point_alone():
    seed = point_seed(3, {"a": 0.1, "b": 0.2})
    assert seed == point_seed(3, {"b": 0.2, "a": 0.1}) and 0 <= seed < 2**32
    assert len({point_seed(s, {"a": a}) for s in range(5) for a in (0.1, 0.2, 0.3)}) == 15


@pytest.mark.parametrize(
    "text, says",
    [
        ("nowhere.json", "nowhere.json"),
        ("{]", "not readable as JSON"),
        ('{"J3xy":[1,0]}', "must be below"),
        ('{"J3xy":[0,1],"D":NaN}', "finite"),
        ('{"x": [0, 1], "x": [0, 2]}', "given twice"),
        ('{"x": [0, 1' + "0" * 400 + "]}", ""),
        ('{"x": [-1e308, 1e308]}', "must be below"),
        ('{"a":' * 100_000, "not readable"),
        ('{"\\ud800": [0, 1]}', "name"),
    ],
    ids=lambda text: text[:20],
)
def test_bad_boxes_are_refused_in_one_line(text, says):
    with pytest.raises(InputError) as refusal:
        read_box(text)
    assert says in str(refusal.value) and "\n" not in str(refusal.value)


def test_fixed_values_are_no_axes():
    box, fixed = read_box('{"J3xy": [0, 1], "J1z": [-1, 1], "D": 0.05}')
    assert box.bounds() == {"J3xy": [0, 1], "J1z": [-1, 1]} and fixed == {"D": 0.05}
    assert spin_plan(box=box, fixed=fixed).L == 12 and spin_plan("accurate").L == 24 and spin_plan("screening", 10).L == 10
    with pytest.raises(InputError, match="J4"):
        spin_plan(box=read_box('{"J4": [0, 1]}')[0])


@pytest.mark.parametrize(
    "text, says", [("model", "MODULE:FUNCTION"), ("nowhere_at_all:f", "cannot be loaded"), ("math:pi", "not a function")]
)
def test_functions_that_are_none(text, says):
    with pytest.raises(InputError, match=says):
        load_function(text)
