"""Data, models and data sets of many forms for the tests of scoring passes."""

import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset, TensorDataset

CLASSES, SIZE = 5, 103


def data(size=SIZE, classes=CLASSES):
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(size, 8, generator=generator), torch.randint(0, classes, (size,), generator=generator))


def net(seed=0, classes=CLASSES):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, classes))


class Stream(IterableDataset):
    """The samples of `data`, one after the other."""

    def __init__(self, size=SIZE):
        self.samples = data(size)

    def __iter__(self):
        return iter(self.samples)


class SizedStream(Stream):
    def __len__(self):
        return len(self.samples)


class Mappings(Dataset):
    """What data sets of Hugging Face yield: mappings, with the label among the values."""

    def __init__(self, key="labels"):
        self.key = key

    def __len__(self):
        return SIZE

    def __getitem__(self, i):
        x, y = data()[i]
        return {"left": x[:4], "right": x[4:], self.key: int(y)}


class Halves(nn.Module):
    """Takes what `Mappings` yields."""

    def __init__(self):
        super().__init__()
        self.inner = net()

    def forward(self, left, right):
        return self.inner(torch.cat([left, right], dim=1))


class Calls:
    """What a forward counts its calls in: its `repr` is the same whatever the count, and so is the forward to a fingerprint."""

    def __init__(self, stop_at=None):
        self.count, self.stop_at = 0, stop_at

    def __repr__(self):
        return "Calls"


class Counting(nn.Module):
    """Counts the samples that it is run on."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.samples = inner, 0

    def forward(self, x):
        self.samples += len(x)
        return self.inner(x)
