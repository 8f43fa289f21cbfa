"""Pictures show something, with and without matplotlib."""

import importlib.util
import sys

import numpy as np
import pytest
from support_explorer import check_page

import explorer as ex
from phases.errors import InputError
from phases.history import read_history
from phases.names import PhaseType
from phases.pictures import PHASE_STYLES, draw_all


def test_pictures_show_something(undisturbed):
    pytest.importorskip("matplotlib")
    from matplotlib.image import imread

    names = {path.stem for path in (undisturbed[0] / "plots").iterdir()}
    assert {"counts", "timeline", "importance"} < names and any(name.startswith("map_") for name in names)
    for path in (undisturbed[0] / "plots").iterdir():
        pixels = imread(path)[..., :3]
        assert min(pixels.shape[:2]) > 150 and pixels.std() > 0.03, path.name
        assert len(np.unique((pixels.reshape(-1, 3)[::7] * 255).astype(int), axis=0)) > 10, path.name


def test_map_axes_and_colours(undisturbed):
    pytest.importorskip("matplotlib")
    run = read_history(undisturbed[0])
    pictures, complaints = draw_all(run, ["J1z", "D"], {"E": 0.5})
    assert "map_J1z_D" in pictures and complaints == []
    with pytest.raises(InputError, match="give two of"):
        draw_all(run, ["J1z", "J9"])
    with pytest.raises(InputError, match="no parameter"):
        draw_all(run, ["J1z", "D"], {"J9": 0.5})
    named = {phase.name for phase in PhaseType}
    assert named == set(PHASE_STYLES) and len({style[0] for style in PHASE_STYLES.values()}) == len(named)


class NoMatplotlib(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError("No module named 'matplotlib'")


def test_without_matplotlib(undisturbed, tmp_path, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [NoMatplotlib(), *sys.meta_path])
    report = tmp_path / "report.html"
    place = ["--output-dir", str(undisturbed[0])]
    assert ex.main(["show", "--plots", "--report", str(report), *place]) == 0
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and "matplotlib is not installed" in printed and "ibp-reduce[plots]" in printed
    page = check_page(report.read_text())
    assert "img" not in page.tags and page.tags.count("tr") > 14 and "matplotlib is not installed" in report.read_text()
    assert ex.main(["point", "0", *place]) == 0 and "matplotlib" in capsys.readouterr().err


def test_report_is_one_page(undisturbed):
    pytest.importorskip("matplotlib")
    text = (undisturbed[0].parent / "out here" / "report.html").read_text()
    page = check_page(text)
    assert page.tags.count("img") >= 5 and page.tags.count("tr") > 14 and "margin" in text and "--n-initial" in text
