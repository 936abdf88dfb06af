"""A pass that watches the model under the modes of module and thread: training, frozen, inference; and what it leaves behind."""

import pytest
import torch
from torch import nn

from fastqat._errors import InputError
from fastqat.selection import score_dataset

from .grand_nets import CLASSES, data, net, quantized


class Boom(nn.Module):
    def forward(self, x):
        raise RuntimeError("boom")


@pytest.mark.parametrize("fails", [None, "forward", "backward"])
def test_modes_flags_gradients_and_hooks_are_put_back_errors_included(fails):
    model = nn.Sequential(*net(), Boom()) if fails == "forward" else net()
    model.train()
    model[4].eval()
    model[0].weight.requires_grad_(False)
    model[3].weight.grad = torch.ones_like(model[3].weight)
    before = [module.training for module in model.modules()], [p.requires_grad for p in model.parameters()]
    state, dice = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()

    def forward(model, x):
        return model(x).detach() if fails == "backward" else model(x)

    if fails is None:
        score_dataset(model, data(), ["grand", "grand_last"], batch_size=10)
    else:
        error, message = (RuntimeError, "boom") if fails == "forward" else (InputError, "the forward gives them without")
        with pytest.raises(error, match=message):
            score_dataset(model, data(), ["grand", "grand_last"], batch_size=10, forward=forward)
    assert before == ([module.training for module in model.modules()], [p.requires_grad for p in model.parameters()])
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [p.grad is None for p in model.parameters()].count(False) == 1 and bool((model[3].weight.grad == 1).all())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.is_grad_enabled() and torch.equal(dice, torch.get_rng_state())


class Batches:
    """A data set that hands out the tensors it holds."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def batches(self, batch_size):
        yield from zip(self.x.split(batch_size), self.y.split(batch_size), strict=True)


@pytest.mark.parametrize("build", [net, quantized])
def test_inference_mode_around_a_pass_changes_nothing(build):
    """Nor do batches that were made in it."""
    model, dataset = build(), data()
    names = ["grand", "grand_last", "evs"]
    want = score_dataset(model, dataset, names, batch_size=10)
    with torch.inference_mode():
        made_here = Batches(*(t.clone() for t in dataset.tensors))
        assert made_here.x.is_inference()
        for given in (dataset, made_here):
            got = score_dataset(model, given, names, batch_size=10)
            assert all(torch.equal(got[name], want[name]) for name in names)
        assert torch.is_inference_mode_enabled()


def test_a_model_made_in_inference_mode_has_no_gradients():
    with torch.inference_mode():
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES))
        assert score_dataset(model, data(), ["grand_last", "evs"])["evs"].shape == (23,)
        with pytest.raises(InputError, match=r"1\.weight, made under torch.inference_mode\(\), cannot take part in; make or load"):
            score_dataset(model, data(), "grand")


def test_training_mode_is_scored_as_it_predicts():
    model = net().train()
    assert torch.equal(score_dataset(model, data(), "grand")["grand"], score_dataset(net().eval(), data(), "grand")["grand"])
    assert model.training
