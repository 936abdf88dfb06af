"""What a RetinaNet says of each anchor, and what the boxes of the picture say it should."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastqat.train.detection.coco import Target

_BACKGROUND = -1  # torchvision's Matcher.BELOW_LOW_THRESHOLD; what lies between the thresholds is -2


class Heads(NamedTuple):
    """Outputs for a batch, fp32: class logits ``[B, A, K]``, box offsets ``[B, A, 4]``, the anchors of each picture B × ``[A, 4]``, and how
    many of the A are of each level of the pyramid.
    """

    logits: Tensor
    offsets: Tensor
    anchors: list[Tensor]
    levels: list[int]


class Asked(NamedTuple):
    """What the boxes of one picture ask of its A anchors.

    `matched` int64 ``[A]``: the box of a foreground anchor (IoU ≥ 0.5, or the best of a box), −1 background (below 0.4), −2 in between.
    `counted` bool ``[A]``: foreground and background; anchors in between are left out as in RetinaNet's focal loss, and so is background
    whose centre lies in the padding that the batch put around a smaller picture: of that other pictures decide.
    """

    matched: Tensor
    counted: Tensor

    @property
    def foreground(self) -> Tensor:
        return self.matched >= 0

    @property
    def background(self) -> Tensor:
        return self.counted & ~self.foreground

    @property
    def objects(self) -> Tensor:
        """Number of foreground anchors, at least 1: what RetinaNet's losses are divided by."""
        return self.foreground.sum().clamp(min=1)

    def one_hot(self, labels: Tensor, classes: int) -> Tensor:
        """y of all anchors, fp32 ``[A, K]``: 1 at the label of a foreground anchor's box; the others' are all 0."""
        # No boolean index here and below: a GPU would be waited for.
        label = torch.cat([labels, labels.new_zeros(1)])[self._slots(len(labels))]
        y = torch.zeros(len(label), classes, device=label.device)
        return y.scatter_(1, label[:, None], self.foreground[:, None].float())

    def shares(self, boxes: int) -> Tensor:
        """What a foreground anchor counts for in the mean over the boxes of the mean over a box's anchors, fp32 ``[A]``; the others' are 0.

        A box none of whose anchors is its own, since another lies upon it, is not in the mean.
        """
        slots = self._slots(boxes)
        anchors = torch.zeros(boxes + 1, device=slots.device).scatter_add_(0, slots, torch.ones_like(slots, dtype=torch.float32))
        found = (anchors[:boxes] > 0).sum().clamp(min=1)
        return self.foreground / (anchors[slots] * found)

    def _slots(self, boxes: int) -> Tensor:
        """`matched`, with `boxes` for what is no foreground."""
        return torch.where(self.foreground, self.matched, boxes)


def prepare(model: Any, pictures: list[Tensor], targets: list[Target] | None) -> tuple[Any, list[Target] | None]:
    """Pictures normalised, resized and padded into one ``ImageList``, and the boxes in its pixels."""
    return model.transform(pictures, targets)


def run_heads(model: Any, images: Any, *, amp: bool = False) -> Heads:
    """Run backbone, pyramid and heads on what `prepare` gave; with `amp` in bfloat16."""
    with torch.autocast(images.tensors.device.type, torch.bfloat16, enabled=amp):
        features = list(model.backbone(images.tensors).values())
        outputs = model.head(features)
    anchors = model.anchor_generator(images, [feature.float() for feature in features])
    logits = outputs["cls_logits"].float()
    places = [feature.shape[-2] * feature.shape[-1] for feature in features]
    levels = [count * logits.shape[1] // sum(places) for count in places]
    return Heads(logits, outputs["bbox_regression"].float(), anchors, levels)


def boxes_of(model: Any, heads: Heads, images: Any, sizes: list[tuple[int, int]]) -> list[dict[str, Tensor]]:
    """``boxes``, ``labels`` and ``scores`` of each picture, fp32, in the pixels of pictures of (height, width) `sizes`; by torchvision."""
    outputs = {"cls_logits": heads.logits, "bbox_regression": heads.offsets}
    split = {name: list(value.split(heads.levels, dim=1)) for name, value in outputs.items()}
    anchors = [list(one.split(heads.levels)) for one in heads.anchors]
    return model.transform.postprocess(model.postprocess_detections(split, anchors, images.image_sizes), images.image_sizes, sizes)


def asked_of(model: Any, heads: Heads, targets: list[Target], images: Any) -> list[Asked]:
    """Match the anchors of every picture with its boxes, by torchvision's own matcher."""
    from torchvision.ops import box_iou

    found = []
    for anchors, target, (height, width) in zip(heads.anchors, targets, images.image_sizes, strict=True):
        if len(target["boxes"]):
            matched = model.proposal_matcher(box_iou(target["boxes"], anchors))
        else:
            matched = torch.full(anchors.shape[:1], _BACKGROUND, device=anchors.device)
        centres = (anchors[:, :2] + anchors[:, 2:]) / 2
        inside = (centres[:, 0] < width) & (centres[:, 1] < height)
        found.append(Asked(matched, (matched >= 0) | ((matched == _BACKGROUND) & inside)))
    return found


def label_losses(model: Any, heads: Heads, targets: list[Target]) -> dict[str, Tensor]:
    """torchvision's losses of the labels: ``classification`` (focal) and ``bbox_regression``, means over the pictures."""
    return model.compute_loss(targets, {"cls_logits": heads.logits, "bbox_regression": heads.offsets}, heads.anchors)


def distillation_losses(student: Heads, teacher: Heads, asked: list[Asked]) -> dict[str, Tensor]:
    """Losses to the float model in place of the labels, which only say which anchors count; means over the pictures.

    With F the foreground anchors of a picture and V its counted ones, q and p the sigmoids of student and teacher:
    ``classification`` = 1/max(1, |F|) Σ_{a ∈ V, k} KL(p_ak ‖ q_ak) of the two outcomes, which is the binary cross-entropy to the teacher up
    to a constant, with the gradient (q − p) / max(1, |F|) for the logits; ``bbox_regression`` = 1/max(1, |F|) Σ_{a ∈ F} ‖o_Q − o_T‖₁ of
    the box offsets.

    Our reading of the papers' distillation, which they define for classification only.
    """
    classification, regression = [], []
    for i, one in enumerate(asked):
        taught = teacher.logits[i][one.counted]
        p = taught.sigmoid()
        cross = F.binary_cross_entropy_with_logits(student.logits[i][one.counted], p, reduction="sum")
        entropy = F.binary_cross_entropy_with_logits(taught, p, reduction="sum")
        classification.append((cross - entropy) / one.objects)
        away = student.offsets[i][one.foreground] - teacher.offsets[i][one.foreground]
        regression.append(away.abs().sum() / one.objects)
    return {"classification": torch.stack(classification).mean(), "bbox_regression": torch.stack(regression).mean()}


def to_device(pictures: list[Tensor], targets: list[Target], device: torch.device) -> tuple[list[Tensor], list[Target]]:
    """Both on `device`."""
    moved = [{name: value.to(device, non_blocking=True) for name, value in target.items()} for target in targets]
    return [picture.to(device, non_blocking=True) for picture in pictures], moved


def losses_of(
    student: nn.Module, teacher: nn.Module | None, pictures: list[Tensor], targets: list[Target], *, amp: bool = False
) -> dict[str, Tensor]:
    """The two losses of a batch: of the labels, or with a `teacher` to distil from of that. Both see the same resized pictures."""
    images, boxes = prepare(student, pictures, targets)
    assert boxes is not None
    heads = run_heads(student, images, amp=amp)
    if teacher is None:
        return label_losses(student, heads, boxes)
    with torch.no_grad():
        taught = run_heads(teacher, images, amp=amp)
    return distillation_losses(heads, taught, asked_of(student, heads, boxes, images))
