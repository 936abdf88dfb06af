"""The code in the README runs, and its commands exist."""

from __future__ import annotations

import re
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
