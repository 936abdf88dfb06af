"""`ScoringPass`: one process's share of a pass in progress: batch in, scores kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fastqat._errors import DataError, InputError
from fastqat._modes import frozen
from fastqat.ops.logit_scores.api import logit_scores
from fastqat.selection.forwards import Forward, logits_of, to_device
from fastqat.selection.scores.registry import Probe, Watched
from fastqat.selection.scoring.features import Feature
from fastqat.selection.scoring.reading import Batch
from fastqat.selection.scoring.rows import Rows
from fastqat.selection.scoring.wanted import Wanted
from fastqat.selection.teacher import TeacherCache


class ScoringPass:
    """Scores, labels and features so far, on the device: 4 bytes per sample and score, 8 per label, 4 per value of a feature.

    Args:
        model: what is scored, without a wrapper of several processes.
        wanted: what to compute.
        cache: the teacher, or None.
        device: where batches are sent.
        forward: in place of ``model(x)``.
        size, share: samples of all processes and of this one, None where only the end tells.
        max_bytes: most bytes of all features of all samples.
    """

    def __init__(
        self,
        model: nn.Module,
        wanted: Wanted,
        cache: TeacherCache | None,
        device: torch.device,
        forward: Forward | None,
        size: int | None,
        share: int | None,
        max_bytes: int,
    ):
        self.model, self.wanted, self.device, self.forward = model, wanted, device, forward
        self.cache = cache if "teacher" in wanted.needs else None
        self.size, self.share, self.max_bytes = size, share, max_bytes
        self.restart()

    def restart(self) -> None:
        """Begin with the first batch."""
        self.columns = {column.name: Rows(self.share) for column in self.wanted.columns if column.score.stage != "whole"}
        self.kept = {name: Rows(self.share) for name in self.wanted.kept}
        self.widths: dict[str, int] = {}  # values per sample of each of these
        self.labels = Rows(self.share, torch.int64)
        self.spans: list[tuple[int, int]] = []
        self.done = self.classes = 0
        self.token = 0  # of the teacher's unfinished file, when this was restored

    @property
    def models(self) -> list[nn.Module]:
        """The models that this pass runs."""
        taught = self.cache is not None and self.cache.model is not None and not self.cache.complete
        return [self.model, self.cache.model] if taught else [self.model]  # type: ignore[union-attr,list-item]  # taught: both are there

    def add(self, batch: Batch) -> int:
        """Score one batch; returns its number of samples. Nothing in here waits for a GPU."""
        x = to_device(batch.x, self.device, for_backward=self.wanted.backward)
        logits, targets = self._watched_forward(x, batch.y)
        self._add_logit_scores(batch.start, x, logits, targets)
        for column in self.wanted.at("inputs"):
            with frozen(self.model), torch.enable_grad():
                values = column.score.compute(Probe(self.model, x, logits, targets, self.forward), **column.options)
            self.columns[column.name].append(values.detach())
        self.spans.append((batch.start, len(logits)))
        self.done += len(logits)
        return len(logits)

    def _add_logit_scores(self, start: int, x: Any, logits: Tensor, targets: Tensor | None) -> None:
        taught = None if self.cache is None else self.cache.take(start, self.done, x, logits, self.forward)
        columns = self.wanted.at("logits")
        if columns:
            scores = logit_scores(logits, targets, taught)
            for column in columns:
                self.columns[column.name].append(column.score(scores, **column.options))

    def _watched_forward(self, x: Any, y: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Logits and targets of one batch, under the eyes of the scores and features that watch the model."""
        scores = {column.name: column.score.watch(self.model, **column.options) for column in self.wanted.at("watch")}
        busy = any("gradients" in column.score.needs for column in self.wanted.at("watch"))
        apart = {name for name, feature in self.wanted.kept.items() if busy and "gradients" in feature.needs}
        with ExitStack() as stack:
            watched = {name: stack.enter_context(watch) for name, watch in scores.items()}
            seen = {name: stack.enter_context(self._watch(f)) for name, f in self.wanted.kept.items() if name not in apart}
            logits = logits_of(self.model, x, self.forward)
            self.classes = logits.shape[1]
            targets = self._targets(y, logits)
            _show([*watched.values(), *seen.values()], logits, targets)
        for name in apart:  # the engine measures one thing per forward
            with self._watch(self.wanted.kept[name]) as seen[name]:
                _show([seen[name]], logits_of(self.model, x, self.forward), targets)
        for name, each in watched.items():
            self.columns[name].append(each.scores.detach())
        for name, each in seen.items():
            self.kept[name].append(each.scores.detach())
        return logits.detach(), targets

    @contextmanager
    def _watch(self, feature: Feature) -> Iterator[Watched]:
        with feature.watch(self.model, lambda width: self._admit(feature.name, width)) as watched:
            yield watched

    def _admit(self, name: str, width: int) -> None:
        """Refuse features of which all samples' would not fit into `max_bytes`, before the first are computed."""
        self.widths[name] = width
        samples = self.size if self.size is not None else self.done + 1
        needed = 4 * samples * sum(self.widths.values())
        if needed > self.max_bytes:
            values = ", ".join(f"{kept} {values}" for kept, values in sorted(self.widths.items()))
            raise InputError(
                f"the features of {samples} samples take {needed:,} bytes (values per sample: {values}); max_bytes is {self.max_bytes:,}: "
                "raise it, or choose smaller features"
            )

    def _targets(self, y: Tensor | None, logits: Tensor) -> Tensor | None:
        """Labels on the device, kept for the table; those out of range are replaced here, and reported at the end with their place."""
        if y is None:
            if "targets" in self.wanted.needs:
                raise DataError("the data set yields no labels, which the requested scores need; yield (x, y) or ask for ds, entropy, ...")
            return None
        if not isinstance(y, Tensor) or y.is_floating_point() or y.shape != logits.shape[:1]:
            got = f"{y.dtype} {list(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
            raise DataError(f"labels must be integers, one per sample, [{logits.shape[0]}]; got {got}")
        y = y.to(logits.device, non_blocking=True).long()
        self.labels.append(y)
        return y.clamp(0, self.classes - 1) if "targets" in self.wanted.needs else None

    def state(self) -> dict[str, Tensor]:
        """What was scored so far, on the CPU, for a checkpoint; the teacher's logits of it are safe on the disk before."""
        if self.cache is not None:
            self.cache.flush()
        rows = {**_named("score", self.columns), **_named("kept", self.kept), "labels": self.labels}
        tensors = {name: each.all().cpu() for name, each in rows.items() if len(each)}
        token = torch.tensor(0 if self.cache is None else self.cache.token)
        return {**tensors, "spans": torch.tensor(self.spans), "classes": torch.tensor(self.classes), "teacher": token}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Continue where `state` was taken."""
        for name, rows in {**_named("score", self.columns), **_named("kept", self.kept), "labels": self.labels}.items():
            if name in state:
                rows.append(state[name].to(self.device))
        self.spans = [(start, length) for start, length in state["spans"].tolist()]
        self.classes, self.done = int(state["classes"]), sum(length for _, length in self.spans)
        self.token = int(state["teacher"])


def _named(kind: str, rows: dict[str, Rows]) -> dict[str, Rows]:
    return {f"{kind}:{name}": each for name, each in rows.items()}


def _show(watching: list[Watched], logits: Tensor, targets: Tensor | None) -> None:
    """Fill in what the watchers wait for."""
    for each in watching:
        each.logits = logits
        if targets is not None:
            each.targets = targets
