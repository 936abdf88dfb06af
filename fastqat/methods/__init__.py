"""The papers, one file each."""

from fastqat.methods.acs import ACS
from fastqat.methods.cascade import CascadedCorrection
from fastqat.methods.quarc import QuaRC, QuaRCSubset

__all__ = ["ACS", "CascadedCorrection", "QuaRC", "QuaRCSubset"]
