"""Files of weights: what is written is read, and what is damaged or foreign is refused in one line."""

import io
import json
import math
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from support import BUBBLE, Touches, flipped, python, reduced
from support_learning import guide_of, saved, weights_file

from ibp.errors import PolicyRefused
from ibp.families import BUILT_IN_FAMILIES
from ibp.policy import make_network
from ibp.weights import GUIDE_KIND, load_guide, pack_guide, pack_weights, read_guide, read_policy, unpack_policy


def stored(header, **arrays):
    file = io.BytesIO()
    np.savez(file, header=np.array(header), **arrays)
    return file.getvalue()


def damaged_guides():
    good, record = guide_of(), {"kind": GUIDE_KIND, "format": 1, "families": {}}

    def claiming(shape):
        """An array of this shape in the place of the header."""
        text = repr({"descr": "<f4", "fortran_order": False, "shape": shape}).ljust(117).encode() + b"\n"
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("header.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
        return file.getvalue()

    return {
        "guide (OverflowError)": claiming((10**30,)),
        "MemoryError)": claiming((10**15,)),
        "guide (RecursionError)": stored("[" * 100_000, **good),
        "no guide": None,
        "damaged": pack_guide(good, {})[:-50],
        "finite": pack_guide(good | {"row_mix": good["row_mix"] * np.nan}, {}),
        "shapes": pack_guide({name: good[name] for name in list(good)[1:]}, {}),
        "guide (ValueError)": stored(json.dumps(record), row_in=np.array([{}], object)),
        "format 99": stored(json.dumps(record | {"format": 99}), **good),
        "another family": pack_guide(good, {"box": "0" * 64}),
    }


@pytest.mark.parametrize("what", damaged_guides())
def test_damaged_guides_are_refused_in_one_line(what, tmp_path):
    with pytest.raises(PolicyRefused, match=re.escape(what)) as refused:
        read_guide(weights_file(tmp_path / "p.pt", damaged_guides()[what]), BUILT_IN_FAMILIES["box"])
    assert "p.pt" in str(refused.value) and "\n" not in str(refused.value)


def test_what_is_no_weights_file_is_refused(tmp_path):
    for content in (b"", b"PK\x03\x04 no zip", Path(weights_file(tmp_path / "whole.pt", pack_guide(guide_of(), {}))).read_bytes()[:-30]):
        (tmp_path / "p.pt").write_bytes(content)
        with pytest.raises(PolicyRefused, match="p.pt"):
            read_guide(str(tmp_path / "p.pt"), BUILT_IN_FAMILIES["box"])
    with pytest.raises(PolicyRefused, match="directory"):
        read_guide(str(tmp_path), BUILT_IN_FAMILIES["box"])


def test_policy_and_guide_share_a_file(tmp_path):
    pytest.importorskip("torch")
    network, weights = make_network(8), guide_of()
    content = pack_weights(network, {"box": BUILT_IN_FAMILIES["box"].identifier}, {}, weights)
    (tmp_path / "p.pt").write_bytes(content)
    loaded, record = unpack_policy(content)
    assert all(bool((values == loaded.state_dict()[name]).all()) for name, values in network.state_dict().items())
    read = load_guide(read_guide(str(tmp_path / "p.pt"), BUILT_IN_FAMILIES["box"]))
    assert read.keys() == weights.keys() and all((read[name] == weights[name]).all() for name in weights)
    assert record["families"] == {"box": BUILT_IN_FAMILIES["box"].identifier}


def record_with(change):
    """A weights file of a small network after a change of its record."""
    import torch

    torch.manual_seed(0)
    record = torch.load(io.BytesIO(pack_weights(make_network(4), {}, {})), weights_only=True)
    return saved(change(record))


def state_with(change):
    return record_with(lambda record: record | {"state": change(record["state"])})


def bit_flipped(data):
    return flipped(data, data.index(b"state") + len(data) // 2)


BAD_WEIGHTS = {
    "empty": (lambda: b"", "not readable"),
    "text": (lambda: b"hello\n", "not readable"),
    "truncated": (lambda: record_with(dict)[:-500], "not readable"),
    "half": (lambda: record_with(dict)[:700], "not readable"),
    "bit": (lambda: bit_flipped(record_with(dict)), "not readable"),
    "bare pickle": (lambda: pickle.dumps(Touches()), "not readable"),
    "malicious": (lambda: record_with(lambda r: r | {"more": Touches()}), "not readable"),
    "another archive": (lambda: saved([1, 2]), "no policy"),
    "another kind": (lambda: record_with(lambda r: r | {"kind": "other"}), "no policy"),
    "format": (lambda: record_with(lambda r: r | {"format": 2}), "format 2"),
    "no format": (lambda: record_with(lambda r: {k: v for k, v in r.items() if k != "format"}), "format None"),
    "tensor for a format": (lambda: record_with(lambda r: r | {"format": next(iter(r["state"].values()))}), "format"),
    "another width": (lambda: record_with(lambda r: r | {"width": 5}), "damaged"),
    "vast": (lambda: record_with(lambda r: r | {"width": 10**7}), "damaged"),
    "no width": (lambda: record_with(lambda r: r | {"width": "4"}), "damaged"),
    "families": (lambda: record_with(lambda r: r | {"families": [1]}), "damaged"),
    "missing tensor": (lambda: state_with(lambda s: dict(list(s.items())[1:])), "damaged"),
    "nan": (lambda: state_with(lambda s: {k: v * math.nan for k, v in s.items()}), "not finite"),
    "complex": (lambda: state_with(lambda s: {k: v * 1j for k, v in s.items()}), "damaged"),
    "integers": (lambda: state_with(lambda s: {k: v.int() for k, v in s.items()}), "damaged"),
    "of another family": (lambda: record_with(lambda r: r | {"families": {"bubble": "other"}}), "another family that is called bubble"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_WEIGHTS)
@pytest.mark.filterwarnings("error")
def test_unusable_weights_are_refused_in_one_line(what, place):
    make, fragment = BAD_WEIGHTS[what]
    Path("w.pt").write_bytes(make())
    with pytest.raises(PolicyRefused, match=f"(?s)^policy w.pt: .*{fragment}"):
        read_policy("w.pt", BUILT_IN_FAMILIES["bubble"])
    assert not Path("broken-out").exists()


def test_good_weights_are_taken(place):
    Path("w.pt").write_bytes(record_with(dict))
    assert reduced(*BUBBLE, "--engine", "beam", "--policy", "w.pt", "--beam-width", "2")["success"]


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
import ibp.training
import ibp_reduce
print([ibp_reduce.main(words.split("|")) for words in sys.argv[1:]])
"""


def test_without_torch_there_is_one_line_or_no_need_for_it(trained, bare, place):
    needed = [*BUBBLE, "--engine", "beam", "--policy", str(trained / "policy.pt")], ["train", "--device", "cpu"]
    needless = [*BUBBLE, "--quiet"], [*BUBBLE, "--engine", "beam", "--policy", "fixed", "--no-rules", "--quiet"]
    run = python(bare, place, WITHOUT_TORCH, *map("|".join, (*needed, *needless)))
    assert run.stdout == "[2, 2, 0, 0]\n" and run.stderr.count("\n") == 2
    assert run.stderr.count("torch is missing") == run.stderr.count("pip install") == 2
