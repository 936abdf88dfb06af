"""Which data sets a scoring pass takes as they are, and which it refuses."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from fastqat._errors import InputError
from fastqat._tensor_data import TensorData
from fastqat.selection import IndexedDataset
from fastqat.selection.determinism import check_deterministic, random_transform


class Reads(Dataset):
    """40 samples of whatever `read` gives; no attribute tells what it does."""

    def __init__(self, read):
        self.read = read

    def __len__(self):
        return 40

    def __getitem__(self, i):
        return self.read(i), i % 2


class Transformed(Reads):
    def __init__(self, transform):
        super().__init__(float)
        self.transform = transform


PLAIN = TensorDataset(torch.zeros(40, 3), torch.arange(40) % 2)


class Stepping:
    """A generator of its own, that no seeding of the global ones reaches."""

    def __init__(self):
        self.generator = np.random.default_rng(0)

    def __call__(self, i):
        return self.generator.random()


RANDOM = {
    "torch": lambda i: torch.randn(3),
    "numpy": lambda i: np.random.rand(3),
    "python": lambda i: random.random(),
    "own generator": Stepping(),
    "flip": lambda i: torch.arange(3.0).flip(0) if random.random() < 0.5 else torch.arange(3.0),
    "nested": lambda i: {"plain": i, "noisy": [torch.zeros(2), torch.rand(2)]},
    "in the last sample": lambda i: torch.rand(3) if i == 39 else torch.zeros(3),
}


@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: Subset(d, range(40)), lambda d: ConcatDataset([PLAIN, d]), IndexedDataset])
@pytest.mark.parametrize("read", RANDOM.values(), ids=RANDOM)
def test_a_data_set_that_draws_in_getitem_is_refused(read, wrap):
    with pytest.raises(InputError, match=r"two reads of sample \d+ of \w+ differ, .*; pass score_view="):
        check_deterministic(wrap(Reads(read)))


def test_random_labels_are_noticed_too():
    class Labels(Reads):
        def __getitem__(self, i):
            return 0.0, random.randrange(100)

    with pytest.raises(InputError, match="sample 0 of Labels differ"):
        check_deterministic(Labels(None))


PLAIN_READS = {
    "tensor": lambda i: torch.full((3,), float(i)),
    "numpy": lambda i: np.full(3, i),
    "nan": lambda i: torch.tensor([float("nan"), i]),
    "nested": lambda i: {"x": [i, torch.zeros(2)], "name": str(i)},
    "noise fixed by the index": lambda i: torch.randn(3, generator=torch.Generator().manual_seed(i)),
}


@pytest.mark.parametrize("read", PLAIN_READS.values(), ids=PLAIN_READS)
def test_equal_reads_pass_and_every_random_state_is_put_back(read):
    def states():
        return [torch.rand(1).item(), np.random.rand(), random.random()]

    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    want = states()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    check_deterministic(Reads(read))
    assert states() == want


def test_states_are_put_back_after_an_error():
    def broken(i):
        random.seed(9), torch.manual_seed(9), np.random.seed(9)
        raise OSError("no such picture")

    before = (random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy())
    with pytest.raises(OSError, match="no such picture"):
        check_deterministic(Reads(broken))
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1]) and (np.random.get_state()[1] == before[2]).all()


def test_data_in_memory_is_known_without_a_read(monkeypatch):
    for kind in (TensorDataset, TensorData):
        monkeypatch.setattr(kind, "__getitem__", lambda self, i: pytest.fail("read"))
    monkeypatch.setattr(TensorData, "batches", lambda self, *args: pytest.fail("read"))
    held = TensorData(torch.rand(4, 1, 2, 2), torch.arange(4))
    for dataset in (PLAIN, held, Subset(held, [1, 2]), ConcatDataset([PLAIN, Subset(IndexedDataset(PLAIN), [0])])):
        check_deterministic(dataset)


def test_a_subclass_of_a_known_type_is_read():
    class Noisy(TensorDataset):
        def __getitem__(self, i):
            return torch.rand(3), 0

    with pytest.raises(InputError, match="sample 0 of Noisy differ"):
        check_deterministic(Noisy(torch.zeros(4, 3)))


def test_a_data_set_that_feeds_itself_is_read_through_its_batches():
    class Feeding(Reads):
        def __getitem__(self, i):
            raise AssertionError("read sample by sample")

        def batches(self, batch_size, indices=None):
            for part in (torch.arange(40) if indices is None else indices).split(batch_size):
                yield self.read(part), part

    check_deterministic(Feeding(lambda part: part.float()))
    with pytest.raises(InputError, match="Feeding differ"):
        check_deterministic(Feeding(lambda part: torch.rand(len(part))))


def test_a_transform_is_random_unless_it_is_known_not_to_be():
    flip = Transformed(lambda x: -x)
    assert random_transform(Transformed(None)) is None
    assert random_transform(flip) == "<lambda>"
    assert random_transform(Subset(IndexedDataset(flip), [0])) == "<lambda>"
    assert random_transform(ConcatDataset([PLAIN, flip])) == "<lambda>"
    with pytest.raises(InputError, match="applies <lambda>, which may augment at random; pass score_view="):
        check_deterministic(flip)


def test_torchvision_conversions_are_known():
    v2 = pytest.importorskip("torchvision.transforms")
    assert random_transform(Transformed(v2.Compose([v2.ToTensor(), v2.Normalize(0.5, 0.5)]))) is None
    assert random_transform(Transformed(v2.Compose([v2.RandomHorizontalFlip(), v2.ToTensor()]))) == "RandomHorizontalFlip"
