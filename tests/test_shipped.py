"""Shipped files: in a checkout, an installed package and a zip file."""

import zipfile

import pytest
from support import HERE, python

import ibp.shipped
from ibp.bundle import write_bundle
from ibp.shipped import MEMBERS, in_archive, program, shipped, shipped_names


@pytest.fixture
def zipped(tmp_path, monkeypatch):
    """The room as if it were read from a zip file, which is given, and has two families."""
    archive = tmp_path / "it's a program.pyz"
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("rules.shelf", "families/b.json", "families/a.json", "families/old/c.json"):
            file.writestr(MEMBERS + name, name * 1000)
        file.writestr("ibp/shipped.py", "")
    monkeypatch.setattr(ibp.shipped, "ROOM", archive / "ibp")
    ibp.shipped._scratch.cache_clear()
    yield archive
    ibp.shipped._scratch.cache_clear()


def test_a_checkout_ships_its_data():
    assert not in_archive() and program() == HERE / "ibp_reduce.py"
    assert shipped("rules.shelf") == HERE / "data/rules.shelf"
    assert {"benchmark_published.csv", "policy.pt", "rules.shelf"} <= set(shipped_names())
    assert all(shipped(name).is_file() for name in shipped_names())


def test_an_installed_package_ships_its_own_data_and_nobody_elses(tmp_path, monkeypatch):
    for folder in ("data", "ibp/data/families"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "box.json").touch()
    monkeypatch.setattr(ibp.shipped, "ROOM", tmp_path / "ibp")
    assert shipped("families/box.json") == tmp_path / "ibp/data/families/box.json"
    assert (shipped_names("families"), shipped_names()) == (["box.json"], ["families/box.json"])


def test_copied_without_data_there_is_nothing_and_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(ibp.shipped, "ROOM", tmp_path / "ibp")
    assert not shipped("rules.shelf").exists()
    assert shipped_names() == shipped_names("families") == []


def test_a_zip_file_extracts_what_is_asked_for(zipped):
    assert in_archive() and program() == zipped
    assert shipped_names("families") == ["a.json", "b.json"]
    assert shipped_names() == ["families/a.json", "families/b.json", "families/old/c.json", "rules.shelf"]
    family = shipped("families/b.json")
    assert family.read_text() == "families/b.json" * 1000 and family.name == "b.json"
    assert shipped("families/b.json") == family
    place = family.parent.parent
    assert sorted(path.name for path in place.rglob("*")) == ["b.json", "families"], "no more than that is extracted"
    assert place.stat().st_mode & 0o777 == 0o700
    assert not shipped("no such file").exists()


def test_a_file_that_was_cleared_away_comes_back(zipped):
    shipped("rules.shelf").unlink()
    assert shipped("rules.shelf").is_file()


def test_what_was_extracted_goes_with_the_process(tmp_path, monkeypatch):
    write_bundle(tmp_path / "p.pyz")
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    run = python(tmp_path / "p.pyz", tmp_path, "from ibp.shipped import shipped; print(shipped('rules.shelf').stat().st_size)")
    assert run.stdout == f"{shipped('rules.shelf').stat().st_size}\n", run.stderr
    assert list((tmp_path / "scratch").iterdir()) == []
