"""The file of weights that a training leaves and that searches read.

It is the zip archive that torch writes for the policy, with the guide as one more member, which numpy reads: so no reduction waits for
torch. Tasks carry what `read_policy` and `read_guide` return; `load_policy` and `load_guide` make of it what searches. Nothing in a foreign
file is executed.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ibp.errors import UNREADABLE, PolicyRefused
from ibp.families import Family
from ibp.guide import GUIDE_SHAPES
from ibp.policy import Policy, make_network

POLICY_KIND, POLICY_FORMAT = "ibp_reduce policy", 1  # the format is also that of what the inputs mean
GUIDE_KIND, GUIDE_FORMAT = "ibp_reduce guide", 1
GUIDE_MEMBER = "archive/guide.npz"
LARGEST_WIDTH = 1024  # of a network that is loaded: 8 million parameters
NO_POLICY = ("fixed", "random")  # names that stand for a search without a policy
Content = tuple[Any, dict[str, Any]]  # network or weights, and the record of how they were made, with {family name: identifier}


def pack_weights(network: Any, families: dict[str, str], trained: dict[str, Any], guide: dict[str, np.ndarray] | None = None) -> bytes:
    """The content of a weights file: the network, what it was trained on ({family name: identifier}) and how, and the guide."""
    import torch

    width = network["score"].in_features
    record = {"kind": POLICY_KIND, "format": POLICY_FORMAT, "width": width, "families": families, "trained": trained}
    buffer = io.BytesIO()
    torch.save(record | {"state": network.state_dict()}, buffer)
    if guide is not None:
        with zipfile.ZipFile(buffer, "a") as archive:
            archive.writestr(GUIDE_MEMBER, pack_guide(guide, families))
    return buffer.getvalue()


def pack_guide(weights: dict[str, np.ndarray], families: dict[str, str]) -> bytes:
    """The guide's part of a weights file."""
    header = {"kind": GUIDE_KIND, "format": GUIDE_FORMAT, "families": families}
    buffer = io.BytesIO()
    np.savez(buffer, header=np.array(json.dumps(header)), **weights)
    return buffer.getvalue()


def load_tensors(content: bytes, device: str = "cpu") -> Any:
    """What `torch.save` wrote, tensors and builtin types only. Raises many kinds of exceptions for damage."""
    import torch

    with zipfile.ZipFile(io.BytesIO(content)) as archive:  # torch itself does not notice a flipped bit
        if damaged := archive.testzip():
            raise ValueError(f"{damaged} is damaged")
    return torch.load(io.BytesIO(content), map_location=device, weights_only=True)


def unpack_policy(content: bytes) -> Content:
    """The network and its record. Raises PolicyRefused."""
    import torch

    try:
        record = load_tensors(content)
    except Exception as error:  # torch raises a dozen kinds, also for truncated archives
        raise PolicyRefused(f"not readable as weights ({type(error).__name__})") from None
    kind, form, width = (record.get(name) for name in ("kind", "format", "width")) if isinstance(record, dict) else (None,) * 3
    if not isinstance(kind, str) or kind != POLICY_KIND:
        raise PolicyRefused("holds no policy of this program")
    if type(form) is not int or form != POLICY_FORMAT:
        raise PolicyRefused(f"is of format {form!r}, this version reads {POLICY_FORMAT}; train it anew")
    if type(width) is not int or not 0 < width <= LARGEST_WIDTH:
        raise PolicyRefused(f"is damaged (width {width!r})")
    try:
        network = make_network(width)
        if any(values.dtype != torch.float32 for values in record["state"].values()):
            raise TypeError("not of single precision")
        network.load_state_dict(record["state"])
        finite = all(bool(torch.isfinite(values).all()) for values in network.state_dict().values())
        families = {str(name): str(identifier) for name, identifier in record["families"].items()}
    except Exception as error:  # wrong names, shapes or types of any depth
        raise PolicyRefused(f"is damaged ({type(error).__name__})") from None
    if not finite:
        raise PolicyRefused("has weights that are not finite numbers")
    return network.eval(), record | {"families": families}


def unpack_guide(content: bytes) -> Content:
    """The arrays of a guide and its record. Raises PolicyRefused."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            weights = {name: file[name] for name in file.files}
        record = json.loads(str(weights.pop("header")))
        kind, version, families = record["kind"], record["format"], dict(record["families"])
        shapes = {name: array.shape for name, array in weights.items()}
        finite = all(array.dtype == np.float32 and bool(np.isfinite(array).all()) for array in weights.values())
    except (*UNREADABLE, OSError, zipfile.BadZipFile) as error:
        raise PolicyRefused(f"has a damaged guide ({type(error).__name__}); train it anew") from None
    if (kind, version) != (GUIDE_KIND, GUIDE_FORMAT):
        raise PolicyRefused(f"has a guide of format {version!r}, this version reads {GUIDE_FORMAT}; train it anew")
    if shapes != GUIDE_SHAPES or not finite:
        raise PolicyRefused("has a damaged guide (other shapes, or no finite numbers); train it anew")
    return weights, record | {"families": families}


@lru_cache(maxsize=4)
def load_policy(source: bytes | str) -> Policy:
    """A policy from the content of a weights file, or by name: 'fixed', 'random' or 'random SEED'. Raises PolicyRefused."""
    if isinstance(source, str):
        name, _, seed = source.partition(" ")
        return Policy(shuffled=name == "random", seed=int(seed or 0))
    import torch

    torch.set_num_threads(1)  # processes are the parallelism here
    return Policy(unpack_policy(source)[0])


@lru_cache(maxsize=4)
def load_guide(content: bytes) -> dict[str, np.ndarray]:
    """The weights of a guide, as a task brings them. Raises PolicyRefused."""
    return unpack_guide(content)[0]


def read_policy(name: str, family: Family) -> bytes | str:
    """What `load_policy` takes, for a weights file or 'fixed' or 'random'. Raises PolicyRefused with the path."""
    if name in NO_POLICY:
        return name
    remedy = "train one by the command 'train', or give --policy fixed (slow)"
    return _read_part(name, family, lambda content: content, unpack_policy, remedy)


def read_guide(name: str, family: Family) -> bytes:
    """What `load_guide` takes, out of a weights file; torch is not needed. Raises PolicyRefused with the path."""
    return _read_part(name, family, _guide_in, unpack_guide, "train one by the command 'train'")


def find_guide(policy: str | None, shipped: str, family: Family) -> tuple[bytes | None, str]:
    """The guide of local elimination, None for the fixed order; and why there is none where one was expected. Raises PolicyRefused.

    policy: a weights file, which must then be there, or 'fixed' or 'random'; None for the shipped weights.
    """
    if policy in NO_POLICY:
        return None, ""
    try:
        return read_guide(policy or shipped, family), ""
    except PolicyRefused as error:
        if policy is not None:
            raise
        return None, f"{error}; searches went through all rows in the fixed order"


def _guide_in(content: bytes) -> bytes:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return archive.read(GUIDE_MEMBER)
    except KeyError:
        raise PolicyRefused("has no guide; train it anew by the command 'train'") from None
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise PolicyRefused(f"not readable as weights ({type(error).__name__})") from None


def _read_part(name: str, family: Family, part: Callable[[bytes], bytes], unpack: Callable[[bytes], Content], remedy: str) -> bytes:
    """A part of a weights file that can be unpacked and was trained on no other family of this name."""
    try:
        content = part(Path(name).read_bytes())
        families = unpack(content)[1]["families"]
    except OSError as error:
        raise PolicyRefused(f"policy {name}: {error.strerror or error}; {remedy}") from None
    except PolicyRefused as error:
        raise PolicyRefused(f"policy {name}: {error}") from None
    if families.get(family.name, family.identifier) != family.identifier:
        raise PolicyRefused(f"policy {name}: was trained on another family that is called {family.name}; train it anew")
    return content
