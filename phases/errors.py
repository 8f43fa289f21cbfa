"""Errors: one root, one line for the user."""

from __future__ import annotations


class ExplorerError(Exception):
    """Root of what this program refuses or cannot do; its text is one line: what, where, what to do."""


class InputError(ExplorerError):
    """The user's input is wrong (exit code 2)."""


class PlotsMissing(ExplorerError):
    """matplotlib is not there."""
