"""Small policies and the plain loop around them, for the tests of `ScoredSubset`."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fastqat.methods import ACS
from fastqat.selection import IndexedDataset, ScoredSubset, list_selectors

N, CLASSES = 120, 3
OPTIONS = {
    "infobatch": {"fraction": 0.8, "score": "loss"},
    "stratified": {"options": {"strata": 10, "beta": 0.1}},
    "importance": {"options": {"mix": 0.2}},
    "glister": {"features": "error"},
}


def data():
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, CLASSES, (N,), generator=generator)
    return TensorDataset(torch.randn(N, 6, generator=generator) + F.one_hot(y, 6), y)


def net(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.3), nn.Linear(12, CLASSES))


def make(student, kind=ScoredSubset, **options):
    return kind(
        data(), student, options.pop("teacher", None), **{"fraction": 0.3, "epochs": 6, "interval": 2, "progress": False, **options}
    )


def needs_of(method):
    """What a policy with the selector `method` must be given."""
    needs = list_selectors()[method].needs
    given = {"features": "embedding"} if "features" in needs else {}
    return {**given, **({"val_view": data()} if "val_features" in needs else {}), "method": method, **OPTIONS.get(method, {})}


def train(policy, student, epochs, teacher=None, log=None):
    """A plain loop as a user writes it: weights, observation, and a log of what each epoch trained on."""
    log = [] if log is None else log
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    dataset = IndexedDataset(data())
    for epoch in epochs:
        changed = policy.begin_epoch(epoch)
        torch.manual_seed(1000 + epoch)  # dropout
        student.train()
        for x, y, index in DataLoader(dataset, 32, sampler=policy.sampler):
            logits = student(x)
            optimizer.zero_grad()
            (F.cross_entropy(logits, y, reduction="none") * policy.sampler.loss_weights(index)).mean().backward()
            optimizer.step()
            taught = None
            if policy.observes_teacher:
                with torch.no_grad():
                    taught = teacher.eval()(x)
            policy.observe(index, logits, y, taught)
        policy.end_epoch()
        weights = policy.selection.weights
        log.append((changed, policy.selection.indices.tolist(), None if weights is None else weights.tolist(), list(policy.sampler)))
    return log


SOURCES = {
    "observed": {"score_source": "train"},
    "observed, of any age, from the start": {"score_source": "train", "max_age": None, "warmup": 1, "interval": 1},
    "infobatch": {
        "score_source": "train",
        "max_age": None,
        "warmup": 1,
        "anneal": 1,
        "interval": 1,
        "fraction": 0.8,
        "method": "infobatch",
    },
    "recorded": {"score": "forgetting", "score_source": "train", "warmup": 2},
    "recorded, with features": {
        "score": "aum",
        "score_source": "train",
        "warmup": 1,
        "interval": 3,
        "method": "k_center",
        "features": "embedding",
    },
    "random first": {"first_select": "random", "balanced": False, "method": "pmf", "score": "correct"},
    "static after a warm-up": {"interval": None, "warmup": 3, "method": "stratified"},
    "against the teacher": {"score": "ds", "score_source": "train", "batch_size": 50},
    "acs": {"kind": ACS, "score_source": "train", "interval": 1, "batch_size": 50},
}
SOURCES = {
    name: options
    for name, options in SOURCES.items()
    if options.get("method", "topk") in list_selectors() and options.get("score") != "correct"
}


def check_resume(start, stops, tmp_path, teacher=None):
    student, policy = start()
    whole = train(policy, student, range(6), teacher)
    policy.finish()
    for stop in stops:
        first, broken = start()
        log = train(broken, first, range(stop), teacher)
        torch.save({"model": first.state_dict(), "policy": broken.state_dict()}, tmp_path / "state.pt")
        second, resumed = start()
        state = torch.load(tmp_path / "state.pt", weights_only=True)
        second.load_state_dict(state["model"])
        resumed.load_state_dict(state["policy"])
        train(resumed, second, range(stop, 6), teacher, log)
        resumed.finish()
        assert log == whole and resumed.scoring_forwards == policy.scoring_forwards
        assert all(torch.equal(value, second.state_dict()[name]) for name, value in student.state_dict().items())
