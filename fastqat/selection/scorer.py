"""`score_dataset`: every score of every sample in one streaming pass."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from fastqat._progress import progress_bar
from fastqat.selection.forwards import Forward, device_of, evaluation_mode, unwrapped
from fastqat.selection.scoring.checkpoint import PassCheckpoint
from fastqat.selection.scoring.columns import table_of
from fastqat.selection.scoring.key import check_same, check_same_content, pass_key
from fastqat.selection.scoring.reading import Reader
from fastqat.selection.scoring.scoring_pass import ScoringPass
from fastqat.selection.scoring.sharing import Processes, Team
from fastqat.selection.scoring.wanted import Wanted
from fastqat.selection.table import ScoreTable
from fastqat.selection.teacher import TeacherCache
from fastqat.selection.teachers.stores import View

MAX_BYTES = 2**31


def score_dataset(
    model: nn.Module,
    dataset: Dataset | DataLoader,
    scores: str | Sequence[str] | None = None,
    *,
    teacher: nn.Module | TeacherCache | Tensor | None = None,
    features: str | None = None,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    num_workers: int = 0,
    progress: bool = True,
    forward: Forward | None = None,
    max_bytes: int = MAX_BYTES,
    checkpoint: str | Path | None = None,
    data_key: str | None = None,
    processes: Processes = "share",
    **options: Any,
) -> ScoreTable:
    """Score every sample of `dataset` with `model`, in one pass, in data-set order.

    The model runs once per batch, in eval mode and without gradients, and is put back into the modes it was in, errors included. So a model
    that is in training is scored as it would predict, and ``grand`` is the gradient of that: batch norm takes its running statistics,
    dropout drops nothing, observers stand still. ``grand``, ``features="scale_grads"`` and scores that need "inputs" run backward passes
    too, inside `torch.inference_mode` as well, and so hold the activations of a batch: pass a smaller `batch_size` where they do not fit.

    **Memory.** A pass holds, on the device, 4 bytes per sample and score, 8 per label, 4 per value of a feature, and what one batch takes,
    whatever the size of the data; for a stream of unknown length up to twice that, and where several processes put their parts together
    8 more per sample and a column once more. Scores that compare all samples ("embeddings" or
    "probabilities" in their needs) make it hold those as features, and what their own docstring says. The teacher's logits: see
    `TeacherCache`, which can keep them on disk. No batch waits for a GPU, so that with workers loading, copying and both forwards overlap
    (but the logits of the last layer in another dtype, for ``grand_last`` and ``embedding``, are compared with the layer's output there).

    **Data.** Map-style data sets; data sets with ``.batches(batch_size)``, which need no loader; iterable data sets, with or without a
    length, in the order in which they yield; a plain `DataLoader` over either that does not shuffle, drop or pick samples, whose own batch
    size, workers and ``collate_fn`` count. A batch is ``(x, y)``, x alone, or a mapping with ``labels`` or ``label``, the rest of which the
    model gets as keyword arguments. Tensors are moved to the device inside of lists, tuples and mappings too. Batches are never shuffled.

    **Several processes.** Where `torch.distributed` is initialised all processes of the group call this, with the same arguments; other
    weights or other data in one of them are refused (of a stream the data are not looked at), other buffers warned of. Each
    scores every `size`-th batch (of a stream all read everything), so that all batches have the shapes they have in one process, and every
    process returns the whole table. A model in `DistributedDataParallel` is run without it; one that is divided among the processes (FSDP)
    cannot be scored so. An error in one process is raised in all. Only process 0 shows a bar.

    Args:
        model: gives logits ``[B, C]`` for a batch (or an object with ``.logits``, or a tuple that starts with them).
        dataset: yields ``(x, y)`` with y an integer in ``[0, C)``, un-augmented.
        scores: names from `list_scores`; None: ``evs``, and ``ds`` with a teacher.
        teacher: full-precision model, which keeps nothing; its logits ``[N, C]``; or a `TeacherCache`, with which later passes run the
            student only.
        features: what to keep of each sample as ``table.features`` ``[N, D]``, fp32. With p the softmax, y one-hot, h the input of the last
            linear layer ``[H]``: ``"embedding"``: h; ``"error"``: p − y; ``"gradient"``: [p − y ; (p − y) hᵀ], ``C·(H + 1)`` values, the
            last layer's gradient, bias first; ``"scale_grads"``: gradients of all quantizer parameters of a sample's cross-entropy;
            ``"probabilities"``: p; or the name of a module: its input, flattened.
        batch_size: samples per forward.
        device: where batches are sent; None: where the model is.
        num_workers: of the `DataLoader`; at most 1 for an iterable data set.
        progress: show a bar with samples per second and the time left (on a terminal only).
        forward: ``forward(model, x)`` in place of ``model(x)``, for teacher and student alike.
        max_bytes: most bytes of all features, those of scores that compare all samples included; known after the first batch.
        checkpoint: file that the progress is written to every half minute, or less often where that would take more than 2 % of the time. A
            pass that was killed continues at that batch and gives the same bits. One of another model, teacher, data, forward, request or
            batch size, or of another device type, autocast or TF32 setting, is not used, with a warning. It is removed at the end.
        data_key: a name of yours for the content of the data, in place of its fingerprint (see `TeacherCache`), for `checkpoint` and the
            teacher's logits on disk; an iterable data set needs it there.
        processes: ``"share"``: divide the pass among the processes of `torch.distributed`; ``"alone"``: this process scores everything by
            itself, for code that only one of them runs.
        options: of the scores, such as ``beta=0.3`` of ``acs``, or ``unknown="func"`` of ``grand`` (see `fastqat.per_sample_grad_norms`).

    Returns:
        `ScoreTable`: name → fp32 ``[N]`` on the CPU, ``.labels`` int64 ``[N]`` (None when the data set yields no labels) and ``.features``.

    Raises:
        InputError: unknown score, feature or option, no teacher where one is needed, a teacher with other classes, NaN logits, a batch size
            below 1; features that take more than `max_bytes`; a loader that shuffles; for ``grand`` a layer whose gradient has no rule or
            a model that was made in inference mode, for ``grand_last`` logits that no linear layer gave.
        DataError: empty data set, a label outside ``[0, C)``, no labels where a score needs them.
        ProcessError: another process failed or is gone (gloo tells at once, nccl after the timeout of its group), or was waited for longer
            than that timeout.
        OSError: the checkpoint or the teacher's logits cannot be written.

    Source: ACS, Huang et al., TMLR 2024 (arXiv 2306.07215): the scoring pass.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> data = TensorDataset(torch.randn(100, 8), torch.arange(100) % 3)
        >>> score_dataset(torch.nn.Linear(8, 3), data, ["evs", "ds"], teacher=torch.nn.Linear(8, 3))
        ScoreTable(evs, ds; 100 samples, labels)
        >>> score_dataset(torch.nn.Linear(8, 3), data, "entropy", features="error").features.shape
        torch.Size([100, 3])
    """
    team, model = Team(processes), unwrapped(model)
    with team.step():
        reader = Reader(dataset, batch_size, num_workers)
        cache = teacher if isinstance(teacher, TeacherCache) or teacher is None else TeacherCache(teacher, keep=False)
        wanted = Wanted(scores, features, model, cache is not None, options)
        place = torch.device(device) if device is not None else device_of(model)
        share = reader.share(team.deal)
        scoring = ScoringPass(model, wanted, cache, place, forward, reader.size, share, max_bytes)
        view = View(reader.dataset, data_key, reader.size, share, reader.batch_size, team, place, forward)
        saved = None if checkpoint is None else PassCheckpoint(checkpoint, pass_key(scoring, view), team.deal)
    check_same(team, (reader.size, reader.batch_size, wanted.text(), saved is None))
    check_same_content(scoring, view)
    try:
        _resume(scoring, saved, view)
        with team.step():
            _run(scoring, reader, team, saved, show=progress)
        table = table_of(scoring, team)
    except BaseException:
        if scoring.cache is not None:
            scoring.cache.abandon(resumed=saved is not None)
        raise
    if saved is not None:
        saved.remove()
    return table


def _resume(scoring: ScoringPass, saved: PassCheckpoint | None, view: View) -> None:
    """Take over what an earlier pass has done, and prepare the teacher for the rest."""
    with view.team.step():
        state = None if saved is None else saved.load()
    if state is not None:
        scoring.restore(state)
    if scoring.cache is not None and not scoring.cache.begin(view._replace(done=scoring.done, token=scoring.token)):
        assert saved is not None
        saved.warn("the teacher's logits that belong to it are gone")
        scoring.restart()


def _run(scoring: ScoringPass, reader: Reader, team: Team, saved: PassCheckpoint | None, *, show: bool) -> None:
    """Score the batches of this process that are left."""
    left = None if (share := reader.share(team.deal)) is None else share - scoring.done
    with ExitStack() as stack:
        if scoring.wanted.backward:
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(evaluation_mode(*scoring.models))
        bar = stack.enter_context(progress_bar("scoring", left, show=show and team.rank == 0))
        for batch in reader.batches(team.deal, len(scoring.spans), pin_memory=scoring.device.type == "cuda"):
            bar.advance(scoring.add(batch))
            if saved is not None:
                saved.save_if_due(scoring.state)
