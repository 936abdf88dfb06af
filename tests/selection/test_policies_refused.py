"""ScoredSubset: what is refused before training, in words that fit the caller's data."""

import pytest
import torch
from torch.utils.data import Dataset

from fastqat._errors import InputError
from fastqat.selection import ScoredSubset, list_selectors

from .policy_runs import CLASSES, N, data, net


class Augmented(Dataset):
    def __len__(self):
        return N

    def __getitem__(self, i):
        return torch.randn(6), i % CLASSES


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "best"}, "unknown selector 'best'"),
        ({"method": "random"}, "random needs no scores; use RandomSubset or RS2"),
        ({"score": "best"}, "unknown score 'best'"),
        ({"score": "ds"}, "score 'ds' compares with a teacher; pass teacher="),
        ({"options": {"strata": 3}}, "topk does not take strata; its options: none"),
        ({"method": "stratified", "options": {"strata": 0}}, "strata must be a whole number ≥ 1"),
        ({"method": "stratified", "options": {"beta": 0.9}}, "beta 0.9 leaves"),
        ({"method": "k_center"}, "k_center compares samples by their features; pass features='embedding'"),
        ({"features": "embedding"}, "topk does not look at features"),
        ({"method": "k_center", "features": "fc"}, "features must be embedding, .*got 'fc'"),
        ({"method": "glister", "features": "error"}, "glister matches validation samples; pass val_view="),
        (
            {"method": "glister", "features": "embedding", "val_view": data()},
            "glister understands features='gradient' or features='error'; got 'emb",
        ),
        ({"method": "importance", "score": "margin"}, "importance needs scores of at least 0 .* of margin small ones are; use evs"),
        ({"method": "proportional", "score": "moderate"}, "of moderate small ones are"),
        (
            {"method": "glister", "features": "gradient", "val_view": data(), "options": {"classes": 1}},
            "classes must be a whole number ≥ 2",
        ),
        ({"score_source": "memory"}, "score_source must be 'pass' or 'train'; got 'memory'"),
        ({"first_select": "best"}, "first_select must be 'scores' or 'random'"),
        ({"first_select": "random", "warmup": 1}, "leave out one of them"),
        ({"score_source": "train", "score": "grand_last"}, "score 'grand_last' cannot be taken from the training forward"),
        (
            {"score_source": "train", "method": "k_center", "features": "embedding"},
            "features='embedding' cannot be taken from the training",
        ),
        ({"score": "forgetting"}, "score 'forgetting' is of a whole training; use score_source='train' and warmup=2"),
        ({"score": "misses", "score_source": "train", "warmup": 1}, "bits="),
        ({"interval": 0}, "interval must be a whole number ≥ 1; got 0"),
        ({"warmup": -1}, "warmup must be a whole number ≥ 0; got -1"),
        ({"warmup": None}, "warmup must be a whole number ≥ 0; got None"),
        ({"max_age": 0}, "max_age must be a whole number ≥ 1; got 0"),
        ({"anneal": 2, "epochs": None}, "anneal counts from the end; pass epochs="),
        ({"anneal": 3, "warmup": 3}, "leave none of 6 epochs for a selection"),
        ({"batch_size": 0}, "batch_size must be a whole number ≥ 1"),
        ({"batchsize": 10}, "neither a scoring pass nor the score takes batchsize; a pass takes batch_size"),
        ({"fraction": 0.001}, "leaves class"),
        ({"fraction": 0.001, "balanced": False}, "selects none"),
        ({"dataset": Augmented()}, "two reads of sample 0 of Augmented differ"),
        ({"student": "resnet"}, "student must be the quantized model"),
    ],
    ids=str,
)
def test_bad_input_is_refused_before_training(options, message):
    if options.get("method") in ("k_center", "glister") and options["method"] not in list_selectors():
        pytest.skip("the selector is not there")
    given = {"dataset": data(), "student": net(0), "fraction": 0.3, "epochs": 6, "interval": 2, **options}
    with pytest.raises(InputError, match=message) as error:
        ScoredSubset(**given)
    assert "\n" not in str(error.value)
