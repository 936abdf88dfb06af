"""A run that takes a second: tiny data, one thread, no report."""

from pathlib import Path

import pytest

from fastqat.train.config import TrainConfig


@pytest.fixture
def tiny(tmp_path: Path, one_thread: None) -> TrainConfig:
    return tiny_config(tmp_path / "runs")


def tiny_config(runs: Path) -> TrainConfig:
    return TrainConfig(
        limit=150,
        float_epochs=2,
        float_batch_size=32,
        epochs=4,
        batch_size=16,
        interval=2,
        select="acs",
        fraction=0.3,
        threads=1,
        name="tiny",
        runs=runs,
        report=False,
        progress=False,
    )
