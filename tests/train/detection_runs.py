"""Shapes, a small detector and a run of a few seconds, for the tests of detection."""

from pathlib import Path

import torch

from fastqat.train.detection import DetectorConfig, make_detector, quantize_detector
from fastqat.train.detection.anchors import prepare, run_heads
from fastqat.train.detection.models import calibrate_detector
from fastqat.train.detection.shapes import make_shapes

CLASSES = 4


def shapes(folder: Path, pictures: int = 16) -> Path:
    return make_shapes(folder / "shapes", pictures=pictures, size=64)


def tiny_detector(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return make_detector("retinanet_tiny", CLASSES, min_size=64, max_size=64)


def quantized(data, seed=0, config="w4a4"):
    return calibrate_detector(quantize_detector(tiny_detector(seed), config), data.batches(4))


def heads_of(model, data, indices):
    pictures, targets = next(data.batches(len(indices), torch.tensor(indices)))
    images, boxes = prepare(model, pictures, targets)
    heads = run_heads(model, images)
    return heads, boxes, images


def tiny_run(folder: Path, data: Path, **options) -> DetectorConfig:
    settings = {
        "train_split": "train",
        "val_split": None,
        "workers": 0,
        "model": "retinanet_tiny",
        "min_size": 64,
        "max_size": 64,
        "float_epochs": 2,
        "float_lr": 0.02,
        "warmup_steps": 2,
        "calibration_pictures": 8,
        "fraction": 0.5,
        "interval": 2,
        "epochs": 4,
        "batch_size": 4,
        "lr": 0.004,
        "name": "tiny",
        "threads": 1,
        "progress": False,
    }
    return DetectorConfig(data=data, runs=folder / "runs", **{**settings, **options})


def quiet(line: str) -> None:
    """Swallow the log."""
