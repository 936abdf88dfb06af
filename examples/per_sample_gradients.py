"""Wrong labels stand out by the gradients they cause: per-sample gradient norms of a 4-bit network, at the price of one backward.

    python examples/per_sample_gradients.py

Needs scikit-learn for the data. A tenth of the digits gets a wrong label; prints the share of them among the tenth of the data that has the
largest gradients: in all layers of the quantized network, in its last layer, and in its step sizes. Takes about ten seconds.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fastqat as fq


def noisy_digits(share: float) -> tuple[TensorDataset, torch.Tensor]:
    """Digits of which `share` have a wrong label, and which ones have."""
    x, y = (torch.tensor(values) for values in load_digits(return_X_y=True))
    wrong = torch.rand(len(y)) < share
    shifted = (y + torch.randint(1, 10, y.shape)) % 10
    return TensorDataset(x.float().reshape(-1, 1, 8, 8) / 16, torch.where(wrong, shifted, y)), wrong


def network() -> nn.Module:
    def block(channels_in: int, channels_out: int) -> list[nn.Module]:
        return [nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.GroupNorm(4, channels_out), nn.ReLU()]

    return nn.Sequential(
        *block(1, 16), *block(16, 32), nn.MaxPool2d(2), *block(32, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)
    )


def train(model: nn.Module, data: TensorDataset, epochs: int, lr: float) -> None:
    optimizer = torch.optim.SGD(fq.param_groups(model, lr), momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for x, y in DataLoader(data, 64, shuffle=True):
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        schedule.step()


def step_size_norms(model: nn.Module, data: TensorDataset) -> torch.Tensor:
    """Norm of each sample's gradient with respect to the step sizes only: a dozen numbers per sample."""
    norms = []
    model.requires_grad_(False)
    for x, y in DataLoader(data, 256):
        with fq.per_sample_grad_norms(model, scale_grads=True) as gradients:
            nn.functional.cross_entropy(model(x), y).backward()
        norms.append(gradients.scale_grads.norm(dim=1))
    return torch.cat(norms)


def main() -> None:
    torch.manual_seed(0)
    data, wrong = noisy_digits(0.1)
    model = network()
    train(model, data, 12, 0.1)
    student = fq.calibrate(fq.quantize(model, "w4a4"), DataLoader(data, 64))
    train(student, data, 2, 0.01)

    table = fq.selection.score_dataset(student, data, ["grand", "grand_last"])
    scores = {"all layers": table["grand"], "last layer": table["grand_last"], "step sizes": step_size_norms(student, data)}
    for name, values in scores.items():
        found = wrong[values.topk(int(wrong.sum())).indices].float().mean().item()
        print(f"largest gradients, {name}: {100 * found:.1f}% have a wrong label")


if __name__ == "__main__":
    main()
