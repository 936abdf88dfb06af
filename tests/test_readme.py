"""The code in the README runs, and its commands exist."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # for the files that they write
    found = blocks("python")
    assert found
    names: dict[str, object] = {}  # one for all: later blocks go on with the models of earlier ones
    for block in found:
        exec(compile(block, "README.md", "exec"), names)


def test_commands_parse() -> None:
    from fastqat.cli import main

    commands = {line.split()[1] for block in blocks("sh") for line in block.splitlines() if line.startswith("fastqat ")}
    assert {"train", "score", "report", "bench", "info"} <= commands
    for command in commands:
        try:
            main([command, "--help"])
        except SystemExit as stop:
            assert not stop.code, command


def trainings() -> list[str]:
    """The ``fastqat train`` commands that name no run and no study of the reader's."""
    lines = [line for block in blocks("sh") for line in block.splitlines() if "fastqat train " in line]
    return [line for line in lines if "NAME" not in line and "--study" not in line]


@pytest.mark.parametrize("line", trainings())
def test_trainings_could_start(line: str, tmp_path: Path, one_thread: None) -> None:
    """Settings, models and layers fit together; on digits, which are always there, nothing but the training is missing."""
    from fastqat.cli import _parse_train
    from fastqat.train.run import Run

    config = _parse_train(shlex.split(line.partition("fastqat train ")[2], comments=True))
    if config.data == "digits":
        Run(replace(config, limit=300, fraction=0.2, runs=tmp_path), lambda text: None)
