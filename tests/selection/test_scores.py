"""Every registered score against its formula in fp64, sample by sample."""

import math

import pytest
import torch

from fastqat._errors import InputError
from fastqat.ops.logit_scores.api import logit_scores
from fastqat.selection import get_score, list_scores, register_score
from fastqat.selection.scores.acs import blend


def softmax(row):
    top = max(row)
    exps = [math.exp(v - top) for v in row]
    return [e / sum(exps) for e in exps]


def distance(a, b):
    return math.sqrt(sum((u - v) ** 2 for u, v in zip(a, b, strict=True)))


def onehot(y, size):
    return [float(j == y) for j in range(size)]


ORACLES = {
    "evs": lambda p, y, t: distance(p, onehot(y, len(p))),
    "el2n": lambda p, y, t: distance(p, onehot(y, len(p))),
    "ds": lambda p, y, t: distance(p, t),
    "acs": lambda p, y, t: 0.5 * distance(p, onehot(y, len(p))) + 0.5 * distance(p, t),
    "res": lambda p, y, t: sum(a * math.log(a / b) for a, b in zip(p, t, strict=True)),
    "quarc": lambda p, y, t: 0.5 * distance(p, onehot(y, len(p))) + 0.5 * distance(p, t) + ORACLES["res"](p, y, t),
    "entropy": lambda p, y, t: -sum(a * math.log(a) for a in p),
    "confidence": lambda p, y, t: max(p),
    "margin": lambda p, y, t: sorted(p)[-1] - sorted(p)[-2],
    "loss": lambda p, y, t: -math.log(p[y]),
}


OF_LOGITS = sorted(name for name, score in list_scores().items() if score.stage == "logits")


@pytest.mark.parametrize("name", OF_LOGITS)
def test_score_equals_its_formula(name):
    generator = torch.Generator().manual_seed(0)
    logits, teacher = (3 * torch.randn(50, 6, generator=generator) for _ in range(2))
    targets = torch.randint(0, 6, (50,), generator=generator)
    score = get_score(name)
    got = score(logit_scores(logits, targets if "targets" in score.needs else None, teacher if "teacher" in score.needs else None))
    rows = zip(logits.double().tolist(), targets.tolist(), teacher.double().tolist(), strict=True)
    want = torch.tensor([ORACLES[name](softmax(p), y, softmax(t)) for p, y, t in rows], dtype=torch.float64)
    assert got.shape == (50,) and got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OF_LOGITS)
def test_a_nan_logit_shows_in_the_score(name):
    logits = torch.zeros(2, 3)
    logits[1, 0] = float("nan")
    got = get_score(name)(logit_scores(logits, torch.tensor([2, 2]), torch.zeros(2, 3)))
    assert got.isnan().tolist() == [False, True]


def test_a_score_without_what_it_needs_says_so():
    for name, need in (("ds", "teacher"), ("loss", "targets")):
        with pytest.raises(InputError, match=f"score '{name}' needs {need}"):
            get_score(name)(logit_scores(torch.zeros(2, 3)))


NEEDS = {"targets", "teacher", "features", "gradients", "inputs", "embeddings", "probabilities", "dynamics"}
SMALLEST = {"confidence", "margin", "aum", "label_confidence", "deepfool", "moderate"}


def test_every_score_says_what_it_is():
    for name, score in list_scores().items():
        assert score.direction in ("largest", "smallest"), name
        assert set(score.needs) <= NEEDS, name
        assert score.formula and score.source, name
    assert list_scores()["el2n"] is not None and list_scores()["el2n"].name == "evs"
    assert {name for name, score in list_scores().items() if score.direction == "smallest"} == SMALLEST


def test_blend_leaves_out_a_term_of_weight_zero():
    evs, ds = torch.rand(5), torch.rand(5)
    assert torch.equal(blend(evs, None, 1.0), evs)
    assert torch.equal(blend(None, ds, 0.0), ds)
    torch.testing.assert_close(blend(evs, ds, 0.25), 0.25 * evs + 0.75 * ds)
    with pytest.raises(InputError, match="one of them is missing"):
        blend(evs, None, 0.9)
    with pytest.raises(InputError, match=r"beta must be in \[0, 1\]; got 1.5"):
        blend(evs, ds, 1.5)


def test_a_name_is_registered_once_and_an_unknown_one_lists_the_known():
    with pytest.raises(ValueError, match="'evs' is already registered"):
        register_score("evs", formula="", direction="largest", source="")(lambda scores: scores.evs)
    with pytest.raises(InputError, match=r"unknown score 'forget'; choose from acs, "):
        get_score("forget")
