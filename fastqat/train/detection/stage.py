"""One stage of a detector's training, float or quantized: the steps over lists of pictures, and average precision."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from fastqat._progress import progress_bar
from fastqat.selection.policies import SelectionPolicy
from fastqat.selection.seeding import Stream, generator_for
from fastqat.train.batches import TrainSource
from fastqat.train.checkpoint import CheckpointStore
from fastqat.train.detection.anchors import losses_of, to_device
from fastqat.train.detection.coco import CocoFolder, Target
from fastqat.train.detection.precision import average_precision
from fastqat.train.engine import EpochResult, Objective, cosine_factor
from fastqat.train.parallel import Replica
from fastqat.train.stage import Stage, StagePlan

COLUMNS = (
    "stage", "epoch", "steps", "lr", "train_loss", "class_loss", "box_loss", "ap", "ap50", "samples_per_second", "seconds",
    "selection_seconds", "selected", "reselected", "beta", "mean_evs", "mean_ds",
)  # fmt: skip
_LOOK_EVERY = 100  # steps between two looks at whether the loss is finite


@dataclass(frozen=True)
class DetectorPlan(StagePlan):
    """`StagePlan` with a linear rise of the learning rate over `warmup_steps` (at most an epoch), mirrored pictures where `flip` says so,
    and gradients scaled down to the norm `max_grad_norm`.
    """

    warmup_steps: int = 0
    flip: bool = True
    max_grad_norm: float | None = None


class DetectorStage(Stage):
    """`Stage` for a RetinaNet: order, checkpoints and resumption are its own, in one process.

    Average precision stands where `Stage` has accuracy: it chooses the best checkpoint.

    Args:
        plan: the settings.
        model: the RetinaNet, on the plan's device.
        optimizer: each group's learning rate is its rate after warm-up.
        policy: which pictures each epoch trains on.
        pictures: what `policy` selects from.
        val: pictures to measure average precision on, or None.
        teacher: the float model where the stage distils, else None.
        store: checkpoints of this stage.
        files: as `Stage`: best, on_epoch, on_select, say.
    """

    plan: DetectorPlan

    def __init__(
        self,
        plan: DetectorPlan,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        policy: SelectionPolicy,
        pictures: CocoFolder,
        val: CocoFolder | None,
        teacher: nn.Module | None,
        store: CheckpointStore,
        **files: Any,
    ):
        source = TrainSource(pictures, augment=None, workers=pictures.workers, device=plan.device)
        objective = Objective(teacher, distil=teacher is not None)
        super().__init__(plan, model, optimizer, policy, source, val, objective, store, data=pictures.fingerprint, **files)
        self.pictures = pictures
        self.losses = (math.nan, math.nan)  # of classes and boxes in the last epoch
        self.precision: dict[str, float] = {}  # of the last evaluation of `model`

    def _train(self, epoch: int, order: Tensor, replica: Replica) -> EpochResult:
        """One pass of gradient steps over the pictures `order`."""
        plan, start, size = self.plan, time.perf_counter(), self.plan.batch_size
        mirror = torch.rand(len(order), generator=generator_for(plan.seed, Stream.AUGMENT, epoch)) < (0.5 if plan.flip else 0)
        steps, total = math.ceil(len(order) / size), torch.zeros(2, device=plan.device)
        self.model.train()
        with progress_bar(f"{plan.name} epoch {epoch + 1}/{plan.epochs}", len(order), unit="pictures", show=plan.progress) as bar:
            for step, (pictures, targets) in enumerate(self.pictures.batches(size, order)):
                drawn = zip(pictures, targets, mirror[step * size :].tolist(), strict=False)
                turned = [_mirrored(picture, target) if mirrored else (picture, target) for picture, target, mirrored in drawn]
                x, y = to_device([x for x, _ in turned], [y for _, y in turned], plan.device)
                self._set_lr(epoch + step / steps, self.state.steps + step, steps)
                total += self._step(x, y) * len(x)
                bar.advance(len(x))
                # Now and then, since each look waits for the device; `check_finite` then tells the user.
                if (step + 1) % _LOOK_EVERY == 0 and not total.isfinite().all():
                    break
        classes, boxes = (total / len(order)).tolist()
        self.losses = classes, boxes
        return EpochResult(classes + boxes, math.nan, len(order), steps, time.perf_counter() - start)

    def _step(self, pictures: list[Tensor], targets: list[Target]) -> Tensor:
        """One gradient step; returns the losses of classes and boxes, ``[2]``."""
        found = losses_of(self.model, self.objective.teacher, pictures, targets, amp=self.plan.amp)
        losses = torch.stack([found["classification"], found["bbox_regression"]])
        self.optimizer.zero_grad()
        losses.sum().backward()
        if self.plan.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.plan.max_grad_norm)
        self.optimizer.step()
        return losses.detach()

    def _set_lr(self, epochs: float, step: int, steps_per_epoch: int) -> None:
        """A cosine over the stage, and a linear rise over the first steps: at most an epoch, so that short trainings reach the rate."""
        warmup = max(1, min(self.plan.warmup_steps, steps_per_epoch))
        factor = cosine_factor(epochs / self.plan.epochs) * min(1.0, (step + 1) / warmup)
        for group, lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = lr * factor

    def evaluate(self, dataset: Dataset, model: nn.Module | None = None) -> EpochResult:
        """Average precision on all of `dataset`, a `CocoFolder`, of `model`, or of the stage's own; there is no loss."""
        assert isinstance(dataset, CocoFolder)
        plan, start = self.plan, time.perf_counter()
        network = self.model if model is None else model
        found = average_precision(network, dataset, batch_size=plan.batch_size, amp=plan.amp, progress=plan.progress)
        if network is self.model:
            self.precision = found
        return EpochResult(math.nan, found["ap"], len(dataset), 0, time.perf_counter() - start)

    def _row(self, result: EpochResult, validated: EpochResult | None, order: Tensor, reselected: bool) -> dict[str, Any]:
        row = super()._row(result, validated, order, reselected)
        measured = {} if validated is None else self.precision
        own = {"class_loss": self.losses[0], "box_loss": self.losses[1], "ap": measured.get("ap", ""), "ap50": measured.get("ap50", "")}
        own["lr"] = self.optimizer.param_groups[0]["lr"]  # of the last step
        return {name: own[name] if name in own else row[name] for name in COLUMNS}

    def _log(self, row: dict[str, Any]) -> None:
        parts = [f"{row['stage']:<5} epoch {row['epoch'] + 1:>3}/{self.plan.epochs}  loss {row['train_loss']:.4f}"]
        parts += [f"AP {100 * row['ap']:.2f} %  AP50 {100 * row['ap50']:.2f} %"] if row["ap"] != "" else []
        parts.append(f"{row['samples_per_second']:,.1f} pictures/s")
        parts += ["re-selected"] if row["reselected"] else []
        left = (self.plan.epochs - 1 - row["epoch"]) * row["seconds"] / (row["epoch"] + 1)
        self.say("  ".join([*parts, f"{left:.0f} s left"]))


def _mirrored(picture: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Left and right exchanged: x becomes W − x."""
    x1, y1, x2, y2 = target["boxes"].unbind(1)
    width = picture.shape[-1]
    return picture.flip(-1), {**target, "boxes": torch.stack([width - x2, y1, width - x1, y2], dim=1)}
