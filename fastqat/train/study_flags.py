"""The flags of ``fastqat train`` that are those of a study: as arguments of `run_study`, and as the command that goes on with it."""

from __future__ import annotations

import shlex
from typing import Any

from fastqat._errors import InputError
from fastqat.train.config import TrainConfig

_ARGUMENTS = ("runs", "jobs", "minutes", "threads", "only", "results", "progress")


def study_arguments(config: TrainConfig) -> dict[str, Any]:
    """The arguments of `run_study` in the flags of ``fastqat train --study``.

    Raises:
        InputError: another flag is set: the settings of the runs are in the file.
    """
    # A recipe and a file of settings have set others, which nobody gave as flags.
    sources = [name for name in ("recipe", "config") if getattr(config, name) is not None]
    if others := sources or [name for name in _given(config) if name not in ("study", *_ARGUMENTS)]:
        told = ", ".join(f"--{name.replace('_', '-')}" for name in others)
        raise InputError(f"the settings of a study are in its file; leave out {told} or write them into {config.study}")
    return {name: getattr(config, name) for name in _ARGUMENTS}


def check_single(config: TrainConfig) -> None:
    """Refuse flags of a study where there is none.

    Raises:
        InputError: says which.
    """
    names = [name for name in ("jobs", "minutes", "only", "results") if name in _given(config)]
    if config.study is None and names:
        raise InputError(f"{', '.join(f'--{name}' for name in names)} is for a study; give one with --study, or leave it out")


def study_command(config: TrainConfig) -> str:
    """The command that goes on with the study of `config`, with all its flags.

    Example:
        >>> study_command(TrainConfig(study="my study.yaml", jobs=2, threads=4, progress=False))
        "fastqat train --study 'my study.yaml' --jobs 2 --threads 4 --no-progress"
    """
    given = _given(config)
    words = ["fastqat", "train", "--study", str(config.study)]
    for name in (name for name in _ARGUMENTS if name in given):
        words += [f"--no-{name}"] if given[name] is False else [f"--{name}", str(given[name])]
    return shlex.join(words)


def _given(config: TrainConfig) -> dict[str, Any]:
    """The settings that are not at their default."""
    default = TrainConfig()
    return {name: value for name, value in vars(config).items() if value != getattr(default, name)}
