"""The wheel and the source distribution."""

import ast
import configparser
import re
import subprocess
import sys
import tarfile
import zipfile

import pytest
from support import DEADLINE_S, HERE, PUBLISHED

from executors import __version__
from executors.files import load_builtins
from ibp.bundle import PACKAGES
from ibp.errors import EXTRAS
from ibp.shipped import MEMBERS, shipped_names

SETUP = configparser.ConfigParser()
SETUP.read(HERE / "setup.cfg")


def test_the_version_is_read_without_an_import():
    module, _, name = SETUP["metadata"]["version"].removeprefix("attr: ").rpartition(".")
    lines = ast.parse((HERE / module / "__init__.py").read_text()).body
    assigned = {line.targets[0].id: line.value for line in lines if isinstance(line, ast.Assign)}
    assert ast.literal_eval(assigned[name]) == __version__
    assert f"\nversion: {__version__}\n" in (HERE / "CITATION.cff").read_text()
    assert f"\n## {__version__}\n" in (HERE / "CHANGELOG.md").read_text()


def test_extras_are_those_that_messages_name():
    extras = SETUP["options.extras_require"]
    assert set(extras) == {*EXTRAS.values(), "test"}
    for module, extra in EXTRAS.items():
        assert module in extras[extra].lower()
        assert extra in extras["test"].split()[0]


def test_contributing_shows_every_room_once():
    rows = re.findall(r"^\| (\w+) \| [\w ]+ \| (.*) \|$", (HERE / "CONTRIBUTING.md").read_text(), re.M)
    shown = sorted(f"{folder}/{room}.py" for folder, rooms in rows for room in rooms.split(", ") if folder in PACKAGES)
    assert shown == sorted(rooms_of(PACKAGES))


def rooms_of(packages, but=("__init__.py",)):
    return [f"{package}/{path.name}" for package in packages for path in (HERE / package).glob("*.py") if path.name not in but]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A directory with a source distribution, and a wheel built from that."""
    place = tmp_path_factory.mktemp("built")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", place, HERE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return place


@pytest.mark.slow
def test_both_hold_what_is_needed_and_nothing_else(built):
    sources = {"condor_worker.py", "explorer.py", "ibp_reduce.py", *rooms_of(PACKAGES, but=())}
    with zipfile.ZipFile(*built.glob("*.whl")) as wheel:
        files = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert files == sources | {MEMBERS + name for name in shipped_names()}
    with tarfile.open(*built.glob("*.tar.gz")) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    assert sources | {"data/" + name for name in shipped_names()} <= files
    assert {"README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "tests/conftest.py"} <= files
    assert [name for name in files if name.endswith(".pyc") or name.startswith(("build", ".ci"))] == []


@pytest.mark.slow
def test_the_installed_package_works_from_an_empty_directory(built, tmp_path):
    site, place = tmp_path / "site", tmp_path / "place"
    place.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, *built.glob("*.whl")]
    subprocess.run(install, check=True, timeout=DEADLINE_S)
    for program, words in (("ibp-reduce", [*PUBLISHED, "--local", "2"]), ("ibp-explore", ["--help"])):
        command = [sys.executable, site / "bin" / program, *words]
        done = subprocess.run(command, cwd=place, env={"PYTHONPATH": str(site)}, capture_output=True, text=True, timeout=DEADLINE_S)
        assert done.returncode == 0, done.stderr
    result = load_builtins((place / "results/reduction.pkl").read_bytes())
    assert result["statistics"]["rules"] == 0, "rules were not found among what is shipped"
