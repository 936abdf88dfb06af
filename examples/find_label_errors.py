"""Find wrong labels while you train: a recorder in the loop, and the samples whose label the model never came to believe.

    python examples/find_label_errors.py

Needs scikit-learn for the data. A tenth of the digits gets a wrong label; a small network is trained on all of them, and a recorder sees
every batch's logits. Prints the share of the suspicious samples that do have a wrong label, the share of all wrong labels that are found,
and the share of those for which the suggested label is the right one. Takes a few seconds.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fastqat as fq

EPOCHS = 12


def noisy_digits(share: float) -> tuple[TensorDataset, torch.Tensor]:
    """Digits of which `share` have a wrong label, and the right labels."""
    x, y = (torch.tensor(values) for values in load_digits(return_X_y=True))
    shifted = (y + torch.randint(1, 10, y.shape)) % 10
    return TensorDataset(x.float().reshape(-1, 1, 8, 8) / 16, torch.where(torch.rand(len(y)) < share, shifted, y)), y


def network() -> nn.Module:
    def block(channels_in: int, channels_out: int) -> list[nn.Module]:
        return [nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU()]

    return nn.Sequential(
        *block(1, 16), *block(16, 32), nn.MaxPool2d(2), *block(32, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)
    )


def main() -> None:
    torch.manual_seed(0)
    data, right = noisy_digits(0.1)
    model = network()
    recorder = fq.selection.DynamicsRecorder(len(data))
    loader = DataLoader(fq.selection.IndexedDataset(data), 64, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=EPOCHS * len(loader))
    for _ in range(EPOCHS):
        for x, y, index in loader:
            logits = model(x)
            recorder.update(index, logits, y)
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(logits, y).backward()
            optimizer.step()
            schedule.step()

    issues = fq.selection.find_label_issues(recorder.table())
    wrong = data.tensors[1] != right
    hits = wrong[issues.indices]
    named = (issues.suggested == right[issues.indices])[hits]
    print(f"{len(issues.indices)} of {len(data)} labels are suspicious; of these {hits.float().mean():.1%} are wrong")
    print(f"found {hits.sum() / wrong.sum():.1%} of the wrong labels")
    print(f"the right label is suggested for {named.float().mean():.1%} of them")
    print("the most suspicious:")
    for index, given, suggested, quality in zip(*(values[:5].tolist() for values in issues), strict=True):
        print(f"  sample {index:4d}: labelled {given}, looks like {suggested}; area under the margin {quality:.2f}")


if __name__ == "__main__":
    main()
