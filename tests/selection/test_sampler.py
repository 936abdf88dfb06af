"""CoresetSampler and IndexedDataset."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from fastqat._errors import InputError
from fastqat.selection import CoresetSampler, IndexedDataset, score_dataset


def test_the_order_is_a_function_of_seed_and_epoch():
    orders = {}
    for seed in (0, 1):
        for epoch in (0, 1):
            sampler = CoresetSampler(range(0, 60, 2), seed=seed)
            sampler.begin_epoch(epoch)
            orders[seed, epoch] = list(sampler)
            assert list(sampler) == orders[seed, epoch] == sampler.order().tolist()
            assert sorted(orders[seed, epoch]) == list(range(0, 60, 2))
    assert len({tuple(order) for order in orders.values()}) == 4
    assert list(CoresetSampler([5, 3, 4], shuffle=False)) == [5, 3, 4]


@pytest.mark.parametrize(("size", "replicas"), [(10, 1), (10, 2), (11, 3), (7, 4), (2, 5)])
def test_ranks_have_equal_length_and_cover_the_selection(size, replicas):
    samplers = [CoresetSampler(range(size), num_replicas=replicas, rank=rank, seed=4) for rank in range(replicas)]
    shares = [list(sampler) for sampler in samplers]
    assert {len(share) for share in shares} == {len(samplers[0])} == {-(-size // replicas)}
    assert set().union(*shares) == set(range(size))
    whole = CoresetSampler(range(size), seed=4).order().tolist()
    assert [index for step in zip(*shares, strict=True) for index in step][:size] == whole


def test_state_round_trip_and_new_indices():
    sampler = CoresetSampler([3, 1, 2], weights=torch.tensor([1.0, 2.0, 3.0]), seed=5)
    sampler.set_epoch(7)
    other = CoresetSampler(None)
    other.load_state_dict(sampler.state_dict())
    assert list(other) == list(sampler)
    assert torch.equal(other.loss_weights(torch.tensor([2, 3])), torch.tensor([3.0, 1.0]))
    sampler.set_indices([8, 9])
    assert sorted(sampler) == [8, 9] and len(sampler) == 2
    assert sampler.loss_weights(torch.tensor([[9, 8]])).tolist() == [[1.0, 1.0]]
    with pytest.raises(InputError, match="outside the current selection"):
        other.loss_weights(torch.tensor([4]))


def test_a_loader_reads_the_selection():
    data = IndexedDataset(TensorDataset(torch.arange(10.0), torch.arange(10) % 2))
    sampler = CoresetSampler([1, 4, 7])
    seen = [(float(x), int(y), int(i)) for x, y, i in DataLoader(data, 1, sampler=sampler)]
    assert sorted(seen) == [(1.0, 1, 1), (4.0, 0, 4), (7.0, 1, 7)]
    assert len(data) == 10


def test_mappings_get_the_index_under_a_key_that_scoring_leaves_out():
    samples = [{"x": torch.full((2,), float(i)), "labels": i % 2} for i in range(6)]
    seen = {
        int(i): float(x[0])
        for batch in DataLoader(IndexedDataset(samples), 3)
        for i, x in zip(batch["sample_index"], batch["x"], strict=True)
    }
    assert seen == {i: float(i) for i in range(6)}

    class Net(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x)

    assert score_dataset(Net(2, 2), IndexedDataset(samples), "evs", progress=False).num_samples == 6


def test_lists_will_do_and_a_sample_may_come_twice():
    sampler = CoresetSampler([4, 2, 4], weights=[0.5, 1, 0.5])
    assert sampler.loss_weights([4, 2]).tolist() == [0.5, 1.0] and sorted(sampler) == [2, 4, 4]
    with pytest.raises(InputError, match="nan for index 2"):
        sampler.set_indices([1, 2], [1.0, float("nan")])
    assert sampler.loss_weights([4]).tolist() == [0.5], "a refused selection changes nothing"
    assert CoresetSampler([3]).loss_weights([3]).tolist() == [1.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CoresetSampler([]), "non-empty list of integers"),
        (lambda: CoresetSampler([-1]), "integers ≥ 0"),
        (lambda: CoresetSampler([0.5]), "integers ≥ 0"),
        (lambda: CoresetSampler([1, 2], weights=torch.ones(3)), "one value per index"),
        (lambda: CoresetSampler([1, 2], weights=[1.0, -2.0]), "finite and ≥ 0; got -2.0 for index 2"),
        (lambda: CoresetSampler([1, 2], weights=[1.0, float("inf")]), "finite and ≥ 0; got inf for index 2"),
        (lambda: CoresetSampler([3, 1, 3], weights=[1.0, 1.0, 2.0]), "index 3 is there twice with two weights"),
        (lambda: IndexedDataset([(1,)])[0], r"samples must be \(x, y\) or mappings .* got a tuple of 1"),
        (lambda: IndexedDataset([torch.zeros(3)])[0], "got a Tensor"),
        (lambda: CoresetSampler([1], num_replicas=2, rank=2), r"rank 2 of 2"),
        (lambda: CoresetSampler([1], num_replicas="2"), "num_replicas must be a whole number ≥ 1; got '2'"),
        (lambda: CoresetSampler([1], seed=-1), "seed must be a whole number ≥ 0; got -1"),
        (lambda: list(CoresetSampler(None)), r"call begin_epoch\(0\)"),
        (lambda: len(CoresetSampler(None)), r"call begin_epoch\(0\)"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()


@pytest.mark.parametrize(("size", "replicas", "repeated"), [(12, 3, 0), (10, 4, 2), (11, 4, 1), (2, 5, 3)])
def test_padding_repeats_the_start_of_the_order(size, replicas, repeated):
    weights = torch.rand(size)
    shares = []
    for rank in range(replicas):
        sampler = CoresetSampler(range(size), weights=weights, num_replicas=replicas, rank=rank, seed=2)
        sampler.begin_epoch(1)
        shares.append(sampler.order())
        assert torch.equal(sampler.loss_weights(shares[-1]), weights[shares[-1]])
        assert len(list(DataLoader(range(size), 2, sampler=sampler))) == -(-len(sampler) // 2)
    dealt = torch.stack(shares, dim=1).flatten().tolist()
    whole = CoresetSampler(range(size), seed=2)
    whole.begin_epoch(1)
    order = whole.order().tolist()
    assert dealt == [order[i % size] for i in range(size + repeated)]
