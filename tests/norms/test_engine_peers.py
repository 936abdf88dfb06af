"""The values of torch.func, and of Opacus and BackPACK where these are installed, and right."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, vmap

from .per_sample import assert_close, measure, norm_of, sample_grads
from .test_engine import batch

pytestmark = pytest.mark.filterwarnings("ignore")


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 6, 3, stride=2, dilation=2), nn.Tanh(), nn.Flatten(), nn.Linear(24, 5)
    )


@pytest.mark.parametrize("loss", [F.cross_entropy, lambda logits, y: logits.sin().mean()], ids=["cross-entropy", "without labels"])
def test_torch_func(loss):
    """vmap of grad."""
    model, (x, y) = network(), batch(5)

    def own_loss(parameters, row, label):
        return loss(functional_call(model, parameters, (row[None],)), label[None])

    grads = vmap(grad(own_loss), in_dims=(None, 0, 0))(dict(model.named_parameters()), x, y)
    theirs = torch.stack([g.flatten(1).norm(dim=1) for g in grads.values()]).norm(dim=0)
    assert_close(measure(model, x, y, loss).total, theirs.detach().double())


def test_opacus():
    grad_sample = pytest.importorskip("opacus.grad_sample")
    model, (x, y) = network(), batch(5)
    ours = measure(model, x, y)
    wrapped = grad_sample.GradSampleModule(model)
    F.cross_entropy(wrapped(x), y).backward()
    theirs = torch.stack([p.grad_sample.flatten(1).norm(dim=1) for p in wrapped.parameters()]).norm(dim=0)
    assert_close(ours.total, theirs.double())


def backpack_norms(model, x, y):
    """Of each sample's own loss: BackPACK's are of the summands of the mean."""
    backpack = pytest.importorskip("backpack")
    from backpack.extensions import BatchL2Grad

    model = backpack.extend(model)
    loss = backpack.extend(nn.CrossEntropyLoss())(model(x), y)
    with backpack.backpack(BatchL2Grad()):
        loss.backward()
    return torch.stack([p.batch_l2 for p in model.parameters()]).sum(0).sqrt() * len(x)


def test_backpack():
    model, (x, y) = network(), batch(5)
    ours = measure(model, x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_close(ours.total, backpack_norms(model, x, y).double(), 1e-4)


def test_backpack_is_wrong_for_grouped_convolutions():
    """It takes the norm of the full gradient, of which a grouped convolution has the diagonal blocks only."""
    torch.manual_seed(0)
    model, (x, y) = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(), nn.Linear(64, 5)), batch(3, (4, 6, 6))
    want = norm_of(sample_grads(model, x, y))
    ours = measure(model, x, y)
    assert_close(ours.total, want)
    theirs = backpack_norms(model, x, y).double()
    assert not torch.allclose(theirs, want, rtol=1e-2)
