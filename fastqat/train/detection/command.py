"""``fastqat detect``: `train_detector` with flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import tyro

from fastqat._flag_names import value_of
from fastqat.train.detection.config import DetectorConfig, DetectorFlags
from fastqat.train.detection.run import train_detector
from fastqat.train.table import print_table


def parse_detect(argv: Sequence[str]) -> DetectorConfig:
    """Flags over the settings of ``--config``, or of the run that ``--resume --name`` names, over the defaults."""
    config, name, default = value_of(argv, "--config"), value_of(argv, "--name"), DetectorConfig()
    if config is not None:
        default = DetectorConfig.from_yaml(Path(config))
    elif "--resume" in argv and name is not None:
        runs = Path(value_of(argv, "--runs") or default.runs)
        saved = runs / name / "config.yaml"
        default = replace(DetectorConfig.from_yaml(saved) if saved.is_file() else default, name=name, runs=runs)
    flags = tyro.cli(DetectorFlags, prog="fastqat detect", args=list(argv), default=DetectorFlags(**vars(default)))
    return DetectorConfig(**vars(flags))


def detect_command(config: DetectorConfig) -> None:
    """Train, and print what came of it."""
    summary = train_detector(config)
    percent = {name: "-" if summary[name] is None else f"{100 * summary[name]:.2f} %" for name in ("float_ap", "ap", "ap50", "best_ap")}
    costs = {name: f"{summary[name]:,.0f}" for name in ("gradient_steps", "unique_samples", "scoring_forwards", "seconds")}
    print_table(("", "result"), list({**percent, **costs}.items()), str(config.run_dir))
