"""Selectors: how a subset is chosen from scores. One registered file each; `select` adds fraction, class balance and order."""

from fastqat._loading import load_all
from fastqat.selection.selectors.registry import Request, Selection, Selector, get_selector, list_selectors, register_selector

load_all(__name__, __path__)

__all__ = ["Request", "Selection", "Selector", "get_selector", "list_selectors", "register_selector"]
