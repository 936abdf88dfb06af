"""Labels and order of data sets."""

import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset

from fastqat._errors import DataError, InputError
from fastqat.selection import IndexedDataset
from fastqat.selection.datasets import batches_of, known_labels, labels_of, sized


class Pictures(Dataset):
    """Like torchvision's: targets, transform and target_transform are attributes."""

    def __init__(self, targets, transform=None, target_transform=None):
        self.targets, self.transform, self.target_transform = targets, transform, target_transform

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):
        x, y = torch.full((2,), float(i)), self.targets[i]
        return (x if self.transform is None else self.transform(x)), (y if self.target_transform is None else self.target_transform(y))


class Noisy(Dataset):
    """A wrapper that changes labels: the labels of what it wraps are not its own."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, i):
        x, y = self.dataset[i]
        return x, 9 - y


class Device(Dataset):
    """Feeds itself, as fastqat.data.TensorData does."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        raise AssertionError("read sample by sample")

    def batches(self, batch_size, indices=None):
        order = torch.arange(len(self.x)) if indices is None else indices
        for part in order.split(batch_size):
            yield self.x[part], self.y[part]


PLAIN = Pictures([3, 1, 2, 0])
LABELS = [
    (PLAIN, [3, 1, 2, 0], True),
    (Pictures([3, 1, 2, 0], target_transform=lambda y: y + 1), [4, 2, 3, 1], False),
    (Subset(PLAIN, [2, 0]), [2, 3], True),
    (ConcatDataset([PLAIN, Subset(PLAIN, [1])]), [3, 1, 2, 0, 1], True),
    (IndexedDataset(PLAIN), [3, 1, 2, 0], True),
    (TensorDataset(torch.zeros(3, 1), torch.tensor([5, 6, 7])), [5, 6, 7], True),
    (Noisy(PLAIN), [6, 8, 7, 9], False),
    (Device(torch.zeros(2, 1), torch.tensor([1, 0])), [1, 0], True),
]


@pytest.mark.parametrize(("dataset", "labels", "known"), LABELS)
def test_labels_are_those_that_the_samples_carry(dataset, labels, known):
    assert labels_of(dataset).tolist() == labels
    assert (known_labels(dataset) is not None) == known
    assert torch.cat([y for _, y in batches_of(dataset, 2)]).tolist() == labels


def test_batches_follow_the_order_that_is_asked_for():
    for dataset in (PLAIN, Device(torch.arange(4.0)[:, None], torch.tensor([3, 1, 2, 0]))):
        batches = list(batches_of(dataset, 2, indices=torch.tensor([3, 0, 2])))
        assert [x[:, 0].tolist() for x, _ in batches] == [[3.0, 0.0], [2.0]]
        assert [y.tolist() for _, y in batches] == [[0, 3], [2]]


def test_unlabelled_empty_and_endless_data():
    unlabelled = TensorDataset(torch.zeros(3, 1))
    assert [y for _, y in batches_of(unlabelled, 2)] == [None, None]
    with pytest.raises(DataError, match="yields no labels"):
        labels_of(unlabelled)
    with pytest.raises(DataError, match="the data set is empty"):
        sized(TensorDataset(torch.zeros(0, 1)))

    class Endless(IterableDataset):
        def __iter__(self):
            return iter(())

    with pytest.raises(InputError, match="Endless has no length"):
        sized(Endless())
