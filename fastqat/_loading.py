"""Import every module of a package, so that each registers itself: a new quantizer, score or selector is one new file."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable


def load_all(package: str, path: Iterable[str]) -> None:
    """Import all modules directly under `package`."""
    for module in pkgutil.iter_modules(path):
        importlib.import_module(f"{package}.{module.name}")
