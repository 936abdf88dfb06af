"""Whole networks against the oracle: scoring and training mode, total and per layer, fp32 to 1e-5 of fp64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastqat as fq
from bench.mobilenet import short_mobilenet_v2
from bench.resnet import Block, ResNet
from bench.vit import ViT

from .per_sample import assert_close, check, measure, norm_of, sample_grads
from .test_engine import batch

pytest.importorskip("fastqat.norms.rules.normalization")


def group_norms(model, groups=4):
    """Every batch norm of `model` replaced by a group norm with random weights."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, nn.GroupNorm(groups, child.num_features))
    return randomized(model)


def randomized(model):
    """Normalization layers with weights, biases and statistics as after training."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d | nn.GroupNorm | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


class Excite(nn.Module):
    """Squeeze and excitation: a gate per channel from the mean over the picture."""

    def __init__(self, channels):
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.up(F.silu(self.down(x.mean((2, 3), keepdim=True)))))


class MBConv(nn.Module):
    """EfficientNet's block: expansion, depthwise convolution, excitation, projection, shortcut where it fits."""

    def __init__(self, inputs, outputs, kernel, stride):
        super().__init__()
        wide = 4 * inputs
        self.block = nn.Sequential(
            nn.Conv2d(inputs, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.SiLU(inplace=True),
            nn.Conv2d(wide, wide, kernel, stride, kernel // 2, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.SiLU(inplace=True),
            Excite(wide),
            nn.Conv2d(wide, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x):
        return x + self.block(x) if self.shortcut else self.block(x)


def efficientnet():
    stem = [nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU(inplace=True)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(12, 5)]
    return nn.Sequential(*stem, MBConv(8, 8, 3, 1), MBConv(8, 12, 5, 2), MBConv(12, 12, 3, 1), *head)


def cnn_1d():
    block = lambda i, o, **options: [nn.Conv1d(i, o, 5, padding=2, **options), nn.GroupNorm(2, o), nn.PReLU(o)]  # noqa: E731
    return nn.Sequential(
        *block(2, 8), nn.MaxPool1d(2), *block(8, 12, dilation=2), *block(12, 12, groups=3), nn.Flatten(), nn.Linear(144, 5)
    )


class Text(nn.Module):
    """Token and position embeddings, a transformer encoder, a linear head."""

    def __init__(self):
        super().__init__()
        self.tokens, self.position = nn.Embedding(11, 8, padding_idx=0), nn.Parameter(torch.randn(1, 6, 8))
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.encoder(self.tokens(x) + self.position).mean(1))


NETWORKS = {
    "resnet18-groupnorm": (lambda: group_norms(ResNet(Block, (2, 2, 2, 2), 5)), (3, 16, 16)),
    "mobilenet": (lambda: randomized(short_mobilenet_v2(5)).eval(), (3, 16, 16)),
    "efficientnet": (lambda: randomized(efficientnet()).eval(), (3, 16, 16)),
    "vit": (lambda: randomized(ViT(5, depth=2, width=24, heads=2, side=16)), (3, 16, 16)),
    "cnn-1d": (lambda: randomized(cnn_1d()), (2, 32)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_network(name):
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    check(make(), *batch(2, shape))


def test_transformer_on_tokens():
    torch.manual_seed(0)
    model, (_, y) = Text(), batch(4)
    x = torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(2))
    check(model, x, y)


def test_sum_of_losses_over_a_network():
    torch.manual_seed(0)
    model, (x, y) = randomized(efficientnet()).eval(), batch(5, (3, 16, 16))
    with fq.per_sample_grad_norms(model.requires_grad_(False), loss_reduction="sum") as norms:
        F.cross_entropy(model(x), y, reduction="sum").backward()
    assert_close(norms.total, norm_of(sample_grads(model, x, y)))


def test_batch_norm_in_train_mode_is_refused():
    torch.manual_seed(0)
    model = efficientnet()
    with pytest.raises(fq.InputError, match=r"1 \(BatchNorm2d\): .*eval"):
        measure(model, *batch(2, (3, 16, 16)))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    model[-2].eval()
    check(model, *batch(2, (3, 16, 16)))
    plain = nn.Sequential(nn.BatchNorm1d(6, affine=False), nn.Linear(6, 5))  # it has no parameters, and still mixes the samples
    with pytest.raises(fq.InputError, match=r"0 \(BatchNorm1d\)"):
        measure(plain, *batch(4, (6,)))


def test_hooks_and_running_statistics_are_left_alone():
    torch.manual_seed(0)
    model = randomized(efficientnet()).eval()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    measure(model, *batch(3, (3, 16, 16)))
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name
