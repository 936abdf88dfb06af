"""Features of a scoring pass, and scores that compare all samples or run the model themselves."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

import fastqat as fq
from fastqat._errors import InputError
from fastqat.selection import register_score, score_dataset, select
from fastqat.selection.scores import registry

from .scoring import CLASSES, SIZE, Counting, data, net


def by_hand(model):
    """Embedding, probabilities and p − y of all samples in one forward."""
    x, y = data().tensors
    with torch.no_grad():
        h = model.eval()[:-1](x)
        p = model[-1](h).softmax(1)
    return h, p, p - F.one_hot(y, CLASSES)


def test_features_are_the_formulas_and_cost_no_second_forward():
    h, p, error = by_hand(net())
    gradient = torch.cat([error, (error[:, :, None] * h[:, None]).flatten(1)], dim=1)
    for name, want in {"embedding": h, "probabilities": p, "error": error, "gradient": gradient, "inner.4": h}.items():
        model = Counting(net())
        table = score_dataset(model, data(), ["evs", "grand_last"], features=name, batch_size=20)
        torch.testing.assert_close(table.features, want)
        assert model.samples == SIZE and table.features.dtype == torch.float32 and list(table) == ["evs", "grand_last"]
    table = score_dataset(net(), data(), "grand_last", features="gradient")
    torch.testing.assert_close(table.features.norm(dim=1), table["grand_last"])


def test_the_gradient_is_that_of_the_last_layer():
    model, (x, y) = net().eval(), data(6).tensors
    features = score_dataset(model, data(6), features="gradient").features
    for i in range(6):
        model.zero_grad()
        F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
        torch.testing.assert_close(features[i], torch.cat([model[-1].bias.grad, model[-1].weight.grad.flatten()]), rtol=1e-5, atol=1e-7)


def test_scale_grads_are_those_of_the_norm_engine_beside_grand_too():
    torch.manual_seed(0)
    model = fq.quantize(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, CLASSES)), "w4a4")
    fq.calibrate(model, [data().tensors[0]])
    x, y = data().tensors
    with fq.per_sample_grad_norms(model.eval(), loss_reduction="sum", scale_grads=True) as norms:
        F.cross_entropy(model(x), y, reduction="sum").backward()
    model.zero_grad(set_to_none=True)
    table = score_dataset(model, data(), ["evs", "grand"], features="scale_grads", batch_size=SIZE)
    torch.testing.assert_close(table.features, norms.scale_grads)
    torch.testing.assert_close(table["grand"], score_dataset(model, data(), "grand")["grand"])
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    with pytest.raises(InputError, match="Sequential has none"):
        score_dataset(net(), data(), features="scale_grads")


def test_features_of_a_quantized_last_layer_are_what_it_multiplies():
    torch.manual_seed(0)
    model = fq.quantize(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, CLASSES)), "w4a4", skip=())
    fq.calibrate(model, [data().tensors[0]])
    x = data().tensors[0]
    with torch.no_grad():
        h = model[2].activation_quantizer(model.eval()[1](model[0](x)))
    torch.testing.assert_close(score_dataset(model, data(), features="embedding").features, h)


def test_features_reach_selectors_and_files(tmp_path):
    table = score_dataset(net(), data(), features="embedding")
    table.save(tmp_path / "table.safetensors")
    assert torch.equal(type(table).load(tmp_path / "table.safetensors").features, table.features)
    assert len(select(table, 0.1, method="random")) == 10


class Twice(nn.Module):
    """Uses one layer twice, and adds to its logits."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return self.layer(self.layer(x)) + 1


BAD = [
    (lambda: score_dataset(net(), data(), features="fc"), "features must be embedding, error, gradient, .*, or the name of a module"),
    (lambda: score_dataset(net(), data(), features=""), "features must be"),
    (lambda: score_dataset(Twice(), data(classes=8), features="embedding"), "Twice computes them otherwise, .*; name a module"),
    (lambda: score_dataset(Twice(), data(classes=8), features="layer"), "once per forward; got \\[\\[103, 8\\], \\[103, 8\\]\\]"),
    (lambda: score_dataset(net(), data(), features="embedding", max_bytes=4 * 103 * 16 - 1), "take 6,592 bytes .*; max_bytes is 6,591"),
    (
        lambda: score_dataset(net(), data(), features="gradient", max_bytes=6592),
        "features of 103 samples take 35,020 bytes .*gradient 85",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_features_are_refused_before_they_fill_the_memory(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_just_enough_bytes_are_enough():
    assert score_dataset(net(), data(), features="embedding", max_bytes=4 * 103 * 16).features.shape == (SIZE, 16)


@pytest.fixture
def scratch(monkeypatch):
    """Scores registered in a test are forgotten after it."""
    monkeypatch.setattr(registry, "_scores", dict(registry._scores))


def test_scores_of_all_samples_see_embeddings_probabilities_and_labels(scratch):
    seen = {}

    @register_score("far", formula="", direction="largest", source="", needs=("targets", "embeddings", "probabilities"))
    def far(whole, *, power=1):
        seen.update(whole._asdict())
        return (whole.embeddings - whole.embeddings.mean(0)).norm(dim=1) ** power

    h, p, _ = by_hand(net())
    table = score_dataset(net(), data(), ["evs", "far", "ds"], teacher=net(1), batch_size=10, power=2)
    assert list(table) == ["evs", "far", "ds"] and table.features is None
    torch.testing.assert_close(table["far"], (h - h.mean(0)).square().sum(1))
    torch.testing.assert_close(seen["probabilities"], p)
    assert torch.equal(seen["labels"], data().tensors[1])
    assert score_dataset(net(), data(), "far", features="embedding").features.shape == (SIZE, 16)
    with pytest.raises(InputError, match=r"take 8,652 bytes \(values per sample: embedding 16, probabilities 5\)"):
        score_dataset(net(), data(), "far", max_bytes=4 * SIZE * (16 + CLASSES) - 1)


def test_scores_that_run_the_model_get_a_probe_with_gradients(scratch):
    @register_score("slope", formula="", direction="largest", source="", needs=("inputs", "targets"))
    def slope(probe):
        x = probe.x.detach().requires_grad_()
        loss = F.cross_entropy(probe.run(x), probe.targets, reduction="sum")
        assert not any(p.requires_grad for p in probe.model.parameters())
        return torch.autograd.grad(loss, x)[0].norm(dim=1)

    model, (x, y) = net(), data().tensors
    x = x.clone().requires_grad_()
    F.cross_entropy(model.eval()(x), y, reduction="sum").backward()
    with torch.inference_mode():
        table = score_dataset(model, data(), ["evs", "slope"], batch_size=10)
    torch.testing.assert_close(table["slope"], x.grad.norm(dim=1))
    with torch.inference_mode():
        made_here = TensorDataset(*(t.clone() for t in data().tensors))
        assert torch.equal(score_dataset(model, made_here, "slope", batch_size=10)["slope"], table["slope"])
