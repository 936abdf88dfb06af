"""Cascaded layer correction: the layers of a quantized model follow those of the full-precision model (QuaRC; arXiv 2507.17768)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from fastqat._distributed import averaged
from fastqat._errors import CheckpointError, InputError
from fastqat.methods.cascade_layers import find_layers, inner
from fastqat.methods.cascade_taps import Taps
from fastqat.methods.cascade_terms import Distribution, Reduction
from fastqat.selection.forwards import logits_of

Balance = Literal["fixed", "auto"]
BlockInput = Literal["own", "student"]
Grad = Literal["joint", "block"]
# Share of the running means that a step replaces: they follow the last ten steps or so.
_FOLLOW = 0.1
# λ of the paper.
WEIGHT = 1e5


class Corrected(NamedTuple):
    """What one batch gives: the student's `logits` ``[B, K]``, the teacher's ``[B, K]`` fp32, and `correction`, L_CLC before its weight."""

    logits: Tensor
    teacher_logits: Tensor
    correction: Tensor


class CascadedCorrection:
    """Σ over layers c of KL(p_Q^c ‖ p_F^c): how far the layers of the student have moved from those of the teacher.

    p^c is a distribution made from the output of layer c: the softmax, over channels, of its mean over positions (``channel``); over
    positions, for each channel (``spatial``); or over all its values (``flat``). ``mse`` compares the outputs as they are. Each model is
    fed by its own layers, so that what is corrected is the error that has built up; the teacher gets no gradient. The loss of QuaRC is
    L_KD + λ L_CLC with L_KD = −Σ_m p_T,m log p_Q,m.

    Both models run as they are, with hooks on the layers that are there during the forward only. Works under autocast, in
    `DistributedDataParallel`, and on a model that torch.compile compiles, see Notes.

    Args:
        student: the quantized model, or it in `DistributedDataParallel` or compiled.
        teacher: the full-precision model; put into eval mode.
        layers: ``"blocks"``: the residual blocks: modules whose class name ends in Block, Bottleneck, Residual, MBConv or EncoderLayer
            (1d or V2 may follow), as all residual nets and transformers of torchvision have them; where there are none, the modules
            of which a ``Sequential`` or ``ModuleList`` holds several of one class, with convolutions or linear layers inside; of nested
            ones the outermost. ``"convs"``: every convolution. A pattern of module names, or several (a list, or a text with commas):
            ``layer1.*`` is all children of ``layer1``; a ``*`` stands within one part of a name between dots. Pairs ``{name in the
            student: name in the teacher}``, in a text ``a=b``: needed for a teacher of another architecture.
        distribution: ``"channel"``, ``"spatial"``, ``"flat"`` (each by `fastqat.feature_kl`, ``channel`` on the means over positions: of
            the teacher's output nothing else is kept) or ``"mse"``. Channels are at axis 1; of layers with linear layers or layer
            norms but no convolution and no batch or group norm, such as the blocks of vision transformers ``[N, T, C]`` and
            ``[N, H, W, C]``, at the last. Of an output that is a tuple the first tensor counts.
        reduction: ``"elements"``: each layer's divergence is divided by the number of values of a distribution and averaged over
            distributions and samples (as ``F.kl_div`` does with ``reduction="mean"``); ``"rows"``: only averaged.
        balance: ``"auto"``: λ such that λ L_CLC / L_KD stays near `ratio`: ratio · (mean L_KD) / (mean L_CLC), running means of about the
            last ten steps, kept on the device and over all processes (two numbers are exchanged in a step); a batch with a loss that is
            not finite leaves them alone. λ has no upper bound: the closer the models, the larger it is. ``"fixed"``: λ is `weight`.
        ratio: for ``balance="auto"``.
        weight: λ, for ``balance="fixed"``. The paper states 1e5, with a normalisation that it does not give: with ``channel`` and
            ``elements`` this weight is of use, with other distributions and reductions the correction is of another size.
        block_input: ``"own"``, or ``"student"``: each layer of the teacher is fed what the student's layer is fed, so that what is
            corrected is the error of this layer alone; that costs a copy of these inputs and a second forward of the teacher's layers.
        grad: ``"joint"``: the correction of a layer reaches all layers before it. ``"block"``: it reaches the parameters of this layer
            only, and L_KD all of them: each layer has a backward pass of its own as soon as it has run, about the cost of a backward of
            these layers, and needs as much memory again for their gradients.

    Raises:
        InputError: an unknown option, no such layers, other ones in the teacher, or (in a call) outputs of other shapes.

    Notes:
        torch.compile: the graph breaks at each compared layer, so ``fullgraph=True`` fails. The model must not have run in train mode with
        gradients before: it is compiled with the hooks in its first call here, and later steps use that. ``grad="block"`` goes through
        a compiled backward twice; where torch refuses that for donated buffers, its message names the setting.

    Source: Tong et al., QuaRC, 2025 (arXiv 2507.17768), L_CLC; which layers, distributions and reductions, and the balance: our choice, an
    option each.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> student, teacher = (nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)) for _ in range(2))
        >>> clc = CascadedCorrection(student, teacher, layers="convs")
        >>> clc.names
        ['0']
        >>> logits, taught, correction = clc(torch.randn(2, 1, 8, 8))
        >>> kd = torch.nn.functional.cross_entropy(logits, taught.softmax(1))
        >>> loss = kd + clc.weighted(correction, kd)
        >>> round(float(clc.last_ratio), 3)
        1.0
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        layers: str | Iterable[str] | Mapping[str, str] = "blocks",
        distribution: Distribution = "channel",
        reduction: Reduction = "elements",
        balance: Balance = "auto",
        ratio: float = 1.0,
        weight: float = WEIGHT,
        block_input: BlockInput = "own",
        grad: Grad = "joint",
    ):
        self.student, self.teacher = student, teacher
        self.weight, self.balance, self.ratio = weight, balance, ratio
        chosen = {"distribution": distribution, "reduction": reduction, "balance": balance, "block_input": block_input, "grad": grad}
        _check(student, teacher, chosen, {"weight": weight, "ratio": ratio})
        found = find_layers(student, teacher, layers)
        self.names = [layer.name for layer in found]
        self._taps = Taps(found, distribution, reduction, block_input, grad)
        self._settings = {**chosen, "weight": weight, "ratio": ratio, "layers": [f"{each.name}={each.teacher_name}" for each in found]}
        self._means: Tensor | None = None
        self.last_ratio: Tensor | None = None
        teacher.eval()

    def __call__(self, x: Any, *, student: Callable[..., Any] | None = None, weights: Tensor | None = None) -> Corrected:
        """Run the teacher, then the student, on the batch `x`.

        Args:
            x: input of both models.
            student: called in place of the student: a `DistributedDataParallel` that holds it.
            weights: of the samples, ``[B]``; None for 1.

        Returns:
            logits, teacher_logits, and the correction: a scalar, fp32, the mean over samples of weight · Σ over layers.

        Raises:
            InputError: a layer that gives other shapes, or no tensor, or that does not run.
        """
        taught = self._taps.teach(lambda: logits_of(self.teacher, x))
        run = self.student if student is None else student
        logits, correction = self._taps.compare(lambda: logits_of(run, x), weights)  # type: ignore[arg-type]  # any callable will do
        return Corrected(logits, taught.float(), correction)

    def weighted(self, correction: Tensor, kd: Tensor, *, share: float = 1.0) -> Tensor:
        """λ · `correction`. With ``balance="auto"`` the running means take in both first: call it once in each step, in all processes.

        Args:
            correction: of a call.
            kd: the loss that it is added to, of the same batch.
            share: of this process in the batch of all, 1 for equal parts, see `fastqat.train.batches.TrainBatch`.

        `last_ratio` is then λ L_CLC / L_KD of this batch (of this process), on the device.
        """
        added = correction * (self.weight if self.balance == "fixed" else self._balanced(correction, kd, share))
        self.last_ratio = (added / kd).detach()
        return added

    @torch.no_grad()
    def _balanced(self, correction: Tensor, kd: Tensor, share: float) -> Tensor:
        """λ from the running means, of which this step is a part: its λ L_CLC is at most ratio / _FOLLOW times the mean of L_KD."""
        now = averaged(torch.stack([kd.float(), correction.float()]).clamp_min(0), share)
        old = now if self._means is None else self._means.to(now.device)
        old = torch.where(old.isfinite(), old, now)  # the first step was not finite
        self._means = torch.where(now.isfinite().all(), torch.lerp(old, now, _FOLLOW), old)
        kd_mean, correction_mean = self._means
        return torch.where(correction_mean > 0, self.ratio * kd_mean / correction_mean, 0.0)

    def state_dict(self) -> dict[str, Any]:
        """The running means of ``balance="auto"``, on the CPU, and the settings they belong to."""
        return {"settings": dict(self._settings), "means": None if self._means is None else self._means.cpu().clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            CheckpointError: it belongs to other settings.
        """
        theirs = state["settings"]
        differing = [name for name, value in self._settings.items() if theirs.get(name) != value]
        if differing:
            found = ", ".join(f"{name} {theirs.get(name)!r} (here {self._settings[name]!r})" for name in differing)
            raise CheckpointError(f"the layer correction was saved with {found}; resume with the same settings or start a new run")
        self._means = None if state["means"] is None else state["means"].clone()


_ACCEPTED = {
    "distribution": get_args(Distribution),
    "reduction": get_args(Reduction),
    "balance": get_args(Balance),
    "block_input": get_args(BlockInput),
    "grad": get_args(Grad),
}


def _check(student: nn.Module, teacher: nn.Module, chosen: Mapping[str, str], numbers: Mapping[str, float]) -> None:
    for name, model in (("student", student), ("teacher", teacher)):
        if not isinstance(model, nn.Module):
            raise InputError(f"{name} must be a torch.nn.Module, whose layers are compared; got {type(model).__name__}")
    if inner(student) is inner(teacher):
        raise InputError("student and teacher are one model; pass a copy of the full-precision model as the teacher")
    for name, value in chosen.items():
        if value not in _ACCEPTED[name]:
            raise InputError(f"{name} must be one of {', '.join(map(repr, _ACCEPTED[name]))}; got {value!r}")
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not (math.isfinite(number) and number > 0):
            raise InputError(f"{name} must be a finite number above 0; got {number!r}")
    if chosen["balance"] == "auto" and numbers["weight"] != WEIGHT:
        raise InputError(f"weight={numbers['weight']!r} is for balance='fixed'; pass that with it, or ratio= in its place")
    if chosen["balance"] == "fixed" and numbers["ratio"] != 1:
        raise InputError(f"ratio={numbers['ratio']!r} is for balance='auto'; pass that with it, or weight= in its place")
