"""One stage of a run, float training or QAT: epochs with selection, validation, metrics and checkpoints, resumable after any kill."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from fastqat._distributed import exchanging, on_first, world
from fastqat._errors import CheckpointError
from fastqat._progress import progress_bar
from fastqat.selection.datasets import batches_of, sized
from fastqat.selection.policies import SelectionPolicy
from fastqat.selection.seeding import Stream, generator_for
from fastqat.train.batches import TrainSource, steps_per_epoch
from fastqat.train.checkpoint import CheckpointStore, check_same_data, load_weights, save_state
from fastqat.train.engine import EpochResult, Objective, check_finite, cosine_factor, evaluate, train_epoch
from fastqat.train.parallel import Replica, check_agreement, own_batches


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
    checkpoint_seconds: float = 0.0


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

    With several processes each computes the gradient of its part of every batch (`Replica`) and evaluates its part of the data. All
    come to the same weights, selections and numbers, which is checked at the start and after each epoch; process 0 alone writes.

    Args:
        plan: the settings.
        model: on the plan's device.
        optimizer: each group's learning rate is its rate at the start.
        policy: which samples each epoch trains on.
        source: gives the augmented batches.
        val: held-out data for the best checkpoint, or None.
        objective: the loss.
        store: checkpoints of this stage.
        data: fingerprint of the training data, kept in the checkpoints.
        best: file of the best checkpoint, or None.
        finish: called after the last epoch, before validation; None: `finish` of the policy.
        wrong: which labels of the data set are wrong by design, bool ``[N]``, or None; the share that an epoch trains on is logged.
        on_epoch: called with the state after each checkpoint is safe on disk, and once on resume; by process 0 only.
        on_select: called with the epoch after each new selection; by process 0 only.
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
        objective: Objective,
        store: CheckpointStore,
        *,
        data: str,
        best: Path | None = None,
        finish: Callable[[], None] | None = None,
        wrong: Tensor | None = None,
        on_epoch: Callable[[StageState], None],
        on_select: Callable[[int], None] = lambda epoch: None,
        say: Callable[[str], None] = print,
    ):
        self.plan, self.model, self.optimizer, self.policy, self.source, self.val = plan, model, optimizer, policy, source, val
        self.data, self.wrong, self.finish = data, wrong, finish or policy.finish
        self.objective, self.store, self.best = objective, store, best
        self.on_epoch, self.on_select, self.say = on_epoch, on_select, say
        self.base_lrs = [group["lr"] for group in optimizer.param_groups]
        self.state = StageState(seen=torch.zeros(policy.size, dtype=torch.bool))
        self.writes, self._saved = world().rank == 0, -math.inf

    def fit(self, resume: bool) -> StageState:
        """Train to the end, from the latest checkpoint when `resume`.

        Raises:
            CheckpointError: the checkpoint is of another architecture or of other data, or none is whole.
            FastqatError: the loss is not finite, or processes differ.
            ProcessError: another process failed or is gone.
        """
        if resume and self._restore():
            self.say(f"{self.plan.name}: resumed after epoch {self.state.epoch}")
            if self.writes:
                self.on_epoch(self.state)
        self._agree("at the start")
        replica = Replica(self.model)
        for epoch in range(self.state.epoch + 1, self.plan.epochs):
            self._epoch(epoch, replica)
        return self.state

    def _agree(self, when: str) -> None:
        sampler = self.policy.sampler
        check_agreement(self.model, (sampler.indices, sampler.weights), f"{when} of stage {self.plan.name}")

    def _epoch(self, epoch: int, replica: Replica) -> None:
        torch.manual_seed(int(generator_for(self.plan.seed, Stream.TORCH, epoch).initial_seed()))
        before = self.policy.selection_seconds
        reselected = self.policy.begin_epoch(epoch)
        if reselected and self.writes:
            self.on_select(epoch)
        order = self.policy.sampler.order()
        if self.policy.observes_teacher and not self.objective.distil:
            self.policy.scoring_forwards += len(order)  # the teacher runs for the selection alone
        result = self._train(epoch, order, replica)
        check_finite(result, f"{self.plan.name} epoch {epoch}")
        replica.end_epoch()
        self.policy.end_epoch()
        if epoch == self.plan.epochs - 1:
            self.finish()
        self._agree(f"after epoch {epoch}")
        validated = self._validate(epoch)
        state = self.state
        state.epoch, state.steps = epoch, state.steps + result.steps
        state.seconds += result.seconds + self.policy.selection_seconds - before
        state.seen[order] = True
        state.rows.append(self._row(result, validated, order, reselected))
        self._keep(validated)
        self._log(state.rows[-1])

    def _train(self, epoch: int, order: Tensor, replica: Replica) -> EpochResult:
        here = world()
        if here.rank:  # dropout of its own
            torch.manual_seed(int(generator_for(self.plan.seed, Stream.TORCH, epoch, here.rank).initial_seed()))
        steps = steps_per_epoch(len(order), self.plan.batch_size)

        def set_lr(step: int) -> None:
            factor = cosine_factor((epoch + step / steps) / self.plan.epochs)
            for group, lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
                group["lr"] = lr * factor

        batches = self.source.batches(order, self.plan.batch_size, generator_for(self.plan.seed, Stream.AUGMENT, epoch))
        title = f"{self.plan.name} epoch {epoch + 1}/{self.plan.epochs}"
        layout, amp = self.plan.channels_last, self.plan.amp
        with exchanging(), progress_bar(title, len(order) // here.size, show=self.plan.progress) as bar:
            mine = replica.follow(batches)
            goal, policy = self.objective, self.policy
            return train_epoch(replica.module, mine, goal, self.optimizer, set_lr, policy, amp=amp, channels_last=layout, bar=bar)

    def _validate(self, epoch: int) -> EpochResult | None:
        due = (epoch + 1) % self.plan.val_interval == 0 or epoch == self.plan.epochs - 1
        return self.evaluate(self.val) if self.val is not None and due else None

    def evaluate(self, dataset: Dataset, model: nn.Module | None = None) -> EpochResult:
        """Loss and accuracy on all of `dataset` of `model`, or of the stage's own."""
        model = self.model if model is None else model
        return evaluate(model, self._plain(dataset), amp=self.plan.amp, channels_last=self.plan.channels_last)

    def _plain(self, dataset: Dataset) -> Iterator[tuple[Tensor, Tensor]]:
        size = forward_batch(self.plan.device)
        indices = own_batches(sized(dataset), size)
        if indices is not None and not len(indices):
            return
        for x, y in batches_of(dataset, size, indices=indices, num_workers=self.plan.workers):
            assert y is not None
            yield x.to(self.plan.device, non_blocking=True), y.to(self.plan.device, non_blocking=True)

    def _row(self, result: EpochResult, validated: EpochResult | None, order: Tensor, reselected: bool) -> dict[str, Any]:
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
            "selected": len(order),
            "noisy_selected": "" if self.wrong is None else float(self.wrong[order].double().mean()),
            "reselected": int(reselected),
            "beta": "" if beta is None else beta,
            **self._mean_scores(reselected),
            "clc_ratio": "" if result.clc_ratio is None else result.clc_ratio,
        }

    def _mean_scores(self, reselected: bool) -> dict[str, float | str]:
        """Means over all samples of the scores that papers blend, where this epoch's selection is by them."""
        table = self.policy.table if reselected else None
        names = ("evs", "ds", "res")
        return {f"mean_{name}": float(table[name].double().mean()) if table is not None and name in table else "" for name in names}

    def _log(self, row: dict[str, Any]) -> None:
        parts = [f"{row['stage']:<5} epoch {row['epoch'] + 1:>3}/{self.plan.epochs}  loss {row['train_loss']:.4f}"]
        parts.append(f"train {100 * row['train_accuracy']:.2f} %")
        if row["val_accuracy"] != "":
            parts.append(f"val {100 * row['val_accuracy']:.2f} %")
        parts.append(f"{row['samples_per_second']:,.0f} samples/s")
        parts += [f"wrong labels {100 * row['noisy_selected']:.1f} %"] if row["noisy_selected"] != "" else []
        parts += ["re-selected"] if row["reselected"] else []
        left = (self.plan.epochs - 1 - row["epoch"]) * row["seconds"] / (row["epoch"] + 1)
        self.say("  ".join([*parts, f"{left:.0f} s left"]))

    def _keep(self, validated: EpochResult | None) -> None:
        """Best checkpoint (without validation the last is the best); where it is time, this epoch's, then whatever the run writes."""
        state = self.state
        best = self.val is None or (validated is not None and validated.accuracy > state.best_accuracy)
        if best:
            state.best_epoch, state.best_accuracy = state.epoch, -1.0 if validated is None else validated.accuracy
        if not self.writes:
            return
        if best and self.best is not None:
            save_state(self.best, {"epoch": state.epoch, "data": self.data, "model": self.model.state_dict()})
        now, last = time.monotonic(), state.epoch == self.plan.epochs - 1
        if last or now - self._saved >= self.plan.checkpoint_seconds:
            self._saved = now
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
            "objective": self.objective.state_dict(),
        }

    def _restore(self) -> bool:
        saved = on_first(self.store.latest)
        if saved is None:
            return False
        source = f"the checkpoint in {self.store.folder}"
        if saved.get("stage") != self.plan.name:
            raise CheckpointError(f"{source} is of stage {saved.get('stage')!r}, not {self.plan.name!r}; start again with --overwrite")
        check_same_data(saved, self.data, source)
        load_weights(self.model, saved["model"], source)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.policy.load_state_dict(saved["policy"])
        if saved.get("objective"):  # older checkpoints have none
            self.objective.load_state_dict(saved["objective"])
        self.state = StageState(**saved["state"])
        return True
