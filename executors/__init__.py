"""."""

__version__ = "0.1.0"  # of all programs here: this floor is the one that they share
