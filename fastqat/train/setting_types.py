"""The types of settings: names of what is registered, and values of YAML and of the command line as the types of their fields."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import yaml

from fastqat._errors import InputError
from fastqat.quantizers.registry import list_quantizers
from fastqat.selection.scores import list_scores
from fastqat.selection.selectors import list_selectors

OWN_POLICIES = ("none", "random", "rs2", "acs", "quarc")
"""Selections with a policy of their own; all others are selectors by name."""

RECIPES = Path(__file__).with_name("recipes")
"""Folder of the settings of papers, ``<name>.yaml``."""

if TYPE_CHECKING:
    from typing import TypeAlias

    SelectName: TypeAlias = str
    ScoreName: TypeAlias = str
    QuantizerName: TypeAlias = str
    RecipeName: TypeAlias = str
else:
    SelectName = Literal[OWN_POLICIES + tuple(name for name in list_selectors() if name not in OWN_POLICIES)]
    # misses are of copies of the model at other bit-widths: a loop with a DynamicsRecorder has them, the trainer does not.
    ScoreName = Literal[tuple(name for name in list_scores() if name != "misses")]
    QuantizerName = Literal[tuple(list_quantizers())]
    RecipeName = Literal[tuple(sorted(path.stem for path in RECIPES.glob("*.yaml")))]


def of_type(hint: Any, value: Any, name: str) -> Any:
    """`value` of the setting `name` as the type `hint`; InputError when it is another."""
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise InputError(f"{name} must be one of {', '.join(get_args(hint))}; got {value!r}")
        return value
    options = get_args(hint) or (hint,)
    if value is None and type(None) in options:
        return None
    wanted = options[0]
    if get_origin(wanted) is Literal:
        return of_type(wanted, value, name)
    if wanted is float and type(value) in (int, str):  # YAML reads 5e-4 as text
        with contextlib.suppress(ValueError):
            value = float(value)
    if wanted is Path and isinstance(value, str):
        value = Path(value)
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise InputError(f"{name} must be {wanted.__name__}; got {value!r}")
    return value


def options_text(value: Any, name: str) -> str:
    """Options given as a mapping, or as JSON or YAML text of one, as JSON in one spelling."""
    try:
        options = yaml.safe_load(value) if isinstance(value, str) else value
        if not isinstance(options, dict) or not all(isinstance(key, str) for key in options):
            raise ValueError
        return json.dumps(options, sort_keys=True)
    except (ValueError, TypeError, yaml.YAMLError):
        raise InputError(f"{name} must be a mapping of options, such as '{{\"strata\": 20}}'; got {value!r}") from None
