"""One rule per type of layer; importing this package enters them all."""

import importlib
import pkgutil

from .registry import Names, Rule, find_rule, register_rule

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Names", "Rule", "find_rule", "register_rule"]
