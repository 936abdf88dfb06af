"""EVS and DS of pictures with boxes: our reading of two scores that the papers define for classification."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from fastqat._errors import InputError
from fastqat._modes import device_of, evaluation_mode
from fastqat._progress import progress_bar
from fastqat.selection.datasets import batches_of, sized
from fastqat.selection.table import ScoreTable
from fastqat.train.detection.anchors import Asked, asked_of, prepare, run_heads, to_device
from fastqat.train.detection.models import check_retinanet

SCORES = ("evs", "ds")
_GAMMA = 2.0  # of torchvision's sigmoid_focal_loss


def score_pictures(
    model: nn.Module,
    dataset: Dataset,
    scores: Sequence[str] = ("evs",),
    *,
    teacher: nn.Module | None = None,
    batch_size: int = 8,
    device: torch.device | str | None = None,
    progress: bool = True,
    amp: bool = False,
) -> ScoreTable:
    """Score every picture of `dataset` with a RetinaNet, in one pass: a `Scorer` for ``ACS(..., scorer=score_pictures, balanced=False)``.

    For a picture with anchors a and classes k, q and p the sigmoids of the model's and the teacher's class logits, y the one-hot class of
    the box that an anchor is matched with (all 0 for background), F_b the foreground anchors of box b, F those of all boxes, B the
    background, γ = 2 the exponent of RetinaNet's focal loss, and t = y or t = p:

        d(q, t)² = mean_b mean_{a ∈ F_b} Σ_k (q_ak − t_ak)² + 1/max(1, |F|) Σ_{a ∈ B, k} (max(q_ak, t_ak)^γ (q_ak − t_ak))²
        d_EVS = d(q, y),   d_DS = d(q, p)

    The papers score one softmax per sample. Here as there ``q − y`` and ``q − p`` are the gradients for the logits, of the binary
    cross-entropy to the labels and to the teacher; box offsets do not enter. The mean over a box's anchors and then over the boxes makes
    the score that of one object: a picture does not come first for having few anchors or few boxes, though it may for having harder ones.
    Background is weighed as in the focal loss, so that the hundred thousand anchors that both sides call nothing add nothing; it is
    RetinaNet's, without the anchors that its loss ignores (IoU between 0.4 and 0.5) and without those in the padding of a batch. This is
    our reading, not the papers': their text names RetinaNet and gives no formula for it.

    Runs in eval mode without gradients; every module is put back into its mode. Memory beyond the forward: a few ``[A, K]`` of one picture.

    Args:
        model: a RetinaNet of torchvision, quantized or not.
        dataset: `CocoFolder`, or any data set with ``.batches(batch_size)`` that yields lists of pictures and of targets.
        scores: ``evs`` and/or ``ds``.
        teacher: the full-precision RetinaNet with the same anchors and classes, for ``ds``; it keeps nothing and runs in every pass.
        batch_size: pictures per forward.
        device: where batches are sent; None: where the model is.
        progress: show a bar (on a terminal only).
        amp: run in bfloat16 by autocast.

    Returns:
        `ScoreTable` without labels: a picture has no single class.

    Raises:
        InputError: another score, no teacher for ``ds``, a model that is no RetinaNet, a teacher of other anchors or classes, NaN logits of
            either.
        DataError: an empty data set.
    """
    _check(model, scores, teacher)
    place = device_of(model) if device is None else torch.device(device)
    compared = teacher if "ds" in scores else None
    rows: list[Tensor] = []
    models = [model] if compared is None else [model, compared]
    with evaluation_mode(*models), progress_bar("scoring", sized(dataset), unit="pictures", show=progress) as bar:
        for pictures, targets in batches_of(dataset, batch_size):
            assert targets is not None
            images, boxes = prepare(model, *to_device(pictures, list(targets), place))
            assert boxes is not None
            heads = run_heads(model, images, amp=amp)
            taught = None if compared is None else run_heads(compared, images, amp=amp).logits
            if taught is not None and taught.shape != heads.logits.shape:
                raise InputError(
                    f"the teacher has outputs {list(taught.shape)} and the model {list(heads.logits.shape)}; they must be alike"
                )
            for i, one in enumerate(asked_of(model, heads, boxes, images)):
                given = None if taught is None else taught[i]
                rows.append(picture_scores(heads.logits[i], one, boxes[i]["labels"], given))
            bar.advance(len(pictures))
    values = torch.stack(rows).cpu()
    _check_numbers(values)
    return ScoreTable({name: values[:, SCORES.index(name)] for name in scores})


def picture_scores(logits: Tensor, asked: Asked, labels: Tensor, taught: Tensor | None = None) -> Tensor:
    """(d_EVS, d_DS) of one picture, fp32 ``[2]``; without a teacher d_EVS alone, ``[1]``.

    Args:
        logits: ``[A, K]``.
        asked: what its boxes ask of the anchors.
        labels: int64 ``[n]`` of the boxes.
        taught: the teacher's logits ``[A, K]``.
    """
    q, shares = logits.sigmoid(), asked.shares(len(labels))
    targets = [asked.one_hot(labels, logits.shape[1]), *([] if taught is None else [taught.sigmoid()])]
    return torch.stack([_distance(q, t, asked, shares) for t in targets])


def _distance(q: Tensor, t: Tensor, asked: Asked, shares: Tensor) -> Tensor:
    """d(q, t) of `score_pictures`."""
    away = q - t
    objects = (away.square().sum(1) * shares).sum()
    weighed = torch.maximum(q, t).pow(_GAMMA) * away
    nothing = (weighed.square().sum(1) * asked.background).sum() / asked.objects
    return (objects + nothing).sqrt()


def _check_numbers(values: Tensor) -> None:
    """InputError for NaN in the columns of `picture_scores`: EVS sees the model alone, DS the teacher too."""
    for who, column in zip(("the model", "the teacher"), values.isnan().unbind(1), strict=False):
        if column.any():
            raise InputError(f"{who} gives NaN for picture {int(column.nonzero()[0])} of the data set; check its weights")


def _check(model: nn.Module, scores: Sequence[str], teacher: nn.Module | None) -> None:
    unknown = [name for name in scores if name not in SCORES]
    if unknown or not scores:
        raise InputError(f"pictures with boxes have the scores {' and '.join(SCORES)}; got {', '.join(unknown) or 'none'}")
    if "ds" in scores and teacher is None:
        raise InputError("score 'ds' compares with a teacher; pass teacher= the full-precision detector")
    for detector in (model, teacher):
        if detector is not None:
            check_retinanet(detector)
