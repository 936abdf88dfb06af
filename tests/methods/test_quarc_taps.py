"""What the layer correction must leave alone, and layers that work in place."""

import copy
import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

from fastqat.methods import CascadedCorrection

from .quarc_nets import DISTRIBUTIONS, Net, assert_same_gradients, hooks_of, inputs, run

pytestmark = pytest.mark.usefixtures("one_thread")


class InPlace(nn.Module):
    """Convolutions whose outputs are overwritten by what follows them."""

    def __init__(self, seed: int, inplace: bool):
        torch.manual_seed(seed)
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(inplace), nn.Conv2d(4, 4, 1), nn.ReLU(inplace))

    def forward(self, x):
        return self.features(x).flatten(1)[:, :5]


@pytest.mark.parametrize("block_input", ["own", "student"])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_layers_whose_output_is_overwritten_later(distribution, block_input):
    options = {"layers": "convs", "distribution": distribution, "block_input": block_input}
    plain, grads = run(InPlace(0, False), InPlace(1, False), **options)
    found, own = run(InPlace(0, True), InPlace(1, True), **options)
    assert torch.equal(found.correction, plain.correction)
    assert_same_gradients(own, grads)


class Overwriting(nn.Module):
    """Blocks that begin with an activation in place on their input, or not in place."""

    class Block(nn.Module):
        def __init__(self, inplace: bool):
            super().__init__()
            self.act, self.conv = nn.Hardswish(inplace), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, pictures: dict[str, Tensor]) -> Tensor:
            return self.conv(self.act(pictures["x"]))

    def __init__(self, seed: int, inplace: bool):
        torch.manual_seed(seed)
        super().__init__()
        self.stem, self.head = nn.Conv2d(2, 4, 3), nn.Linear(4, 5)
        self.blocks = nn.ModuleList(self.Block(inplace) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block({"x": x})
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("grad", ["joint", "block"])
@pytest.mark.parametrize("block_input", ["own", "student"])
def test_layers_that_overwrite_their_input(block_input, grad):
    options = {"block_input": block_input, "grad": grad, "distribution": "flat"}
    plain, grads = run(Overwriting(0, False), Overwriting(1, False), **options)
    found, own = run(Overwriting(0, True), Overwriting(1, True), **options)
    assert torch.equal(found.logits, Overwriting(0, True)(inputs())) and torch.equal(found.correction, plain.correction)
    assert_same_gradients(own, grads)


def test_nothing_of_the_teacher_is_kept_longer_than_needed():
    student, teacher = Net(0), Net(1)
    maps, alive = [], []
    for layer in teacher.layers:
        layer.register_forward_hook(lambda module, args, output: maps.append(weakref.ref(output)))
    student.layers[0].register_forward_hook(lambda *_: alive.append([ref() is not None for ref in maps]))
    student.head.register_forward_hook(lambda *_: alive.append([ref() is not None for ref in maps]))
    clc = CascadedCorrection(student, teacher)
    clc(inputs())
    assert alive == [[False, False], [False, False]]  # of "channel" only means are kept
    del alive[:], maps[:]
    clc = CascadedCorrection(student, teacher, distribution="mse")
    with torch.no_grad():
        clc(inputs())
    assert alive == [[True, True], [False, False]]  # ours comes before the correction's own hook
    gc.collect()
    assert all(ref() is None for ref in maps)


def test_a_fed_teacher_keeps_nothing_of_its_own_run():
    student, teacher = Net(0), Net(1)
    maps, alive = [], []
    for layer in teacher.layers:
        layer.register_forward_hook(lambda module, args, output: maps.append(weakref.ref(output)))
    student.stem.register_forward_hook(lambda *_: alive.extend(ref() is not None for ref in maps))
    CascadedCorrection(student, teacher, distribution="mse", block_input="student")(inputs())
    assert alive == [False, False]


def test_hooks_are_gone_after_an_error_and_a_copy_has_none():
    class Failing(Net):
        def forward(self, x):
            copies.append(hooks_of(self))
            super().forward(x)
            raise RuntimeError("out of luck")

    copies: list[int] = []
    student, teacher = Failing(0), Net(1)
    clc = CascadedCorrection(student, teacher)
    with pytest.raises(RuntimeError, match="out of luck"):
        clc(inputs())
    assert copies == [2] and hooks_of(student, teacher) == hooks_of(copy.deepcopy(student)) == 0
    good, bad = CascadedCorrection(teacher, Net(2)), CascadedCorrection(Net(2), student)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of luck"):
            bad(inputs())
        good(inputs())
    assert hooks_of(student, teacher) == 0
