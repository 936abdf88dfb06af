"""Messages of the library name arguments of Python; on the command line they are flags."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

# Arguments that are flags of another name.
_RENAMED = {
    "warmup": "select_warmup",
    "anneal": "select_anneal",
    "options": "select_options",
    "layers": "clc_layers",
    "method": "select",
    "max_age": "score_max_age",
}
_VALUE = r"('[^']*'|\"[^\"]*\"|[\w.]*\w)?"


def in_flags(text: str, flags: Any) -> str:
    """`text` with flags in place of the arguments ``name=value`` that it tells to change.

    Args:
        text: the message of an error.
        flags: the dataclass of the command's flags; None leaves `text` as it is.

    Example:
        >>> from fastqat.train.config import TrainFlags
        >>> in_flags("use score_source='train' and warmup=2, or balanced=False; val_view= stays", TrainFlags)
        'use --score-source train and --select-warmup 2, or --no-balanced; val_view= stays'
    """
    if flags is None:
        return text
    known = {field.name for field in fields(flags)}
    names = {name: name for name in known} | {argument: name for argument, name in _RENAMED.items() if name in known}

    def flag(match: re.Match[str]) -> str:
        name, value = names[match[1]].replace("_", "-"), (match[2] or "").strip("'\"")
        if value in ("True", "False"):
            return f"--no-{name}" if value == "False" else f"--{name}"
        return f"--{name} {value}".rstrip()

    return re.sub(rf"(?<![\w./=-])({'|'.join(sorted(names, key=len, reverse=True))})={_VALUE}", flag, text)


def value_of(argv: Sequence[str], flag: str) -> str | None:
    """The value of ``--flag VALUE`` or ``--flag=VALUE``, read before the real parsing."""
    for i, word in enumerate(argv):
        if word == flag and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith(flag + "="):
            return word.partition("=")[2]
    return None
