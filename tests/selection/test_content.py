"""What values are known by in the keys of files: the same for the same content, another for any other."""

import functools
from dataclasses import replace

import pytest
import torch

from fastqat.selection.scoring.content import content_hash, describe
from fastqat.train.config import TrainConfig
from fastqat.train.policies import scoring_forward

from .scoring import net


class Scaled:
    def __init__(self, scale):
        self.scale, self.itself = scale, self

    def __call__(self, model, x):
        return model(x * self.scale)


def closed(scale):
    return lambda model, x: model(x * scale)


def defaulted(scale):
    return lambda model, x, scale=scale: model(x * scale)


def named(scale):
    def forward(model, x, *, scale=scale):
        return model(x * scale)

    return forward


def reading(scale):
    around = {"__name__": "elsewhere", "scale": scale}
    exec("def forward(model, x): return (lambda: model(x * scale))()", around)
    return around["forward"]


def method(scale):
    return Scaled(scale).__call__


def partial(scale):
    return functools.partial(closed(0.0), scale)


VALUES = {
    "numbers": (1.0, 2.0),
    "lists": ([1.0, 2.0], [1.0, 3.0]),
    "tensors": (torch.ones(2), torch.zeros(2)),
    "weights": (net(), net(1)),
    "functions": (closed(1.0), closed(2.0)),
}


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("make", [closed, defaulted, named, reading, Scaled, method, partial])
def test_a_forward_is_known_by_all_that_it_is_made_of(make, values):
    one, other = VALUES[values]
    assert describe(make(one)) == describe(make(one)) != describe(make(other))


def test_places_and_order_do_not_count():
    assert content_hash(torch.device("cpu")) == content_hash(torch.device("cuda:1"))
    assert content_hash({"a", "b", "c"}) == content_hash({"c", "a", "b"}) != content_hash({"a", "b"})
    assert describe(0.5) == "0.5" and describe("func") == "'func'" and " at 0x" not in describe(object())


def test_runs_share_teacher_logits_when_they_compute_them_alike():
    config = TrainConfig(data="digits")
    keys = [describe(scoring_forward(each)) for each in (config, replace(config, seed=1), replace(config, amp=not config.amp))]
    assert keys[0] == keys[1] != keys[2]
