"""DeepFool against the exact distance of linear models and a written-out loop, sample by sample."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import fastqat as fq
from fastqat._errors import InputError
from fastqat.selection import score_dataset, select
from fastqat.selection.scores.deepfool import deepfool
from fastqat.selection.scores.registry import Probe


def probe(model, x, forward=None):
    with torch.no_grad():
        logits = model(x) if forward is None else forward(model, x)
    return Probe(model, x, logits, None, forward)


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Softplus(), nn.Flatten(), nn.Linear(4 * 16, 5)).eval()


@pytest.mark.parametrize("shape", [(7,), (1, 3, 5)])
def test_a_linear_model_has_the_distance_to_the_nearest_boundary(shape):
    torch.manual_seed(0)
    x = torch.randn(40, *shape)
    model = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 6))
    w, f = model[1].weight.detach().double(), model(x).detach().double()
    top = f.argmax(1)
    gaps = f.gather(1, top[:, None]) - f
    norms = (w[None] - w[top][:, None]).norm(dim=2)
    want = torch.where(norms > 0, gaps / norms, torch.inf).amin(1)
    torch.testing.assert_close(deepfool(probe(model, x)).double(), want, rtol=1e-5, atol=1e-6)


def by_hand(model, x, max_iter, overshoot, candidates):
    """One sample, as the paper's algorithm 2 has it, in fp64."""
    first = model(x[None])[0]
    classes = first.topk(candidates).indices.tolist()
    moved = torch.zeros_like(x)
    for _ in range(max_iter):
        place = (x + (1 + overshoot) * moved).requires_grad_()
        f = model(place[None])[0]
        if int(f.argmax()) != classes[0]:
            break
        steps = []
        for k in classes[1:]:
            w = torch.autograd.grad(f[k] - f[classes[0]], place, retain_graph=True)[0]
            gap = (f[k] - f[classes[0]]).abs().detach()
            steps.append((float(gap / w.norm()), gap / w.norm() ** 2 * w))
        moved = moved + min(steps, key=lambda step: step[0])[1]
    return float(moved.norm())


@pytest.mark.parametrize(("max_iter", "overshoot", "candidates"), [(50, 0.02, 5), (2, 0.0, 3), (50, 0.5, 2)])
def test_a_net_follows_the_algorithm(max_iter, overshoot, candidates):
    model = small_net()
    x = torch.randn(12, 1, 6, 6)
    got = deepfool(probe(model, x), max_iter=max_iter, overshoot=overshoot, num_classes=candidates)
    wide = small_net().double()
    want = [by_hand(wide, sample, max_iter, overshoot, candidates) for sample in x.double()]
    torch.testing.assert_close(got.double(), torch.tensor(want, dtype=torch.float64), rtol=1e-3, atol=1e-5)
    assert len(set(want)) > 1


def test_the_perturbation_is_that_small_and_samples_do_not_influence_each_other():
    model, x = small_net(), torch.randn(8, 1, 6, 6)
    together = deepfool(probe(model, x))
    alone = torch.cat([deepfool(probe(model, sample[None])) for sample in x])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)


def test_parameters_get_no_gradient_and_keep_their_flags():
    model = small_net()
    model[0].weight.requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    x = torch.randn(4, 1, 6, 6)
    given = x.clone()
    deepfool(probe(model, x))
    assert all(p.grad is None for p in model.parameters()) and [p.requires_grad for p in model.parameters()] == flags
    assert torch.equal(x, given) and not x.requires_grad


def test_quantized_models_too():
    x = torch.randn(6, 1, 6, 6)
    model = fq.calibrate(fq.quantize(small_net(), "w4a4", skip=()), [x]).eval()
    score = deepfool(probe(model, x))
    assert score.isfinite().all() and (score > 0).all()


def test_ties_constants_and_nan():
    tied = nn.Linear(3, 2)
    with torch.no_grad():
        tied.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]))
        tied.bias.zero_()
    x = torch.tensor([[1.0, 1.0, 0.0], [2.0, 0.0, 0.0], [torch.nan, 0.0, 0.0]])
    score = deepfool(probe(tied, x))
    assert score[0] == 0 and score[1].item() == pytest.approx(2**0.5) and score[2].isnan()
    constant = nn.Linear(3, 2)
    with torch.no_grad():
        constant.weight.zero_()
        constant.bias.copy_(torch.tensor([1.0, 0.0]))
    assert deepfool(probe(constant, x[:2])).tolist() == [torch.inf, torch.inf]


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.zeros(2, 7, dtype=torch.int64), {}, "one floating tensor; got a tensor of torch.int64"),
        ({"input_ids": torch.zeros(2, 7)}, {}, "one floating tensor; got dict"),
        (torch.zeros(2, 7), {"max_iter": 0}, "max_iter must be a whole number"),
        (torch.zeros(2, 7), {"num_classes": 1}, "num_classes of deepfool must be a whole number ≥ 2"),
        (torch.zeros(2, 7), {"overshoot": -1}, "overshoot must be ≥ 0"),
    ],
)
def test_what_it_refuses(x, options, message):
    with pytest.raises(InputError, match=message):
        deepfool(Probe(nn.Linear(7, 3), x, torch.zeros(2, 3), None, None), **options)


def test_a_model_without_another_class_or_without_gradient_is_refused():
    with pytest.raises(InputError, match="only one"):
        deepfool(Probe(nn.Linear(7, 1), torch.zeros(2, 7), torch.zeros(2, 1), None, None))
    with pytest.raises(InputError, match="remove its no_grad or detach"):
        deepfool(probe(nn.Linear(7, 3), torch.randn(2, 7), forward=lambda model, x: model(x.detach())))


def test_in_a_scoring_pass():
    model = small_net().train()
    data = TensorDataset(torch.randn(10, 1, 6, 6), torch.arange(10) % 5)
    table = score_dataset(model, data, ["deepfool", "margin"], batch_size=4, progress=False, max_iter=20)
    assert model.training and all(p.grad is None for p in model.parameters())
    want = deepfool(probe(model.eval(), data.tensors[0]), max_iter=20)
    torch.testing.assert_close(table["deepfool"], want, rtol=1e-4, atol=1e-6)
    assert select(table, 0.1, by="deepfool", balanced=False).indices.item() == int(want.argmin())
