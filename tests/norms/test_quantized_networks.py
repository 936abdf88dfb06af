"""per_sample_grad_norms through whole quantized networks, against passes of one sample at a time of the same network."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastqat as fq
from bench.norm_nets import InceptionTime, resnet18, small_mobilenet_v2, vit

Loss = Callable[[Tensor, Tensor], Tensor]
SAMPLES, CLASSES = 3, 5
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet18": (lambda: resnet18(CLASSES, widths=(8, 16, 16, 32), blocks=1), (3, 16, 16)),
    "mobilenet_v2": (lambda: small_mobilenet_v2(CLASSES), (3, 32, 32)),
    "1-D CNN": (lambda: InceptionTime(CLASSES, channels=4, width=8, depth=3), (4, 40)),
    "vit": (lambda: vit(CLASSES, depth=2, width=48), (3, 32, 32)),
}
CONFIGS: dict[str, str | fq.QConfig] = {
    "w4a4": "w4a4",
    "w3a8:channel": "w3a8:channel",
    "pact and dorefa": fq.QConfig(fq.QuantSpec(4, "dorefa"), fq.QuantSpec(4, "pact")),
    "lsq+": fq.QConfig(
        fq.QuantSpec(4, "lsq_plus", granularity="channel"), fq.QuantSpec(4, "lsq_plus", symmetric=False, granularity="channel")
    ),
}


def distilled(logits: Tensor, targets: Tensor) -> Tensor:
    """Divergence from a teacher of one sample each, without labels: its logits are drawn."""
    teacher = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    return F.kl_div(logits.log_softmax(1), teacher.softmax(1), reduction="none").sum(1)


def labelled(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, reduction="none")


def build(name: str, config: str) -> tuple[nn.Module, Tensor, Tensor]:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = fq.quantize(make(), CONFIGS[config], skip=())
    x = torch.randn(SAMPLES, *shape)
    fq.calibrate(model, [x])
    return model.eval(), x, torch.arange(SAMPLES) % CLASSES


def one_at_a_time(model: nn.Module, x: Tensor, targets: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
    """Norms ``[N]`` over all parameters, summed in fp64, and the gradients ``[N, S]`` of the quantizers' own.

    Each from the forward pass of the whole batch and the loss of one sample: a batch of one is convolved in another order, and what
    rounding then does to values halfway between two codes would be compared instead of gradients.
    """
    quantizers = {id(p) for module in model.modules() if isinstance(module, fq.quantizers.Quantizer) for p in module.parameters()}
    norms, rows = [], []
    for n in range(len(x)):
        model.zero_grad()
        loss(model(x), targets)[n].backward()
        grads = [(p, torch.zeros_like(p) if p.grad is None else p.grad) for p in model.parameters()]
        norms.append(sum(grad.double().square().sum() for _, grad in grads).sqrt())
        rows.append(torch.cat([grad.flatten() for p, grad in grads if id(p) in quantizers]))
    model.zero_grad()
    return torch.stack(norms), torch.stack(rows)


@pytest.mark.parametrize(("name", "config", "loss"), [(n, c, distilled if c == "lsq+" else labelled) for n in NETWORKS for c in CONFIGS])
def test_norms_and_scale_gradients(name: str, config: str, loss: Loss) -> None:
    """Exact in the mode for scoring; no parameter gets a gradient."""
    model, x, targets = build(name, config)
    total, scales = one_at_a_time(model, x, targets, loss)
    model.requires_grad_(False)
    with fq.per_sample_grad_norms(model, scale_grads=True) as norms:
        loss(model(x), targets).mean().backward()
    assert all(p.grad is None for p in model.parameters())
    torch.testing.assert_close(norms.total.double(), total, rtol=1e-5, atol=0)
    assert norms.scale_grads.shape == scales.shape == (SAMPLES, len(norms.scale_names))
    torch.testing.assert_close(norms.scale_grads, scales, rtol=1e-4, atol=1e-5 * float(scales.abs().max()))


@pytest.mark.parametrize(
    ("name", "config"), [("resnet18", "lsq+"), ("mobilenet_v2", "w4a4"), ("1-D CNN", "pact and dorefa"), ("vit", "w3a8:channel")]
)
@pytest.mark.parametrize("loss", [labelled, distilled])
def test_while_training_with_a_sum(name: str, config: str, loss: Loss) -> None:
    """Norms beside a step that trains everything; its gradients are those of a step without norms. Batch norms stand still."""
    model, x, targets = build(name, config)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    total, scales = one_at_a_time(model, x, targets, loss)
    loss(model(x), targets).sum().backward()
    plain = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    with fq.per_sample_grad_norms(model, loss_reduction="sum", scale_grads=True) as norms:
        loss(model(x), targets).sum().backward()
    torch.testing.assert_close(norms.total.double(), total, rtol=1e-5, atol=0)
    torch.testing.assert_close(norms.scale_grads, scales, rtol=1e-4, atol=1e-5 * float(scales.abs().max()))
    for key, p in model.named_parameters():
        torch.testing.assert_close(
            p.grad, plain[key], rtol=1e-5, atol=1e-6 * float(plain[key].abs().max()), msg=lambda m, key=key: f"{key}: {m}"
        )


@pytest.mark.parametrize("spec", [fq.QuantSpec(4), fq.QuantSpec(8, "lsq_plus", symmetric=False), fq.QuantSpec(4, "pact", signed=False)])
@pytest.mark.parametrize("scoring", [True, False])
def test_a_quantizer_of_its_own_counts(spec: fq.QuantSpec, scoring: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(fq.nn.QuantLinear(6, 5, weight=fq.QuantSpec(4)), fq.nn.FakeQuantize(spec), nn.ReLU(), nn.Linear(5, CLASSES))
    x, targets = torch.randn(SAMPLES, 6), torch.arange(SAMPLES)
    fq.calibrate(model, [x])
    model.eval()
    total, scales = one_at_a_time(model, x, targets, labelled)
    model.requires_grad_(not scoring)
    with fq.per_sample_grad_norms(model, scale_grads=True, per_layer=True) as norms:
        labelled(model(x), targets).mean().backward()
    torch.testing.assert_close(norms.total.double(), total, rtol=1e-5, atol=0)
    torch.testing.assert_close(norms.scale_grads, scales, rtol=1e-4, atol=1e-6)
    assert "1.quantizer" in norms.layers
