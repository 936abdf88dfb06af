"""Small nets of which tests know every output, and the correction of QuaRC as one would type it with them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastqat.methods import CascadedCorrection

CLASSES = 5
DISTRIBUTIONS = ("channel", "spatial", "flat", "mse")


class Block(nn.Module):
    """A convolution with batch norm and a shortcut."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)) + self.shortcut(x))


class Net(nn.Module):
    """A stem, two blocks, dropout when asked for, and a head."""

    def __init__(self, seed: int, dropout: float = 0.0):
        torch.manual_seed(seed)
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.layers = nn.Sequential(Block(4, 6), Block(6, 8))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.outputs(x)[-1]

    def outputs(self, x: Tensor) -> tuple[Tensor, ...]:
        """Of both blocks, and the logits."""
        first = self.layers[0](self.stem(x))
        second = self.layers[1](first)
        return first, second, self.head(self.dropout(second.mean((2, 3))))


def inputs(samples: int = 6) -> Tensor:
    return torch.randn(samples, 2, 5, 3, generator=torch.Generator().manual_seed(7))


def typed_divergence(student: Tensor, teacher: Tensor, distribution: str, reduction: str) -> Tensor:
    """Of one layer, in fp64, with the softmaxes written out."""
    s, t = student.double().flatten(2), teacher.double().flatten(2)
    if distribution == "mse":
        return (s - t).square().mean() if reduction == "elements" else (s - t).square().flatten(1).sum(1).mean()
    if distribution == "channel":
        s, t = s.mean(2), t.mean(2)
    if distribution == "flat":
        s, t = s.flatten(1), t.flatten(1)
    p, q = s.softmax(-1), t.softmax(-1)
    each = p * (p.log() - q.log())
    return each.mean() if reduction == "elements" else each.sum(-1).mean()


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def hooks_of(*models: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for model in models for m in model.modules())


def run(student: nn.Module, teacher: nn.Module, *, weights=None, x=None, **options):
    """The correction of one batch, with the gradients of KD + 3 · correction."""
    x = inputs() if x is None else x
    torch.manual_seed(1)  # dropout
    found = CascadedCorrection(student, teacher, **options)(x, weights=weights)
    student.zero_grad()
    (F.cross_entropy(found.logits, found.teacher_logits.softmax(1)) + 3 * found.correction).backward()
    return found, gradients(student)


def assert_same_gradients(found, wanted):
    assert found.keys() == wanted.keys()
    for name, grad in wanted.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}")
