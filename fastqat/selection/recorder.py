"""`DynamicsRecorder`: scores from the training itself, gathered in any loop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastqat._distributed import gather_rows, world
from fastqat._errors import CheckpointError, InputError
from fastqat.selection.budget import check_count
from fastqat.selection.recording.dynamics import Dynamics, Transitions
from fastqat.selection.recording.showings import PACKED, Outcomes, Showings, Turns, Votes, measure, unpacked
from fastqat.selection.scores.registry import get_score, list_scores
from fastqat.selection.table import ScoreTable

SUGGESTED = "suggested"
"""Column of the class that a sample looks like most, its label aside."""

_SUMS = 5  # margin, evs, loss, p_y, p_y²
_AVERAGED = ("evs", "loss")  # scores of one forward of which the mean is recorded


class DynamicsRecorder:
    """Watch a training: every batch's logits go to `update`, and `table` gives one column per score of stage "dynamics".

    Feed it from any loop over an `IndexedDataset`, in any order; a sample may come several times in an epoch, or not at all. What counts
    is each showing in its turn: a sample is forgotten when it was right when shown before and is wrong now. A batch costs one
    `fastqat.logit_scores` and a copy of its logits: about a quarter of a millisecond for 256 × 100 on one CPU thread; on a GPU nothing
    waits for the device. Memory: 65 bytes per sample on the device of the logits, and 13 more for each bit-width. Sums are fp64 and added
    in a fixed order: the same showings give the same bits.

    Args:
        num_samples: N, the length of the data set.
        device: of the counts; None: the device of the first logits.
        distributed: with several processes each records what it sees and `synchronise` puts all of it together, in the order of the
            steps, so that all end with the same table. False: this process records for itself.

    Raises:
        InputError: `num_samples` below 1.

    Source: forgetting, Toneva et al., ICLR 2019; AUM, Pleiss et al., NeurIPS 2020; EL2N over checkpoints, Paul et al., NeurIPS 2021;
    Dataset Cartography, Swayamdipta et al., EMNLP 2020; quantization misses, QCore, Campos et al., PVLDB 2024.

    Example:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from fastqat.selection import DynamicsRecorder, IndexedDataset
        >>> data = IndexedDataset(TensorDataset(torch.randn(60, 8), torch.arange(60) % 3))
        >>> model, recorder = torch.nn.Linear(8, 3), DynamicsRecorder(60)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> for epoch in range(2):
        ...     for x, y, index in DataLoader(data, 20, shuffle=True):
        ...         logits = model(x)
        ...         recorder.update(index, logits, y)
        ...         optimizer.zero_grad()
        ...         torch.nn.functional.cross_entropy(logits, y).backward()
        ...         optimizer.step()
        >>> recorder.table(["aum", "forgetting", "el2n"])
        ScoreTable(aum, forgetting, el2n, suggested; 60 samples, labels)
    """

    def __init__(self, num_samples: int, *, device: torch.device | str | None = None, distributed: bool = True):
        self.num_samples = check_count("num_samples", num_samples)
        self.distributed = distributed
        self._device = None if device is None else torch.device(device)
        self._steps = 0
        self._pending: list[Tensor] = []
        self._clear(self._device or torch.device("cpu"))

    def _clear(self, device: torch.device) -> None:
        """Nothing recorded. The row after the last sample's is a spare one: what must not count goes there, without waiting for a GPU."""
        rows = self.num_samples + 1
        self._training = Outcomes.none_yet(rows, device)
        self._bits: dict[int, Outcomes] = {}
        self._sums = torch.zeros(rows, _SUMS, dtype=torch.float64, device=device)
        self._votes = Votes.none_yet(rows, device)
        self._labels = torch.full((rows,), -1, dtype=torch.int32, device=device)
        self._stray = torch.zeros((), dtype=torch.int64, device=device)

    def update(self, indices: Tensor, logits: Tensor, targets: Tensor, *, bits: int | None = None) -> None:
        """Record one batch.

        Args:
            indices: integers ``[B]``, positions in the data set, on any device.
            logits: ``[B, C]``, C ≥ 2, as the model gave them; nothing is recorded for the backward pass.
            targets: integers ``[B]`` in ``[0, C)``.
            bits: None: of the model in training. A number: of its copy at that bit-width, at a checkpoint; these are counted apart, for
                the score ``misses``.

        Raises:
            InputError: shapes or types other than these, a bit-width outside [1, 32]; an index outside ``[0, N)`` or a target outside
                ``[0, C)`` where these are on the CPU: of a GPU `table` says so.
        """
        if bits is not None and check_count("bits", bits) > 32:
            raise InputError(f"bits must be a bit-width from 1 to 32, or None for the model in training; got {bits}")
        shown = measure(indices, logits, targets, self.num_samples)
        if self._device is None:
            self._move(logits.device)
        shown = shown.to(self._labels.device)
        self._steps += 1
        if self.distributed and world().size > 1:
            self._pending.append(shown.packed(self._steps, bits or 0))
        else:
            self._add(shown, bits or 0)

    def _add(self, shown: Showings, bits: int) -> None:
        """Count one batch, of the model in training where `bits` is 0."""
        known = (shown.sample >= 0) & (shown.sample < self.num_samples)
        self._stray += (~known).sum()
        turns = Turns.of(torch.where(known, shown.sample, self.num_samples), self.num_samples)
        shown = Showings(*(values[turns.order] for values in shown))
        self._labels[turns.final] = shown.target.int()
        if bits:
            outcomes = self._bits.setdefault(bits, Outcomes.none_yet(self.num_samples + 1, self._labels.device))
            outcomes.add(turns, shown.correct)
            return
        self._training.add(turns, shown.correct)
        self._votes.add(turns, shown.other)
        p = (-shown.loss).exp()
        values = torch.stack([shown.margin, shown.evs, shown.loss, p, p * p], dim=1)
        self._sums.index_put_((turns.sample,), values, accumulate=True)

    def synchronise(self) -> None:
        """With several processes: put together what all saw since the last call. All of them call it, best at the end of each epoch.

        Until then 72 bytes per showing wait on the device. The batches of one step count as one batch, in the order of the ranks. A
        sample that a sampler repeats, so that all ranks have equally many, counts each time.
        """
        if not self.distributed or world().size == 1:
            return
        device = self._labels.device
        own = torch.cat(self._pending) if self._pending else torch.zeros(0, PACKED, dtype=torch.float64, device=device)
        rows = torch.cat(gather_rows(own)).to(device)
        self._pending = []
        for bits, shown in unpacked(rows):
            self._add(shown, bits)
        self._steps = max(self._steps, int(rows[:, 0].max())) if len(rows) else self._steps

    @property
    def seen(self) -> Tensor:
        """How often the model in training was shown each sample: int64 ``[N]`` on the CPU; of all processes after `synchronise`."""
        return self._training.seen[: self.num_samples].cpu().long()

    def table(self, scores: str | Sequence[str] | None = None) -> ScoreTable:
        """The scores of every sample, with the labels that were given last, and the column ``suggested``.

        ``suggested`` is the class other than the label that a sample looks like most: the one whose logit was the largest of the others
        in more than half of the showings, if there is one (see `find_label_issues`). It needs the model in training.

        Args:
            scores: names of scores of stage "dynamics", or ``evs``, ``el2n`` or ``loss``, which are then means over all showings; None:
                all that can be told from what was recorded.

        Raises:
            InputError: nothing was recorded, or not all samples, or logits that are NaN, or indices outside ``[0, N)``; a score that
                needs something else; several processes that have not called `synchronise`.
        """
        dynamics = self.dynamics()
        names = [scores] if isinstance(scores, str) else list(scores) if scores is not None else _recordable()
        columns = {name: _column(name, dynamics) for name in names}
        if scores is None:
            columns = {name: values for name, values in columns.items() if values is not None}
        missing = [name for name, values in columns.items() if values is None]
        if missing:
            raise InputError(f"score {missing[0]!r} needs update() with {'bits=' if dynamics.training else 'the model in training'}")
        if dynamics.training is not None:
            columns[SUGGESTED] = self._votes.candidate[: self.num_samples]
        return ScoreTable({name: values for name, values in columns.items() if values is not None}, self._labels[: self.num_samples])

    def dynamics(self) -> Dynamics:
        """What the scores are computed from; raises as `table` does."""
        if self._pending:
            raise InputError("this process has batches that the others have not seen; call synchronise() on all processes first")
        if int(self._stray):
            raise InputError(f"{int(self._stray)} indices were outside [0, {self.num_samples}); count as the data set does")
        bits = {width: self._transitions(outcomes, f"at {width} bits") for width, outcomes in sorted(self._bits.items())}
        if bits and not bool(self.seen.any()):
            return Dynamics(None, None, None, None, None, None, bits)
        training = self._transitions(self._training, "in training")
        margin, evs, loss, p, squared = (self._sums[: self.num_samples].cpu() / training.seen[:, None]).unbind(1)
        broken = (margin.isnan() | loss.isnan()).nonzero()
        if len(broken):
            raise InputError(
                f"logits of {len(broken)} samples were NaN, or their targets no classes, the first at index {int(broken[0])}; "
                "the training has diverged or the labels are wrong"
            )
        return Dynamics(training, margin, evs, loss, p, (squared - p * p).clamp_min(0).sqrt(), bits)

    def _transitions(self, outcomes: Outcomes, when: str) -> Transitions:
        """The counts on the CPU; InputError when a sample was never shown."""
        seen, right, lost = (counts[: self.num_samples].cpu().long() for counts in outcomes[:3])
        missing = (seen == 0).nonzero()
        if len(missing):
            raise InputError(
                f"{len(missing)} of {self.num_samples} samples were never shown {when}, the first is index {int(missing[0])}; "
                "give update() the logits of every sample at least once"
            )
        return Transitions(seen, right, lost)

    def _move(self, device: torch.device) -> None:
        """Put the counts on `device`, for good."""
        self._device = device
        self.load_state_dict(self.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """Everything recorded so far, as tensors and numbers; a recorder that loads it goes on to the same bits.

        As with `torch.nn.Module.state_dict` the tensors are the recorder's own and change with the next `update`: save them, or keep a
        `copy.deepcopy`.

        Raises:
            InputError: several processes that have not called `synchronise`.
        """
        if self._pending:
            raise InputError("what this process saw last is not shared yet; call synchronise() on all processes before state_dict()")
        return {
            "num_samples": self.num_samples,
            "steps": self._steps,
            "training": self._training._asdict(),
            "bits": {width: outcomes._asdict() for width, outcomes in self._bits.items()},
            "sums": self._sums,
            "votes": self._votes._asdict(),
            "labels": self._labels,
            "stray": self._stray,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            CheckpointError: it was taken of a data set of another length.
        """
        if state["num_samples"] != self.num_samples:
            raise CheckpointError(f"the recording is of {state['num_samples']} samples, this recorder is for {self.num_samples}")
        device = self._device or torch.device("cpu")

        def own(tensors: dict[str, Tensor]) -> list[Tensor]:
            return [tensor.to(device, copy=True) for tensor in tensors.values()]

        self._steps, self._pending = state["steps"], []
        self._training = Outcomes(*own(state["training"]))
        self._bits = {int(width): Outcomes(*own(tensors)) for width, tensors in state["bits"].items()}
        self._votes = Votes(*own(state["votes"]))
        self._sums, self._labels, self._stray = own({name: state[name] for name in ("sums", "labels", "stray")})


def _recordable() -> list[str]:
    """Every score that a recording may give, by name."""
    return sorted([*(name for name, score in list_scores().items() if score.stage == "dynamics"), "el2n", "loss"])


def _column(name: str, dynamics: Dynamics) -> Tensor | None:
    """The score ``[N]``; None when what it needs was not recorded."""
    score = get_score(name)
    if score.stage == "dynamics":
        return score.compute(dynamics)
    if score.name not in _AVERAGED:
        raise InputError(f"score {name!r} is not one of a training; a recording gives {', '.join(_recordable())}")
    return getattr(dynamics, score.name)
