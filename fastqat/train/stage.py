"""One stage of a run, float training or QAT: epochs with selection, validation, metrics and checkpoints, resumable after any kill."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from fastqat._errors import CheckpointError
from fastqat._progress import progress_bar
from fastqat.selection.datasets import batches_of
from fastqat.selection.policies import SelectionPolicy
from fastqat.selection.seeding import Stream, generator_for
from fastqat.train.batches import TrainSource, steps_per_epoch
from fastqat.train.checkpoint import CheckpointStore, check_same_data, load_weights, save_state
from fastqat.train.engine import EpochResult, LossFunction, check_finite, cosine_factor, evaluate, train_epoch


def forward_batch(device: torch.device) -> int:
    """Samples per forward without gradients: what fits a CPU's caches (512 took 1.5 times as long), what fills a GPU."""
    return 128 if device.type == "cpu" else 1024


@dataclass(frozen=True)
class StagePlan:
    """What a stage does, apart from the model and the data."""

    name: str
    epochs: int
    batch_size: int
    seed: int
    amp: bool
    channels_last: bool
    device: torch.device
    val_interval: int = 1
    workers: int = 0
    progress: bool = True


@dataclass
class StageState:
    """What a stage has come to; saved with the weights, so that a resumed stage goes on from the same numbers."""

    epoch: int = -1
    steps: int = 0
    seconds: float = 0.0
    best_epoch: int = -1
    best_accuracy: float = -1.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    seen: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))


class Stage:
    """Trains `model` in place over ``plan.epochs`` epochs.

    The weights after epoch e are a pure function of the weights before it and ``(seed, e)``: orders, draws and augmentation are
    derived from these two, and torch is re-seeded per epoch. Files are written in the order best.pt, checkpoint, metrics: a
    kill between any two leaves a state from which the same bits follow.

    Args:
        plan: the settings.
        model: on the plan's device.
        optimizer: each group's learning rate is its rate at the start.
        policy: which samples each epoch trains on.
        source: gives the augmented batches.
        val: held-out data for the best checkpoint, or None.
        loss: ``loss(logits, y, x)``.
        store: checkpoints of this stage.
        data: fingerprint of the training data, kept in the checkpoints.
        best: file of the best checkpoint, or None.
        on_epoch: called with the state after each epoch is safe on disk, and once on resume.
        on_select: called with the epoch after each new selection.
        say: told one line per epoch.
    """

    def __init__(
        self,
        plan: StagePlan,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        policy: SelectionPolicy,
        source: TrainSource,
        val: Dataset | None,
        loss: LossFunction,
        store: CheckpointStore,
        *,
        data: str,
        best: Path | None = None,
        on_epoch: Callable[[StageState], None],
        on_select: Callable[[int], None] = lambda epoch: None,
        say: Callable[[str], None] = print,
    ):
        self.plan, self.model, self.optimizer, self.policy, self.source, self.val = plan, model, optimizer, policy, source, val
        self.data = data
        self.loss, self.store, self.best, self.on_epoch, self.on_select, self.say = loss, store, best, on_epoch, on_select, say
        self.base_lrs = [group["lr"] for group in optimizer.param_groups]
        self.state = StageState(seen=torch.zeros(policy.size, dtype=torch.bool))

    def fit(self, resume: bool) -> StageState:
        """Train to the end, from the latest checkpoint when `resume`.

        Raises:
            CheckpointError: the checkpoint is of another architecture or of other data, or none is whole.
            FastqatError: the loss is not finite.
        """
        if resume and self._restore():
            self.say(f"{self.plan.name}: resumed after epoch {self.state.epoch}")
            self.on_epoch(self.state)
        for epoch in range(self.state.epoch + 1, self.plan.epochs):
            self._epoch(epoch)
        return self.state

    def _epoch(self, epoch: int) -> None:
        torch.manual_seed(int(generator_for(self.plan.seed, Stream.TORCH, epoch).initial_seed()))
        before = self.policy.selection_seconds
        reselected = self.policy.begin_epoch(epoch)
        if reselected:
            self.on_select(epoch)
        order = self.policy.sampler.order()
        result = self._train(epoch, order)
        check_finite(result, f"{self.plan.name} epoch {epoch}")
        if epoch == self.plan.epochs - 1:
            self.policy.finish()
        validated = self._validate(epoch)
        state = self.state
        state.epoch, state.steps = epoch, state.steps + result.steps
        state.seconds += result.seconds + self.policy.selection_seconds - before
        state.seen[order] = True
        state.rows.append(self._row(result, validated, len(order), reselected))
        self._keep(validated)
        self._log(state.rows[-1])

    def _train(self, epoch: int, order: Tensor) -> EpochResult:
        steps = steps_per_epoch(len(order), self.plan.batch_size)

        def set_lr(step: int) -> None:
            factor = cosine_factor((epoch + step / steps) / self.plan.epochs)
            for group, lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
                group["lr"] = lr * factor

        batches = self.source.batches(order, self.plan.batch_size, generator_for(self.plan.seed, Stream.AUGMENT, epoch))
        title = f"{self.plan.name} epoch {epoch + 1}/{self.plan.epochs}"
        with progress_bar(title, len(order), show=self.plan.progress) as bar:
            layout, amp = self.plan.channels_last, self.plan.amp
            return train_epoch(self.model, batches, self.loss, self.optimizer, set_lr, amp=amp, channels_last=layout, bar=bar)

    def _validate(self, epoch: int) -> EpochResult | None:
        due = (epoch + 1) % self.plan.val_interval == 0 or epoch == self.plan.epochs - 1
        return self.evaluate(self.val) if self.val is not None and due else None

    def evaluate(self, dataset: Dataset, model: nn.Module | None = None) -> EpochResult:
        """Loss and accuracy on `dataset` of `model`, or of the stage's own."""
        model = self.model if model is None else model
        return evaluate(model, self._plain(dataset), amp=self.plan.amp, channels_last=self.plan.channels_last)

    def _plain(self, dataset: Dataset) -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in batches_of(dataset, forward_batch(self.plan.device), num_workers=self.plan.workers):
            assert y is not None
            yield x.to(self.plan.device, non_blocking=True), y.to(self.plan.device, non_blocking=True)

    def _row(self, result: EpochResult, validated: EpochResult | None, selected: int, reselected: bool) -> dict[str, Any]:
        epoch, beta = self.state.epoch, self.policy.beta(self.state.epoch)
        return {
            "stage": self.plan.name,
            "epoch": epoch,
            "steps": self.state.steps,
            "lr": self.base_lrs[0] * cosine_factor(epoch / self.plan.epochs),
            "train_loss": result.loss,
            "train_accuracy": result.accuracy,
            "val_loss": "" if validated is None else validated.loss,
            "val_accuracy": "" if validated is None else validated.accuracy,
            "samples_per_second": result.samples / result.seconds,
            "seconds": self.state.seconds,
            "selection_seconds": self.policy.selection_seconds,
            "selected": selected,
            "reselected": int(reselected),
            "beta": "" if beta is None else beta,
        }

    def _log(self, row: dict[str, Any]) -> None:
        parts = [f"{row['stage']:<5} epoch {row['epoch'] + 1:>3}/{self.plan.epochs}  loss {row['train_loss']:.4f}"]
        parts.append(f"train {100 * row['train_accuracy']:.2f} %")
        if row["val_accuracy"] != "":
            parts.append(f"val {100 * row['val_accuracy']:.2f} %")
        parts.append(f"{row['samples_per_second']:,.0f} samples/s")
        parts += ["re-selected"] if row["reselected"] else []
        left = (self.plan.epochs - 1 - row["epoch"]) * row["seconds"] / (row["epoch"] + 1)
        self.say("  ".join([*parts, f"{left:.0f} s left"]))

    def _keep(self, validated: EpochResult | None) -> None:
        """Best checkpoint (without validation the last is the best), this epoch's checkpoint, then whatever the run writes."""
        state = self.state
        if self.val is None or (validated is not None and validated.accuracy > state.best_accuracy):
            state.best_epoch, state.best_accuracy = state.epoch, -1.0 if validated is None else validated.accuracy
            if self.best is not None:
                save_state(self.best, {"epoch": state.epoch, "data": self.data, "model": self.model.state_dict()})
        self.store.save(state.epoch, self._state_dict())
        self.on_epoch(state)

    def _state_dict(self) -> dict[str, Any]:
        return {
            "stage": self.plan.name,
            "data": self.data,
            "state": vars(self.state),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "policy": self.policy.state_dict(),
        }

    def _restore(self) -> bool:
        saved = self.store.latest()
        if saved is None:
            return False
        source = f"the checkpoint in {self.store.folder}"
        if saved.get("stage") != self.plan.name:
            raise CheckpointError(f"{source} is of stage {saved.get('stage')!r}, not {self.plan.name!r}; start again with --overwrite")
        check_same_data(saved, self.data, source)
        load_weights(self.model, saved["model"], source)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.policy.load_state_dict(saved["policy"])
        self.state = StageState(**saved["state"])
        return True
