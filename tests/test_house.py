"""The laws of the house: where rooms stand, what they may know, how large they are. Only source text is read here."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent.parent
PACKAGES = ("executors", "ibp", "phases")
FACES = ("condor_worker", "explorer", "ibp_reduce")
HEAVY = {"torch", "sympy", "matplotlib", "yaml"}
LONGEST_ROOM = 800
LONGEST_FUNCTION = 80


@cache
def floor_plan(package):
    """The rooms of a package from the ground up, as its docstring lists them."""
    text = ast.get_docstring(ast.parse((HERE / package / "__init__.py").read_text()), clean=True)
    return re.findall(r"^    ([a-z_]+)  ", text, re.M)


@cache
def tree(path):
    return ast.parse(path.read_text())


def rooms(*packages):
    return [path for package in packages or PACKAGES for path in sorted((HERE / package).glob("*.py")) if path.name != "__init__.py"]


def place(path):
    return path.parent.name, path.stem


def imports(path, everywhere=True):
    """(package, room, names) of this project's rooms that a file imports; only at its top unless everywhere."""
    nodes = ast.walk(tree(path)) if everywhere else top_level(tree(path))
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] in (*PACKAGES, *FACES):
            package, _, room = node.module.partition(".")
            yield from [(package, room or alias.name, (alias.name,)) for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                package, _, room = alias.name.partition(".")
                if package in (*PACKAGES, *FACES):
                    yield package, room, ()


def top_level(module):
    """What is executed when a module is imported."""
    for node in module.body:
        yield node
        if isinstance(node, (ast.If, ast.Try, ast.With)):
            yield from top_level(node)


def at(path):
    return str(path.relative_to(HERE))


ROOMS = rooms()
EVERYTHING = [*ROOMS, *(HERE / f"{face}.py" for face in FACES)]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_room_is_listed_once(package):
    assert sorted(floor_plan(package)) == [path.stem for path in rooms(package)]


def test_imports_point_down():
    """So there is no circle either."""
    wrong = []
    for path in ROOMS:
        plan = floor_plan(path.parent.name)
        below = plan[: plan.index(path.stem)] if path.stem in plan else ()
        for package, room, _ in imports(path):
            if room not in below if package == path.parent.name else package != "executors":
                wrong.append(f"{at(path)} imports {package}.{room}")
    assert wrong == []


def test_private_names_stay_private():
    taken = ((path, name) for path in EVERYTHING for _, _, names in imports(path) for name in names)
    assert [f"{at(path)} imports {name}" for path, name in taken if re.match("_[^_]", name)] == []


def test_nothing_outside_executors_knows_htcondor():
    outside = ((path, room) for path in rooms("ibp", "phases") for package, room, _ in imports(path) if package == "executors")
    assert [f"{at(path)} imports executors.{room}" for path, room in outside if "condor" in room] == []


def test_rooms_and_functions_have_one_idea():
    assert [at(path) for path in EVERYTHING if len(path.read_text().splitlines()) > LONGEST_ROOM] == []
    functions = ((path, node) for path in EVERYTHING for node in ast.walk(tree(path)) if isinstance(node, ast.FunctionDef))
    assert [f"{at(path)}: {node.name}" for path, node in functions if node.end_lineno - node.lineno >= LONGEST_FUNCTION] == []


def test_heavy_packages_are_imported_where_they_are_used():
    wrong = []
    for path in EVERYTHING:
        for node in top_level(tree(path)):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            wrong += [f"{at(path)} imports {name}" for name in names if name.split(".")[0] in HEAVY]
    assert wrong == []


def test_only_the_programs_know_options_and_exit_codes():
    wrong = []
    for path in ROOMS:
        words = {alias.name for node in ast.walk(tree(path)) if isinstance(node, ast.Import) for alias in node.names}
        if "argparse" in words and at(path) != "executors/commands.py":
            wrong.append(f"{at(path)} imports argparse")
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Global) or (isinstance(node, ast.Call) and ast.unparse(node.func) == "sys.exit"):
                wrong.append(f"{at(path)}:{node.lineno} {ast.unparse(node)}")
    assert wrong == []


WRITERS = {"ibp/journal.py", "ibp/store.py", "ibp/published.py", "phases/history.py"}  # beside executors/, which has the atomic write
STARTERS = {"ibp/published.py", "phases/benchmark.py"}  # they time whole programs


def test_files_are_written_and_processes_started_in_few_places():
    wrong = []
    for path in rooms("ibp", "phases"):
        text, place = path.read_text(), at(path)
        calls = [ast.unparse(node) for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
        if any(re.search(r"\.write_(text|bytes)\(|^open\(.*'[wax]", call) for call in calls) and place not in WRITERS:
            wrong.append(f"{place} writes files itself")
        if re.search(r"^ *import subprocess", text, re.M) and place not in STARTERS:
            wrong.append(f"{place} starts processes")
        if any(room == "options" for package, room, _ in imports(path) if package == "ibp"):
            wrong.append(f"{place} knows the options")
    assert wrong == []


@cache
def our_errors():
    """Names of the exceptions that rooms define and that others see."""
    known = {"Exception"}
    for _ in range(3):
        for path in ROOMS:
            classes = (node for node in tree(path).body if isinstance(node, ast.ClassDef))
            known |= {node.name for node in classes if any(ast.unparse(base).split(".")[-1] in known for base in node.bases)}
    return {name for name in known if not name.startswith("_")} - {"Exception"}


def public_functions(body):
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body)
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node


def own_raises(function):
    """Names of the exceptions that a function raises itself, not in functions inside it."""
    stack = list(function.body)
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            yield ast.unparse(node.exc.func)
        if not isinstance(node, (ast.FunctionDef, ast.Lambda)):
            stack += ast.iter_child_nodes(node)


def test_docstrings_name_what_is_raised():
    silent = [
        f"{at(path)}: {function.name} raises {error}"
        for path in ROOMS
        for function in public_functions(tree(path).body)
        for error in sorted(set(own_raises(function)) & our_errors())
        if error not in (ast.get_docstring(function) or "")
    ]
    assert silent == []


def test_every_room_says_what_it_is():
    assert [at(path) for path in EVERYTHING if len(ast.get_docstring(tree(path)) or "") < 40] == []
