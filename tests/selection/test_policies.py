"""The policies without scores: protocol, counts, state. Schedules and seeds."""

import math
from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from torch.utils.data import TensorDataset

from fastqat._errors import CheckpointError, DataError, InputError
from fastqat.selection import RS2, SCHEDULES, RandomSubset, WholeSet, beta_at
from fastqat.selection.seeding import Stream, generator_for

DATA = TensorDataset(torch.zeros(90, 2), torch.arange(90) % 9)
POLICIES = {
    "none": lambda **k: WholeSet(DATA, **k),
    "random": lambda **k: RandomSubset(DATA, fraction=0.2, **k),
    "random, re-drawn": lambda **k: RandomSubset(DATA, fraction=0.2, interval=3, **k),
    "random, not balanced": lambda **k: RandomSubset(DATA, fraction=0.2, balanced=False, **k),
    "rs2": lambda **k: RS2(DATA, fraction=0.2, **k),
    "rs2 with replacement": lambda **k: RS2(DATA, fraction=0.2, replacement=True, **k),
}
CHANGES = {"none": [], "random": [0], "random, re-drawn": [0, 3, 6], "random, not balanced": [0]}


@pytest.mark.parametrize("name", POLICIES)
def test_the_protocol(name):
    policy = POLICIES[name](seed=2)
    changes = [epoch for epoch in range(8) if policy.begin_epoch(epoch)]
    assert changes == CHANGES.get(name, list(range(8)))
    size = 90 if name == "none" else 18
    assert len(policy.selection) == len(policy.sampler) == size == len(set(policy.sampler))
    assert policy.beta(3) is None and policy.table is None and policy.scoring_forwards == 0
    assert (policy.selection_seconds > 0) == (name != "none")
    assert policy.finish() is None
    if "not" not in name and name != "none":
        assert DATA.tensors[1][policy.selection.indices].bincount().tolist() == [2] * 9


def orders(policy, epochs):
    out = []
    for epoch in epochs:
        policy.begin_epoch(epoch)
        out.append((policy.selection.indices.tolist(), list(policy.sampler)))
    return out


@pytest.mark.parametrize("stop", [1, 3, 4])
@pytest.mark.parametrize("name", POLICIES)
def test_a_resumed_run_equals_one_that_never_stopped(name, stop, tmp_path):
    whole = orders(POLICIES[name](), range(8))
    first = POLICIES[name]()
    assert orders(first, range(stop)) == whole[:stop]
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = POLICIES[name]()
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert orders(second, range(stop, 8)) == whole[stop:]
    assert second.selection_seconds >= first.selection_seconds


def test_static_and_redrawn_and_seeds_differ():
    chosen = {name: [order[0] for order in orders(POLICIES[name](), range(6))] for name in POLICIES}
    assert all(indices == chosen["random"][0] for indices in chosen["random"])
    assert chosen["random, re-drawn"][2] != chosen["random, re-drawn"][3]
    assert len({tuple(indices) for indices in chosen["rs2"]}) == 6
    assert orders(POLICIES["random"](seed=1), [0]) != orders(POLICIES["random"](), [0])


def test_state_of_other_settings_is_refused_in_one_line():
    state = RandomSubset(DATA, fraction=0.2).state_dict()
    with pytest.raises(CheckpointError, match=r"saved with fraction 0.2 \(here 0.3\); resume with the same settings"):
        RandomSubset(DATA, fraction=0.3).load_state_dict(state)
    with pytest.raises(CheckpointError, match="policy 'RandomSubset'"):
        RS2(DATA, fraction=0.2).load_state_dict(state)


def test_ranks_share_the_selection():
    policies = [RS2(DATA, fraction=0.2, num_replicas=2, rank=rank) for rank in range(2)]
    for policy in policies:
        policy.begin_epoch(5)
    assert torch.equal(policies[0].selection.indices, policies[1].selection.indices)
    assert sorted([*policies[0].sampler, *policies[1].sampler]) == sorted(policies[0].selection.indices.tolist())


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: RandomSubset(DATA, fraction=0), InputError, "fraction must be in"),
        (lambda: RS2(DATA, fraction=0.04), InputError, r"leaves class 0 \(10 samples\) empty; use fraction ≥ 0.0501"),
        (lambda: RS2(DATA, fraction=0.004, balanced=False), InputError, "selects none"),
        (lambda: RandomSubset(DATA, interval=0), InputError, r"interval, .* must be a whole number ≥ 1; got 0"),
        (lambda: RandomSubset(DATA, interval=2.5), InputError, r"interval, .* must be a whole number ≥ 1; got 2.5"),
        (lambda: RandomSubset(DATA, labels=[1, 2]), InputError, "one value per sample"),
        (lambda: RandomSubset(DATA).begin_epoch(-1), InputError, "epoch must be a whole number ≥ 0; got -1"),
        (lambda: RS2(DATA).begin_epoch("1"), InputError, "epoch must be a whole number ≥ 0; got '1'"),
        (lambda: WholeSet([]), DataError, "the data set is empty"),
        (lambda: RandomSubset(TensorDataset(torch.zeros(5, 1))), DataError, "balanced=False"),
    ],
)
def test_bad_input(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


FORMULAS = {
    "cosine": lambda t, e: math.cos(math.pi * t / 2 / e),
    "half_cosine": lambda t, e: (1 + math.cos(math.pi * t / e)) / 2,
    "linear": lambda t, e: 1 - t / e,
    "sqrt": lambda t, e: 1 - (t / e) ** 0.5,
    "quadratic": lambda t, e: 1 - t * t / (e * e),
    "constant": lambda t, e: 0.5,
}


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_schedules_follow_their_formulas_and_never_rise(name):
    betas = [beta_at(name, epoch, 120) for epoch in range(120)]
    assert betas == pytest.approx([FORMULAS[name](epoch, 120) for epoch in range(120)])
    assert all(0 <= late <= early <= 1 for early, late in pairwise(betas))
    assert betas[0] == (0.5 if name == "constant" else 1.0)


def test_schedules_refuse_what_they_cannot_mean():
    assert beta_at(lambda t, e: t / e, 3, 4) == 0.75
    for call, message in (
        (lambda: beta_at("cos", 0, 4), "unknown schedule 'cos'; choose one of cosine"),
        (lambda: beta_at("cosine", 4, 4), r"epoch must be in \[0, 4\); got 4"),
        (lambda: beta_at(lambda t, e: 2.0, 0, 4), r"must give numbers in \[0, 1\]; it gave 2.0 at epoch 0 of 4"),
        (lambda: beta_at(lambda t, e: float("nan"), 0, 4), "it gave nan"),
        (lambda: beta_at(lambda t, e: None, 0, 4), "it gave None"),
        (lambda: beta_at(3, 0, 4), "unknown schedule 3; choose one of cosine"),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_streams_are_independent_and_repeatable():
    draws = {
        key: torch.randint(2**40, (4,), generator=generator_for(*key)).tolist()
        for key in [(0, Stream.SHUFFLE), (0, Stream.SHUFFLE, 0), (0, Stream.SUBSET, 0), (0, Stream.SHUFFLE, 1), (1, Stream.SHUFFLE, 0)]
    }
    assert len({tuple(draw) for draw in draws.values()}) == len(draws)
    assert torch.randint(2**40, (4,), generator=generator_for(0, Stream.SUBSET, 0)).tolist() == draws[0, Stream.SUBSET, 0]
    with pytest.raises(InputError, match="seed must be a whole number ≥ 0; got -1"):
        generator_for(-1, Stream.SHUFFLE)


def test_iterable_data_set_is_refused_in_one_line() -> None:
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self) -> Iterator[tuple[torch.Tensor, int]]:
            yield torch.zeros(1), 0

    for policy in (WholeSet, RandomSubset):
        with pytest.raises(InputError, match="Stream has no length; pass a map-style data set"):
            policy(Stream())
