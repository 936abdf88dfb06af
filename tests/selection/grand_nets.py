"""Networks and data of the tests of scores that watch the model, and what they should find."""

import copy

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

import fastqat as fq

CLASSES = 5


def data(size=23, shape=(3, 8, 8)):
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(size, *shape, generator=generator), torch.randint(0, CLASSES, (size,), generator=generator))


def net(seed=0, bias=True):
    """Batch norm and dropout, which eval mode makes functions of the single sample; a depthwise and a strided convolution."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.GroupNorm(2, 8),
        nn.Conv2d(8, 6, 3, stride=2),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(54, 12),
        nn.ReLU(),
        nn.Linear(12, CLASSES, bias=bias),
    )
    model(data().tensors[0])  # statistics that are not 0 and 1
    return model


def quantized(seed=0, config="w4a4"):
    return fq.calibrate(fq.quantize(net(seed), config, skip=()), [data().tensors[0]])


def one_by_one(model, dataset, only=None):
    """The norm of each sample's own gradient over all parameters, or those of the layer `only`, in fp64."""
    model = copy.deepcopy(model).double().eval().requires_grad_()
    parameters = list((model if only is None else model.get_submodule(only)).parameters())
    norms = []
    for x, y in zip(*dataset.tensors, strict=True):
        loss = F.cross_entropy(model(x.double()[None]), y[None])
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        norms.append(torch.cat([grad.flatten() for grad in grads if grad is not None]).norm())
    return torch.stack(norms)
