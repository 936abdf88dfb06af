"""Public context manager `per_sample_grad_norms`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from torch import nn

from .._errors import InputError
from .engine import Pass
from .result import GradNorms


@contextmanager
def per_sample_grad_norms(
    model: nn.Module,
    *,
    loss_reduction: Literal["mean", "sum"] = "mean",
    per_layer: bool = False,
    scale_grads: bool = False,
    unknown: Literal["refuse", "func"] = "refuse",
) -> Iterator[GradNorms]:
    r"""Measure the gradient norm of every sample's own loss during one ordinary forward and backward pass.

    .. math:: \lVert \nabla_\theta\, \ell_n \rVert, \quad n = 1 \dots N, \qquad
        \text{loss} = \tfrac1N \sum_n \ell_n \ (\texttt{"mean"}) \ \text{or} \ \sum_n \ell_n \ (\texttt{"sum"})

    What counts: the parameters that require grad; if none does, all of them. The latter is the mode for scoring: the backward pass then
    computes gradients of activations only, not of weights, and costs about as much less as the norms cost.

    N is dimension 0 of the model's input, in this pass: the last, shorter batch of an epoch is as exact as the others. Each layer must
    have the samples in dimension 0 of its input and output, but inside of `torch.nn.Transformer...Layer` with batch_first=False. This is
    checked by sizes, so a layer of your own that reads ``[T, N, C]`` passes unseen where T == N. The loss of a sample must depend on no
    other sample, which cannot be seen in a forward pass that mixes them, as ``x - x.mean(0)`` does. A layer that the backward pass does
    not reach adds 0. Exact for parameters that are used several times, by modules that are called again or share them: their per-sample
    gradients are added up before the norm is taken, for some samples at a time where they are large. Works under
    ``torch.utils.checkpoint``, autocast and DistributedDataParallel (on the local batch). With a scaled loss, as of a GradScaler, divide.

    Forward hooks of yours, and a ``forward`` that is replaced on a module, are part of the model and may change values; what they do to
    parameters is followed as in modules of your own. Hooks on parameters change gradients after they were measured. A copy of the model
    made inside the block is not watched.

    Args:
        model: float, quantized, or in part; layers with a rule (linear, convolutions, normalization, embedding, ...), fastqat's quantized
            layers, `torch.nn.MultiheadAttention`, and modules of your own as far as their parameters go into sums and products with the
            batch (class tokens, position embeddings, layer scales) or into the functions of layers with a rule (`F.linear`, `F.conv2d`,
            `F.layer_norm`, ...), tied weights included.
        loss_reduction: how the loss that is differentiated was reduced over the N samples. "mean" is the sum divided by N: with
            ``ignore_index`` or class weights torch divides by the count of what is not ignored or by the sum of the weights, and a mean
            over pixels or tokens divides by these too; for the norms of the samples' summed losses, use a sum.
        per_layer: keep the norms of the layers too.
        scale_grads: keep the gradients of all parameters of quantizers, ``[N, S]``; through a quantized weight the norm is that of the
            float weight, behind the straight-through estimator. The gradient factor of a quantizer is part of its scale's gradient; with
            ``grad_factor="per_scale"`` it depends on the size of the batch, and it is that of the whole batch which applies.
        unknown: what to do with parameters that none of this serves, as those of RNNs and of parametrized layers: ``"refuse"``, or
            ``"func"``: run their module again per sample with torch.func (RNNs in a loop), exact, but its per-sample gradients are formed.
            It must draw no random numbers, change no buffers, and make of a sample alone what it made of it in the batch; the module's own
            hooks run again too.

    Yields:
        GradNorms: ``total [N]``, ``sq_total [N]``, and on request ``layers`` and ``scale_grads``; readable after the block.

    Memory: the inputs of the layers that count, until the backward pass has used them, as training keeps them; never a per-sample
    weight gradient of a layer that is called once. Computed in fp32 for half precision; deterministic. Where a parameter is used several
    times and its per-sample gradients would have more than 2^24 elements, inputs and gradients of its layers are kept until the block ends.

    Raises:
        InputError (a ValueError): unknown options; a layer cannot be measured, the message names it and says what to do (batch norm in
            train mode mixes the samples; a module without a rule; other sizes in dimension 0; an input that was changed in place); more
            or fewer than one forward and one backward pass; a block inside a block for the same modules; a compiled model. Whatever
            ends the block, no hook stays behind.

    Example:
        >>> import torch, fastqat as fq
        >>> model, x = torch.nn.Linear(2, 1, bias=False), torch.tensor([[3.0, 4.0], [0.0, 1.0]])
        >>> with fq.per_sample_grad_norms(model) as norms:
        ...     model(x).mean().backward()
        >>> norms.total
        tensor([5., 1.])
    """
    if loss_reduction not in ("mean", "sum"):
        raise InputError(f"loss_reduction is {loss_reduction!r}; accepted: 'mean' or 'sum', as the loss was reduced over the batch")
    if unknown not in ("refuse", "func"):
        raise InputError(f"unknown is {unknown!r}; accepted: 'refuse' or 'func'")
    measured = Pass(model, loss_reduction == "mean", per_layer, scale_grads, unknown == "func")
    try:
        measured.open()
        yield measured.norms
        measured.finish()
    except BaseException:
        measured.norms.fail()
        raise
    finally:
        measured.close()
