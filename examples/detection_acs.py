"""ACS for a detector: RetinaNet in 4 bits, trained on the quarter of the pictures that ACS chooses.

    python examples/detection_acs.py [FOLDER]

Needs torchvision and pycocotools. Makes a small data set in COCO's layout, coloured shapes, in FOLDER (default: one that is removed at the
end), and trains a small RetinaNet on all of it. Prints the average precision at IoU 0.5 of the float model, and of the 4-bit model after
training on a random quarter and on the quarter that ACS chooses, from the same start. Takes about a minute on one core. For a folder with
COCO itself: ``fastqat detect --data FOLDER``.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from fastqat.train.detection import DetectorConfig, train_detector
from fastqat.train.detection.shapes import make_shapes


def quietly(line: str) -> None:
    """Take the lines that a run says of its epochs."""


def main(folder: Path) -> None:
    data = make_shapes(folder / "shapes", pictures=96, val_pictures=48)
    config = DetectorConfig(
        data=data,
        train_split="train",
        val_split="val",
        workers=0,
        model="retinanet_tiny",
        min_size=64,
        max_size=64,
        float_epochs=14,
        float_lr=0.02,
        warmup_steps=10,
        qconfig="w4a4",
        fraction=0.25,
        interval=4,
        epochs=12,
        lr=0.004,
        val_interval=20,
        runs=folder / "runs",
    )
    found = train_detector(replace(config, select="none", qconfig="none", epochs=0, name="float"), say=quietly)
    weights = folder / "runs" / "float" / "checkpoints" / "float.pt"
    print(f"float                 AP50 {found['ap50']:6.1%}")
    for name in ("random", "acs"):
        summary = train_detector(replace(config, select=name, float_checkpoint=weights, name=name), say=quietly)
        print(f"W4A4, {name + ' quarter':15s} AP50 {summary['ap50']:6.1%}   pictures seen: {summary['unique_samples']}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder))
