"""The names of phases, and the words for points that have none.

A user's own classifier may give other names; these are the ones that the classification of this program gives.
"""

from __future__ import annotations

from enum import Enum

TIMEOUT, FAILED = "TIMEOUT", "FAILED"  # why a point has no label
NO_PHASE = ("UNKNOWN",)  # labels that are no phases: kept, but not learnt from


class PhaseType(Enum):
    """Names of phases. Two choices where the list has no name: stripy, double zigzag and every other collinear or canted state with one
    wave vector are SINGLE_Q; several wave vectors without merons are INCOMMENSURATE, or UNKNOWN if all of them are M or K points. Two
    zigzag wave vectors M at once are still ZIGZAG (domains, or their superposition, degenerate if the couplings are isotropic).
    """

    FM = "Ferromagnetic"
    AFM = "Antiferromagnetic"
    ZIGZAG = "Zigzag"
    ORDER_120 = "120° Order"
    INCOMM_GAMMA_M = "Incommensurate Γ→M"
    INCOMM_GAMMA_K = "Incommensurate Γ→K"
    SINGLE_Q = "Single-Q"
    BEATING = "Beating"
    MERON_ANTIMERON = "Meron-Antimeron"
    TRIPLE_Q = "Triple-Q"
    INCOMMENSURATE = "Incommensurate"
    DISORDERED = "Disordered"
    UNKNOWN = "Unknown"
