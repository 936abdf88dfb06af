"""The papers, one file each."""

from fastqat.methods.acs import ACS

__all__ = ["ACS"]
