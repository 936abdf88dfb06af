"""The scores that watch the model, grand and grand_last, against single-sample autograd in fp64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

import fastqat as fq
from fastqat._errors import DataError, InputError
from fastqat.nn import QuantLinear
from fastqat.selection import TeacherCache, list_scores, score_dataset, select

from .grand_nets import CLASSES, data, net, one_by_one, quantized
from .scoring import Counting

OLDER = ["evs", "entropy", "loss", "ds", "res", "acs"]


def assert_close(got, want):
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("batch_size", [1, 10, 23])
def test_grand_is_the_norm_over_all_layers_in_data_set_order(batch_size):
    model, dataset = net(), data()
    table = score_dataset(model, dataset, "grand", batch_size=batch_size)
    assert_close(table["grand"], one_by_one(model, dataset))
    assert torch.equal(table.labels, dataset.tensors[1])


@pytest.mark.parametrize("bias", [True, False])
def test_grand_last_is_the_norm_in_the_last_layer(bias):
    model, dataset = net(bias=bias), data()
    table = score_dataset(model, dataset, ["grand_last"], batch_size=9)
    assert_close(table["grand_last"], one_by_one(model, dataset, only="10"))


@pytest.mark.parametrize("config", ["w4a4", "w8a8:channel"])
def test_grand_of_a_quantized_model_has_its_step_sizes(config):
    model, dataset = quantized(config=config), data()
    # In fp64 too: in fp32 an activation near a tie may round to the other side in a batch than alone.
    wide = TensorDataset(dataset.tensors[0].double(), dataset.tensors[1])
    got = score_dataset(copy.deepcopy(model).double(), wide, "grand", batch_size=10)["grand"]
    assert_close(got, one_by_one(model, dataset))
    without = fq.per_sample_grad_norms(model.eval().requires_grad_(False), loss_reduction="sum", scale_grads=True)
    with without as norms:
        F.cross_entropy(model(dataset.tensors[0]), dataset.tensors[1], reduction="sum").backward()
    assert norms.scale_grads.shape[1] > 0 and bool((norms.scale_grads.norm(dim=1) <= norms.total).all())


def test_grand_last_of_a_quantized_layer_takes_the_input_as_it_is_multiplied():
    model, dataset = quantized(), data()
    assert isinstance(model[10], QuantLinear)
    inputs = []
    with torch.no_grad():
        hook = model[10].register_forward_hook(lambda layer, args, output: inputs.append(layer.activation_quantizer(args[0])))
        p = model.eval()(dataset.tensors[0]).softmax(1)
        hook.remove()
    error = (p - F.one_hot(dataset.tensors[1], CLASSES)).norm(dim=1)
    want = error * (1 + inputs[0].square().sum(1)).sqrt()
    assert_close(score_dataset(model, dataset, "grand_last")["grand_last"], want.double())


@pytest.mark.parametrize("build", [net, quantized])
def test_all_scores_come_out_of_one_forward_and_the_others_keep_their_bits(build):
    model, teacher, dataset = Counting(build()), Counting(net(1)), data()
    names = sorted(name for name, score in list_scores().items() if score.stage in ("logits", "watch", "whole"))
    table = score_dataset(model, dataset, names, teacher=teacher, batch_size=10)
    assert list(table) == names and model.samples == teacher.samples == 23
    alone = score_dataset(model, dataset, OLDER, teacher=teacher, batch_size=10)
    for name in OLDER:
        torch.testing.assert_close(table[name], alone[name], rtol=1e-6, atol=1e-7)
    for name in ("grand", "grand_last"):
        assert torch.equal(table[name], score_dataset(model, dataset, name, batch_size=10)[name])
    assert bool((table["grand_last"] <= 1.01 * table["grand"]).all()) or build is quantized


def test_a_teacher_cache_is_filled_beside_grand():
    cache = TeacherCache(net(1))
    cold = score_dataset(net(), data(), ["grand", "ds"], teacher=cache, batch_size=10)
    assert cache.complete and not cache.logits.requires_grad
    warm = score_dataset(net(), data(), ["ds"], teacher=cache, batch_size=10)
    torch.testing.assert_close(cold["ds"], warm["ds"], rtol=1e-6, atol=1e-7)


def test_grand_counts_frozen_parameters_too():
    model = net()
    want = score_dataset(model, data(), "grand")["grand"]
    model[:6].requires_grad_(False)
    assert torch.equal(score_dataset(model, data(), "grand")["grand"], want)


def test_a_pass_without_grand_builds_no_graph():
    def forward(model, x):
        assert not torch.is_grad_enabled()
        logits = model(x)
        assert not logits.requires_grad
        return logits

    score_dataset(net(), data(), ["evs", "grand_last", "entropy"], forward=forward)


def test_logits_in_another_dtype_and_inside_a_tuple_are_found():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net()

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return self.inner(x).float(), "features"

    table = score_dataset(Wrapped(), data(), ["grand", "grand_last"], batch_size=10)
    full = score_dataset(net(), data(), ["grand", "grand_last"], batch_size=10)
    for name in table:
        assert (table[name] - full[name]).norm() < 0.1 * full[name].norm()  # bf16 carries 8 bits, and moves ReLUs


def test_select_by_grand_keeps_the_largest():
    table = score_dataset(net(), data(), ["evs", "grand"])
    kept = select(table, 0.2, by="grand", balanced=False)
    assert kept.indices.tolist() == table["grand"].argsort(descending=True)[: len(kept.indices)].tolist()
    scores = list_scores()
    assert scores["grand"].needs == ("targets", "gradients") and scores["grand"].options == ("unknown",)
    assert scores["grand_last"].needs == ("targets", "features") and scores["grand_last"].direction == "largest"


class Doubled(nn.Module):
    """Logits that a linear layer gave, changed in place or not."""

    def __init__(self, in_place):
        super().__init__()
        self.inner, self.in_place = net(), in_place

    def forward(self, x):
        logits = self.inner(x)
        return logits.mul_(2) if self.in_place else 2 * logits


class PositionwiseSum(nn.Module):
    """A head whose linear layer works on every position; its outputs are no logits."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.head(x.flatten(1, 2)).mean(1)


def test_grand_last_refuses_logits_that_no_linear_layer_gave():
    for model in (Doubled(True), Doubled(False), PositionwiseSum(), nn.Sequential(net(), nn.LogSoftmax(1))):
        with pytest.raises(InputError, match="needs logits that are the output of an nn.Linear.*ask for grand") as error:
            score_dataset(model, data(), "grand_last")
        assert "\n" not in str(error.value)
        assert not any(module._forward_hooks for module in model.modules())


def test_what_grand_cannot_measure_is_refused_by_name_or_left_to_torch_func():
    bilinear = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), Squared())
    with pytest.raises(InputError, match=r"2\.product \(Bilinear\)"):
        score_dataset(bilinear, data(), "grand")
    got = score_dataset(bilinear, data(), ["grand"], unknown="func", batch_size=10)["grand"]
    assert_close(got, one_by_one(bilinear, data()))
    with pytest.raises(InputError, match="unknown is 'guess'"):
        score_dataset(net(), data(), ["grand"], unknown="guess")
    with pytest.raises(InputError, match="no requested score takes unknown"):
        score_dataset(net(), data(), ["evs"], unknown="func")


class Squared(nn.Module):
    def __init__(self):
        super().__init__()
        self.product = nn.Bilinear(6, 6, CLASSES)

    def forward(self, x):
        return self.product(x, x)


def test_scores_that_watch_need_labels_and_a_model():
    with pytest.raises(DataError, match="yields no labels"):
        score_dataset(net(), TensorDataset(data().tensors[0]), "grand")
    x, y = data().tensors
    with pytest.raises(DataError, match=r"outside \[0, 5\), the first is 5 at index 7"):
        score_dataset(net(), TensorDataset(x, y.index_fill(0, torch.tensor(7), 5)), ["grand", "grand_last"])
    with pytest.raises(InputError, match="compute it with score_dataset"):
        list_scores()["grand"](fq.logit_scores(torch.zeros(2, 3)))


def test_nan_is_reported_with_its_place():
    x, y = data().tensors
    x = x.clone()
    x[4, 0, 0, 0] = torch.nan
    for name in ("grand", "grand_last"):
        with pytest.raises(InputError, match=f"score '{name}' of 1 samples is NaN, the first at index 4"):
            score_dataset(net(), TensorDataset(x, y), name, batch_size=10)
