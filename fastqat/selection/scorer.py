"""`score_dataset`: every score of every sample in one streaming pass."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from fastqat._errors import DataError, InputError
from fastqat._progress import progress_bar
from fastqat.ops.logit_scores.api import logit_scores
from fastqat.selection.budget import check_count
from fastqat.selection.datasets import batches_of, sized
from fastqat.selection.forwards import Forward, device_of, evaluation_mode, logits_of
from fastqat.selection.scores.registry import Score, get_score
from fastqat.selection.table import ScoreTable
from fastqat.selection.teacher import TeacherCache


def score_dataset(
    model: nn.Module,
    dataset: Dataset,
    scores: str | Sequence[str] | None = None,
    *,
    teacher: nn.Module | TeacherCache | Tensor | None = None,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    num_workers: int = 0,
    progress: bool = True,
    forward: Forward | None = None,
    **options: Any,
) -> ScoreTable:
    """Score every sample of `dataset` with `model`, in one pass, in data-set order.

    The model runs once per batch, in eval mode and without gradients, and is put back into the modes it was in, errors included. So a model
    that is in training is scored as it would predict, and ``grand`` is the gradient of that: batch norm takes its running statistics,
    dropout drops nothing, observers stand still. ``grand`` alone runs a backward pass too, inside `torch.inference_mode` as well, and so
    holds the activations of a batch: pass a smaller `batch_size` where they do not fit. Batches are never shuffled. Scores stay on the
    device until the end: 4 bytes per sample and score, 8 per label. Scores that use the labels wait for the device once per batch, where
    `fastqat.logit_scores` checks them (not on the CPU).

    Args:
        model: gives logits ``[B, C]`` for a batch (or an object with ``.logits``, or a tuple that starts with them).
        dataset: yields ``(x, y)`` with y an integer in ``[0, C)``, un-augmented; one with ``.batches(batch_size)`` needs no loader.
        scores: names from `list_scores`; None: ``evs``, and ``ds`` with a teacher.
        teacher: full-precision model, its logits ``[N, C]``, or a `TeacherCache`, with which later passes run the student only.
        batch_size: samples per forward.
        device: where batches are sent; None: where the model is.
        num_workers: of the `DataLoader`.
        progress: show a bar (on a terminal only).
        forward: ``forward(model, x)`` in place of ``model(x)``, for teacher and student alike.
        options: of the scores, such as ``beta=0.3`` of ``acs``, or ``unknown="func"`` of ``grand`` (see `fastqat.per_sample_grad_norms`).

    Returns:
        `ScoreTable`: name → fp32 ``[N]`` on the CPU, and ``.labels`` int64 ``[N]`` (None when the data set yields no labels).

    Raises:
        InputError: unknown score or option, no teacher where one is needed, a teacher with other classes, NaN logits, a batch size
            below 1; for ``grand`` a layer whose gradient has no rule or a model that was made in inference mode, for ``grand_last`` logits
            that no linear layer gave.
        DataError: empty data set, a label outside ``[0, C)``, no labels where a score needs them.

    Source: ACS, Huang et al., TMLR 2024 (arXiv 2306.07215): the scoring pass.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> data = TensorDataset(torch.randn(100, 8), torch.arange(100) % 3)
        >>> table = score_dataset(torch.nn.Linear(8, 3), data, ["evs", "ds"], teacher=torch.nn.Linear(8, 3))
        >>> table
        ScoreTable(evs, ds; 100 samples, labels)
    """
    size = sized(dataset)
    check_count("batch_size", batch_size)
    cache = teacher if isinstance(teacher, TeacherCache) or teacher is None else TeacherCache(teacher)
    names = (["evs"] if cache is None else ["evs", "ds"]) if scores is None else [scores] if isinstance(scores, str) else list(scores)
    wanted = _wanted(names, cache is not None, options)
    scoring = _Pass(model, wanted, cache, torch.device(device) if device is not None else device_of(model), forward)
    with ExitStack() as stack:
        if scoring.needs_gradients:
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(evaluation_mode(*scoring.models(size)))
        bar = stack.enter_context(progress_bar("scoring", size, show=progress))
        for x, y in batches_of(dataset, batch_size, num_workers=num_workers, pin_memory=scoring.device.type == "cuda"):
            bar.advance(scoring.add(x, y))
    return scoring.table(size)


def _wanted(names: list[str], has_teacher: bool, options: dict[str, Any]) -> dict[str, tuple[Score, dict[str, Any]]]:
    """Requested name → (score, the options it takes)."""
    if not names:
        raise InputError("scores is empty; name at least one, such as 'evs' (list_scores() shows all)")
    wanted = {}
    for name in names:
        score = get_score(name)
        if "teacher" in score.needs and not has_teacher:
            raise InputError(f"score {name!r} compares with a teacher; pass teacher= the full-precision model")
        wanted[name] = (score, {key: options[key] for key in score.options if key in options})
    unknown = set(options) - {key for _, own in wanted.values() for key in own}
    if unknown:
        raise InputError(f"no requested score takes {', '.join(sorted(unknown))}; scores: {', '.join(names)}")
    return wanted


class _Pass:
    """One pass in progress: scores and labels so far, on the device."""

    def __init__(
        self,
        model: nn.Module,
        wanted: dict[str, tuple[Score, dict[str, Any]]],
        cache: TeacherCache | None,
        device: torch.device,
        forward: Forward | None,
    ):
        needs = {need for score, _ in wanted.values() for need in score.needs}
        self.model, self.wanted, self.device, self.forward = model, wanted, device, forward
        self.cache = cache if "teacher" in needs else None
        self.needs_targets, self.needs_gradients = "targets" in needs, "gradients" in needs
        self.columns: dict[str, list[Tensor]] = {name: [] for name in wanted}
        self.labels: list[Tensor] = []
        self.done = self.classes = 0

    def models(self, size: int) -> list[nn.Module]:
        """The models that this pass runs; tells the cache how many samples to expect."""
        if self.cache is None:
            return [self.model]
        self.cache.begin(size)
        return [self.model] if self.cache.complete or self.cache.model is None else [self.model, self.cache.model]

    def add(self, x: Any, y: Tensor | None) -> int:
        """Score one batch; returns its number of samples."""
        if isinstance(x, Tensor):
            x = x.to(self.device, non_blocking=True)
            if self.needs_gradients and x.is_inference():
                x = x.clone()  # what was made in inference mode cannot be saved for a backward pass
        logits, targets = self._watched_forward(x, y)
        taught = None if self.cache is None else self.cache.take(self.done, x, logits, self.forward)
        result = logit_scores(logits, targets, taught)
        for name, (score, options) in self.wanted.items():
            if score.stage == "logits":
                self.columns[name].append(score(result, **options))
        self.done += logits.shape[0]
        return logits.shape[0]

    def _watched_forward(self, x: Any, y: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Logits and targets of one batch, under the eyes of the scores that watch the model."""
        watching = {name: score.watch(self.model, **options) for name, (score, options) in self.wanted.items() if score.stage == "watch"}
        with ExitStack() as stack:
            watched = {name: stack.enter_context(watch) for name, watch in watching.items()}
            logits = logits_of(self.model, x, self.forward)
            self.classes = logits.shape[1]
            targets = self._targets(y, logits)
            for each in watched.values():
                each.logits = logits
                if targets is not None:
                    each.targets = targets
        for name, each in watched.items():
            self.columns[name].append(each.scores.detach())
        return logits.detach(), targets

    def _targets(self, y: Tensor | None, logits: Tensor) -> Tensor | None:
        """Labels on the device, kept for `table`; those out of range are replaced here, and reported there with their place in the data."""
        if y is None:
            if self.needs_targets:
                raise DataError("the data set yields no labels, which the requested scores need; yield (x, y) or ask for ds, entropy, ...")
            return None
        if y.is_floating_point() or y.shape != logits.shape[:1]:
            raise DataError(f"labels must be integers, one per sample, [{logits.shape[0]}]; got {y.dtype} {list(y.shape)}")
        y = y.to(logits.device, non_blocking=True).long()
        self.labels.append(y)
        return y.clamp(0, self.classes - 1) if self.needs_targets else None

    def table(self, size: int) -> ScoreTable:
        """Bring everything to the CPU and check it."""
        if self.done != size:
            raise DataError(f"the data set says it has {size} samples but yielded {self.done}; fix its __len__")
        labels = torch.cat(self.labels).cpu() if self.labels else None
        if self.needs_targets and labels is not None:
            wrong = ((labels < 0) | (labels >= self.classes)).nonzero()
            if len(wrong):
                first = int(wrong[0])
                raise DataError(
                    f"{len(wrong)} labels are outside [0, {self.classes}), the first is {int(labels[first])} at index {first}; "
                    "fix the labels or the number of outputs of the model"
                )
        columns = {name: torch.cat(parts).cpu() for name, parts in self.columns.items()}
        for name, values in columns.items():
            nan = values.isnan().nonzero()
            if len(nan):
                raise InputError(
                    f"score {name!r} of {len(nan)} samples is NaN, the first at index {int(nan[0])}: the logits of the model "
                    "(or the teacher) are NaN or infinite there; check its scales and learning rate"
                )
        return ScoreTable(columns, labels)
