"""Which layers the correction of QuaRC compares, and how it reads what they give."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastqat._errors import InputError
from fastqat.methods import CascadedCorrection
from fastqat.methods.cascade_layers import blocks_of, channel_axis
from fastqat.nn import quantize
from fastqat.train.models import make_model

from .quarc_nets import Net, inputs, typed_divergence


@pytest.mark.parametrize("name, blocks", [("resnet8", 3), ("resnet20", 9), ("mobilenet_v2_half", 17), ("resnet1d", 3)])
def test_blocks_of_our_models(name, blocks):
    teacher = make_model(name, 10, (3, 32) if name == "resnet1d" else (3, 32, 32))
    student = quantize(teacher, "w2a32")
    clc = CascadedCorrection(student, teacher)
    assert len(clc.names) == blocks
    kinds = {type(student.get_submodule(each)).__name__ for each in clc.names}
    assert kinds == {{"mobilenet_v2_half": "InvertedResidual", "resnet1d": "BasicBlock1d"}.get(name, "BasicBlock")}


TORCHVISION = {
    "resnet18": 8, "resnet50": 16, "mobilenet_v2": 17, "mobilenet_v3_small": 11, "efficientnet_b0": 16, "convnext_tiny": 18, "vit_b_32": 12,
    "swin_t": 12, "densenet121": 4, "mnasnet0_5": 16, "shufflenet_v2_x0_5": 16,
}  # fmt: skip


@pytest.mark.parametrize("name", TORCHVISION)
def test_blocks_of_models_of_torchvision(name):
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        model = models.get_model(name, weights=None)
    blocks = blocks_of(model)
    assert len(blocks) == TORCHVISION[name], blocks
    tokens = name in ("vit_b_32", "swin_t")
    assert {channel_axis(model.get_submodule(block)) for block in blocks} == {-1 if tokens else 1}


def test_a_vision_transformer_of_torchvision():
    models = pytest.importorskip("torchvision.models")
    teacher = models.VisionTransformer(32, 16, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=5)
    clc = CascadedCorrection(quantize(teacher, "w2a32"), teacher)
    assert clc.names == ["encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1"]
    outputs = []
    for model in (clc.student, teacher):
        for name in clc.names:
            model.get_submodule(name).register_forward_hook(lambda module, args, output: outputs.append(output.detach().movedim(2, 1)))
    clc.student.eval()
    correction = clc(torch.randn(3, 3, 32, 32)).correction
    wanted = sum(typed_divergence(outputs[i + 2], outputs[i], "channel", "elements") for i in range(2))
    torch.testing.assert_close(correction.double(), wanted, rtol=1e-3, atol=0)


def test_blocks_by_structure_where_no_class_name_says_so():
    class Unit(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(Unit(), Unit(), nn.ReLU(), nn.ReLU()), nn.ModuleList([Unit()]), nn.Linear(4, 2))
    assert blocks_of(net) == ["1.0", "1.1"]
    with pytest.raises(InputError, match=r"no blocks found in the student; name its layers instead, such as layers="):
        CascadedCorrection(nn.Sequential(nn.Linear(4, 2)), nn.Sequential(nn.Linear(4, 2)))


@pytest.mark.parametrize(
    "layers, names",
    [
        ("layers.*", ["layers.0", "layers.1"]),
        ("layers.*.conv, stem", ["stem", "layers.0.conv", "layers.1.conv"]),
        (["head", "layers.[1-9]"], ["layers.1", "head"]),
        ({"layers.1": "layers.1"}, ["layers.1"]),
        ("layers.0=layers.0", ["layers.0"]),
        (("[!l]*",), ["stem", "dropout", "head"]),
    ],
)
def test_layers_by_name(layers, names):
    clc = CascadedCorrection(Net(0), Net(1), layers=layers)
    assert clc.names == names and clc(inputs()).correction > 0


def test_pairs_of_layers_of_another_architecture():
    teacher = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))
    student = Net(0)
    found = CascadedCorrection(student, teacher, layers={"layers.0": "0"})(inputs())
    wanted = typed_divergence(student.layers[0](student.stem(inputs())), teacher[0](inputs()), "channel", "elements")
    torch.testing.assert_close(found.correction.double(), wanted, rtol=1e-5, atol=0)
    with pytest.raises(InputError, match=r"the convs of student \(5\) and teacher \(1\) differ, first in stem of the student.* needs pair"):
        CascadedCorrection(student, teacher, layers="convs")
    with pytest.raises(InputError, match=r"the teacher has no layer 'stem'; it has 0, 1, 2, 3; or give pairs"):
        CascadedCorrection(student, teacher, layers="stem")
    with pytest.raises(InputError, match=r"'layers.1' gives \[6, 8\] in the student and '0' \[6, 6\] in the teacher; compare layers"):
        CascadedCorrection(student, teacher, layers="layers.1=0")(inputs())


@pytest.mark.parametrize(
    "layers, message",
    [
        ("layer1.*", r"no layer of the student is called 'layer1.\*'; it has layers.0, layers.1$"),
        ({"nothing": "stem"}, "the student has no layer 'nothing'; it has layers.0"),
        ({"stem": "nothing"}, "the teacher has no layer 'nothing'"),
        ([], r"layers must be 'blocks', 'convs', patterns of module names, or pairs of names; got \[\]"),
        ("stem,,head", "layers must be .*; got 'stem,,head'"),
        ([3], r"layers must be .*; got \[3\]"),
    ],
)
def test_layers_that_are_not_there(layers, message):
    with pytest.raises(InputError, match=message):
        CascadedCorrection(Net(0), Net(1), layers=layers)


class Tokens(nn.Module):
    """Blocks of a vision transformer: [N, T, C] in and out, with the attention weights beside it."""

    class EncoderBlock(nn.Module):
        def __init__(self, width: int):
            super().__init__()
            self.norm, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, 2, batch_first=True)
            self.mlp = nn.Linear(width, width)

        def forward(self, x):
            mixed, weights = self.attention(*[self.norm(x)] * 3)
            x = x + mixed
            return x + F.gelu(self.mlp(x)), weights

    def __init__(self, seed: int, width: int = 6):
        torch.manual_seed(seed)
        super().__init__()
        self.blocks = nn.ModuleList(self.EncoderBlock(width) for _ in range(2))
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        for block in self.blocks:
            x, _ = block(x)
        return self.head(x.mean(1))


@pytest.mark.parametrize("distribution", ["channel", "spatial", "flat", "mse"])
def test_tokens_have_their_channels_last_and_tuples_count_by_their_first(distribution):
    student, teacher, x = Tokens(0), Tokens(1).eval(), torch.randn(3, 4, 6)
    clc = CascadedCorrection(student, teacher, distribution=distribution)
    assert clc.names == ["blocks.0", "blocks.1"]
    a, b, wanted = x, x, 0.0
    for mine, other in zip(student.blocks, teacher.blocks, strict=True):
        a, b = mine(a)[0], other(b)[0]
        wanted += typed_divergence(a.movedim(2, 1), b.movedim(2, 1), distribution, "elements")
    torch.testing.assert_close(clc(x).correction.double(), wanted, rtol=1e-4, atol=0)


def test_what_has_no_channels_or_no_positions_is_refused():
    teacher, x = Tokens(1), torch.randn(3, 4, 6)
    with pytest.raises(InputError, match=r"layer 'head' gives \[3, 5\], without positions for 'spatial'; use 'channel' or 'flat'"):
        CascadedCorrection(Tokens(0), teacher, layers="head", distribution="spatial")(x)

    class Odd(nn.Module):
        def forward(self, x):
            return {"a": None}

    def net():
        torch.manual_seed(0)
        model = Tokens(0)
        model.odd = Odd()
        model.register_forward_pre_hook(lambda module, args: module.odd(args[0]) and None)
        return model

    with pytest.raises(InputError, match=r"layer 'odd' must give a tensor \[N, C, ...\]; got NoneType; leave it out of layers="):
        CascadedCorrection(net(), net(), layers="odd")(x)
    sequence_first = [nn.TransformerEncoderLayer(6, 2, 8) for _ in range(2)]
    with pytest.raises(InputError, match="'self_attn' has its samples at axis 1"):
        CascadedCorrection(*sequence_first, layers="self_attn")
