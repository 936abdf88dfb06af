"""QuaRC in a training loop of your own: a digits classifier in 2-bit weights, trained on one sample in twenty.

    python examples/quarc_in_your_own_loop.py

Needs scikit-learn for the data. Prints the accuracy of the float model, and of the 2-bit model after distillation on a random twentieth and
after QuaRC: samples chosen by their relative entropy score, and layers that are corrected after the float model's. Takes about twenty
seconds.
"""

import copy

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fastqat as fq

EPOCHS = 40


class ResidualBlock(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.convs(x))


def digits() -> tuple[TensorDataset, TensorDataset]:
    x, y = load_digits(return_X_y=True)
    parts = train_test_split(torch.tensor(x).float().reshape(-1, 1, 8, 8) / 16, torch.tensor(y), test_size=0.25, stratify=y, random_state=0)
    return TensorDataset(parts[0], parts[2]), TensorDataset(parts[1], parts[3])


def network() -> nn.Module:
    stem = [nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(
        *stem, ResidualBlock(16), nn.MaxPool2d(2), ResidualBlock(16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
    )


@torch.no_grad()
def accuracy(model: nn.Module, data: TensorDataset) -> float:
    model.eval()
    x, y = data.tensors
    return (model(x).argmax(1) == y).float().mean().item()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, epochs: int, loader: DataLoader, loss_of, begin_epoch=lambda epoch: None):
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for epoch in range(epochs):
        begin_epoch(epoch)
        model.train()
        for x, y in loader:
            optimizer.zero_grad(set_to_none=True)
            loss_of(x, y).backward()
            optimizer.step()
        schedule.step()


def main() -> None:
    torch.manual_seed(0)
    data, test = digits()
    teacher = network()
    optimizer = torch.optim.SGD(teacher.parameters(), lr=0.1, momentum=0.9)
    cross_entropy = nn.functional.cross_entropy
    train(teacher, optimizer, 15, DataLoader(data, 64, shuffle=True), lambda x, y: cross_entropy(teacher(x), y))
    teacher.eval()
    print(f"float                              {accuracy(teacher, test):6.1%}")

    start = fq.quantize(teacher, "w2a32")
    student = copy.deepcopy(start)
    chosen = fq.selection.RandomSubset(data, fraction=0.05, interval=10)
    optimizer = torch.optim.SGD(fq.param_groups(student, lr=0.02, weight_decay=5e-4), momentum=0.9)
    loader = DataLoader(data, 16, sampler=chosen.sampler)
    train(student, optimizer, EPOCHS, loader, lambda x, y: cross_entropy(student(x), teacher(x).detach().softmax(1)), chosen.begin_epoch)
    print(f"W2A32, random twentieth, distilled {accuracy(student, test):6.1%}")

    student = copy.deepcopy(start)
    quarc = fq.methods.QuaRC(data, student, teacher, fraction=0.05, epochs=EPOCHS, interval=10)
    optimizer = torch.optim.SGD(fq.param_groups(student, lr=0.02, weight_decay=5e-4), momentum=0.9)
    loader = DataLoader(data, 16, sampler=quarc.sampler)
    train(student, optimizer, EPOCHS, loader, lambda x, y: quarc.loss(x)[0], quarc.begin_epoch)
    print(f"W2A32, QuaRC's twentieth           {accuracy(student, test):6.1%}")
    print(f"corrected layers: {', '.join(quarc.correction.names)}; correction / distillation {quarc.correction.last_ratio:.2f}")


if __name__ == "__main__":
    main()
