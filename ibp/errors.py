"""Errors: one root, one line for the user."""

from __future__ import annotations

import pickle
import zlib

EXTRAS = {"matplotlib": "plots", "torch": "learn", "yaml": "kira"}  # of this package: which of them installs a module


class ReductionError(Exception):
    """Root of what this program refuses or cannot do; its text is one line: what, where, what to do."""


class InputError(ReductionError):
    """The user's input is wrong (exit code 2)."""


class SingularPoint(ReductionError):
    """At this point modulo this prime something vanishes that does not vanish in general."""


# what reading a damaged pickle, number, text, archive or shelf raises
UNREADABLE = (
    pickle.UnpicklingError,
    zlib.error,
    EOFError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


class PolicyRefused(InputError):
    """Weights that are missing, damaged, or of another family or version."""


class StopRequested(Exception):
    """Another terminal asked the controller to end: the command stop."""


class Unlucky(Exception):
    """A prime or point where something vanishes that does not vanish in general."""


def how_to_install(module: str | None) -> str:
    """The command that installs what is missing."""
    return f"pip install 'ibp-reduce[{EXTRAS[module]}]'" if module in EXTRAS else f"pip install {module}"


def in_short(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


class CertificateError(ReductionError):
    """A certificate or a result does not show what it claims, or is damaged."""
