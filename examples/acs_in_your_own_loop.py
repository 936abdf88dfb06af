"""ACS in a training loop of your own: a digits classifier in 2-bit weights, trained on the tenth of the data that matters.

    python examples/acs_in_your_own_loop.py

Needs scikit-learn for the data. Prints the accuracy of the float model, and of the 2-bit model after training on a random tenth and on
the tenth that ACS chooses, from the same start. Takes about ten seconds.
"""

import copy

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fastqat as fq

EPOCHS = 20


def digits() -> tuple[TensorDataset, TensorDataset]:
    x, y = load_digits(return_X_y=True)
    parts = train_test_split(torch.tensor(x).float().reshape(-1, 1, 8, 8) / 16, torch.tensor(y), test_size=0.25, stratify=y, random_state=0)
    return TensorDataset(parts[0], parts[2]), TensorDataset(parts[1], parts[3])


def network() -> nn.Module:
    def block(channels_in: int, channels_out: int) -> list[nn.Module]:
        return [nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU()]

    return nn.Sequential(
        *block(1, 16), *block(16, 32), nn.MaxPool2d(2), *block(32, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)
    )


@torch.no_grad()
def accuracy(model: nn.Module, data: TensorDataset) -> float:
    model.eval()
    x, y = data.tensors
    return (model(x).argmax(1) == y).float().mean().item()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, epochs: int, loader: DataLoader, begin_epoch=lambda epoch: None) -> None:
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for epoch in range(epochs):
        begin_epoch(epoch)
        model.train()
        for x, y in loader:
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        schedule.step()


def main() -> None:
    torch.manual_seed(0)
    data, test = digits()
    teacher = network()
    train(teacher, torch.optim.SGD(teacher.parameters(), lr=0.1, momentum=0.9), 12, DataLoader(data, 64, shuffle=True))
    print(f"float               {accuracy(teacher, test):6.1%}")

    start = fq.quantize(teacher, "w2a32")
    for name in ("random", "acs"):
        student = copy.deepcopy(start)
        if name == "acs":
            chosen = fq.methods.ACS(data, student, teacher, fraction=0.1, epochs=EPOCHS, interval=5)
        else:
            chosen = fq.selection.RandomSubset(data, fraction=0.1, interval=5)
        optimizer = torch.optim.SGD(fq.param_groups(student, lr=0.02, weight_decay=5e-4), momentum=0.9)
        train(student, optimizer, EPOCHS, DataLoader(data, 32, sampler=chosen.sampler), chosen.begin_epoch)
        print(f"W2A32, {name + ' tenth':13s}{accuracy(student, test):6.1%}")
    print(fq.summary(student))


if __name__ == "__main__":
    main()
