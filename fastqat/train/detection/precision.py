"""Average precision of a detector, as COCO defines it: by pycocotools."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import torch
from torch import Tensor, nn

from fastqat._errors import DataError, InputError
from fastqat._modes import device_of, evaluation_mode
from fastqat._progress import progress_bar
from fastqat.train.detection.anchors import boxes_of, prepare, run_heads
from fastqat.train.detection.coco import CocoFolder

# The first numbers of COCOeval.stats, in its order.
MEASURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


def check_pycocotools() -> None:
    """InputError when pycocotools does not import."""
    try:
        import pycocotools.cocoeval  # noqa: F401 (asked only whether it is there)
    except ImportError as error:
        raise InputError(
            f"average precision needs pycocotools, which does not import ({error}); pip install fastqat[detection], or train without "
            "val_split"
        ) from error


def average_precision(
    model: nn.Module, data: CocoFolder, *, batch_size: int = 8, amp: bool = False, progress: bool = True
) -> dict[str, float]:
    """COCO's average precisions of the RetinaNet `model` on `data`, in [0, 1]; NaN where `data` has no box of that size.

    ``ap`` is the mean over IoU 0.50 to 0.95 in steps of 0.05, ``ap50`` and ``ap75`` those at one IoU, ``ap_small``, ``ap_medium`` and
    ``ap_large`` those of boxes below 32², up to 96² and above, in pixels. Crowd boxes are ignored as pycocotools does. `data` should keep
    its empty pictures.

    Raises:
        InputError: pycocotools does not import.
        DataError: pycocotools cannot use the annotations.
    """
    check_pycocotools()
    found = detections(model, data, batch_size=batch_size, amp=amp, progress=progress)
    return _measure(data, found)


def detections(model: nn.Module, data: CocoFolder, *, batch_size: int, amp: bool, progress: bool) -> list[dict[str, Any]]:
    """What `model` finds, in the format of COCO's results. With `amp` the network runs in bfloat16; anchors, boxes and scores are fp32."""
    device, found, seen = device_of(model), [], 0
    with evaluation_mode(model), progress_bar("evaluating", len(data), unit="pictures", show=progress) as bar:
        for pictures, _ in data.batches(batch_size):
            images, _ = prepare(model, [picture.to(device, non_blocking=True) for picture in pictures], None)
            sizes = [(picture.shape[-2], picture.shape[-1]) for picture in pictures]
            outputs = boxes_of(model, run_heads(model, images, amp=amp), images, sizes)
            for image, output in zip(data.image_ids[seen : seen + len(pictures)], outputs, strict=True):
                found += _results(image, output)
            seen += len(pictures)
            bar.advance(len(pictures))
    return found


def _results(image: int, output: dict[str, Tensor]) -> list[dict[str, Any]]:
    """One picture's boxes as x, y, width, height."""
    corners = output["boxes"].cpu()
    boxes = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1).tolist()
    rows = zip(boxes, output["labels"].tolist(), output["scores"].tolist(), strict=True)
    return [{"image_id": image, "category_id": label, "bbox": box, "score": score} for box, label, score in rows]


def _measure(data: CocoFolder, found: list[dict[str, Any]]) -> dict[str, float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            truth, nothing = COCO(str(data.annotations)), COCO()
            nothing.dataset = {"images": truth.dataset["images"], "categories": truth.dataset["categories"], "annotations": []}
            nothing.createIndex()
            # loadRes does not take an empty list.
            evaluation = COCOeval(truth, truth.loadRes(found) if found else nothing, "bbox")
            evaluation.params.imgIds = data.image_ids
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
    except (KeyError, AssertionError, IndexError) as error:
        raise DataError(
            f"pycocotools cannot use {data.annotations} ({type(error).__name__}: {error}); every annotation needs id, image_id, "
            "category_id, bbox, area and iscrowd"
        ) from error
    # COCOeval marks what cannot be measured by -1.
    return {name: float("nan") if value < 0 else float(value) for name, value in zip(MEASURES, evaluation.stats, strict=False)}
