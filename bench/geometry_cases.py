"""Cases of the selectors that compare samples: k-center, herding, nearest neighbours, and their picks against plain loops in fp64.

``python -m bench.geometry_cases`` times one whole run of k-center and herding with 5000 picks against the loops.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastqat import data
from fastqat._errors import DataError
from fastqat.selection.geometry.farthest_first import farthest_first
from fastqat.selection.geometry.herding import herd
from fastqat.selection.geometry.nearest import nearest_neighbours
from fastqat.selection.scorer import score_dataset
from fastqat.selection.selecting import select
from fastqat.train.models import make_model

from .case import Case, Contender, Goal, Size, Work, needs_package, never

NEIGHBOURS = 10


@dataclass(frozen=True)
class Features:
    """Features ``[N, D]`` and how many samples to pick."""

    features: Tensor
    picks: int


def embeddings_of(size: Size, samples: int = 50_000, picks: int = 500) -> Features:
    """Like the embeddings of a network: 100 clusters in 64 dimensions, mixed into 512 with noise, then a ReLU."""
    generator = torch.Generator().manual_seed(0)
    samples, width, picks = {"full": (samples, 512, picks), "quick": (10_000, 512, 200), "small": (300, 32, 30)}[size]
    centres, mixing = torch.randn(100, 64, generator=generator), torch.randn(64, width, generator=generator) / 8
    inner = centres[torch.randint(100, (samples,), generator=generator)] + 0.5 * torch.randn(samples, 64, generator=generator)
    return Features((inner @ mixing + 0.5 * torch.randn(samples, width, generator=generator)).relu_(), picks)


def fewer_embeddings_of(size: Size) -> Features:
    """10k of them: all pairs are compared."""
    return embeddings_of(size, samples=10_000)


@dataclass(frozen=True)
class Classes:
    """Features ``[N, D]``, the class of each sample, and the share to pick of each class."""

    features: Tensor
    labels: Tensor
    fraction: float = 0.1


def classes_of(size: Size) -> Classes:
    """The classes of ImageNet, 1000 of 1300 samples each; noise in 64 dimensions."""
    classes, count = {"full": (1000, 1300), "quick": (100, 1300), "small": (5, 60)}[size]
    features = torch.randn(classes * count, 64, generator=torch.Generator().manual_seed(0))
    return Classes(features, torch.arange(classes).repeat(count))


def pictures_of(size: Size) -> Features:
    """2000 pictures of CIFAR-10 (digits where that is not on disk) as a randomly initialised ResNet-8 sees them, 200 picks."""
    count, picks = {"full": (2000, 200), "quick": (2000, 200), "small": (150, 40)}[size]
    try:
        splits = data.load("cifar10")
    except DataError:
        splits = data.load("digits")
    torch.manual_seed(0)
    model = make_model("resnet8", splits.num_classes, splits.input_shape)
    some = torch.utils.data.Subset(splits.train, range(min(count, len(splits.train))))
    features = score_dataset(model, some, ["entropy"], features="embedding", progress=False).features
    assert features is not None
    return Features(features, picks)


def _k_center(inputs: Features) -> Work:
    return Work(lambda: {"picks": farthest_first(inputs.features, inputs.picks, first=0)})


def _herding(inputs: Features) -> Work:
    return Work(lambda: {"picks": herd(inputs.features, inputs.picks)})


def _balanced(inputs: Classes) -> Work:
    def call() -> dict[str, Tensor]:
        x, labels = inputs.features, inputs.labels
        picks = select(len(x), inputs.fraction, method="k_center", features=x, labels=labels, first=0).indices
        return {"picks": picks.sort().values}

    return Work(call)


def _balanced_loop(inputs: Classes) -> Work:
    x, labels = inputs.features.numpy(), inputs.labels.numpy()

    def call() -> dict[str, Tensor]:
        picks = []
        for label in range(int(labels.max()) + 1):
            members = (labels == label).nonzero()[0]
            picks.append(members[k_center_loop(x[members].astype(np.float64), round(len(members) * inputs.fraction))])
        return {"picks": torch.from_numpy(np.sort(np.concatenate(picks)))}

    return Work(call)


def k_center_loop(x: np.ndarray, picks: int) -> np.ndarray:
    """One pass over the features for every pick, by a matrix-vector product."""
    norms = np.einsum("nd,nd->n", x, x)
    nearest, chosen = np.full(len(x), np.inf, x.dtype), [0]
    while len(chosen) < picks:
        last = chosen[-1]
        np.minimum(nearest, norms + norms[last] - 2 * (x @ x[last]), out=nearest)
        nearest[last] = -1
        chosen.append(int(nearest.argmax()))
    return np.array(chosen)


def herding_loop(x: np.ndarray, picks: int) -> np.ndarray:
    """One pass over the features for every pick, by a matrix-vector product."""
    half = np.einsum("nd,nd->n", x, x) / 2
    mean = x.mean(0, dtype=np.float64)
    wanted = mean.copy()
    chosen: list[int] = []
    for _ in range(picks):
        best = int((half - x @ wanted.astype(x.dtype)).argmin())
        half[best] = np.inf
        chosen.append(best)
        wanted += mean - x[best]
    return np.array(chosen)


def herding_deepcore(x: np.ndarray, picks: int) -> np.ndarray:
    """DeepCore's formula, with argmin: the distances themselves, anew for every pick."""
    mean, chosen = x.mean(0), []
    left = np.ones(len(x), dtype=bool)
    for turn in range(picks):
        wanted = (turn + 1) * mean - x[~left].sum(0)
        rows = left.nonzero()[0]
        chosen.append(int(rows[np.linalg.norm(wanted - x[left], axis=1).argmin()]))
        left[chosen[-1]] = False
    return np.array(chosen)


def _loop(loop, dtype: type = np.float32):
    def make(inputs: Features) -> Work:
        x = inputs.features.numpy().astype(dtype)
        return Work(lambda: {"picks": torch.from_numpy(loop(x, inputs.picks))})

    return make


def _nearest(inputs: Features) -> Work:
    return Work(lambda: dict(zip(("distances", "indices"), nearest_neighbours(inputs.features, NEIGHBOURS), strict=True)))


def _scikit(inputs: Features) -> Work:
    from sklearn.neighbors import NearestNeighbors

    def call() -> dict[str, Tensor]:
        x = inputs.features.numpy()
        distances, indices = NearestNeighbors(n_neighbors=NEIGHBOURS, algorithm="brute").fit(x).kneighbors()
        return {"distances": torch.from_numpy(distances), "indices": torch.from_numpy(indices)}

    return Work(call)


LACKING = tuple(Contender(name, _k_center, reason=never("it has neither k-center nor herding")) for name in ("submodlib", "apricot"))
ABOUT = "50k × 512 features, 500 picks"

CASES = (
    Case(
        "k_center/50k",
        f"k-center greedy, {ABOUT}",
        embeddings_of,
        Contender("fastqat", _k_center),
        (Contender("numpy loop", _loop(k_center_loop)), *LACKING),
        goals=(Goal("numpy loop", 1 / 3),),
        quick=False,
        seconds=1,
    ),
    Case(
        "herding/50k",
        f"herding, {ABOUT}",
        embeddings_of,
        Contender("fastqat", _herding),
        (Contender("numpy loop", _loop(herding_loop)), *LACKING),
        goals=(Goal("numpy loop", 1 / 3),),
        quick=False,
        seconds=1,
    ),
    Case(
        "nearest_neighbours/10k",
        "the 10 nearest neighbours of each of 10k × 512 features",
        fewer_embeddings_of,
        Contender("fastqat", _nearest),
        (Contender("scikit-learn", _scikit, reason=needs_package("sklearn")),),
        quick=False,
        seconds=8,
    ),
    Case(
        "k_center/cifar10",
        "k-center greedy, 2000 pictures as a ResNet-8 sees them, 200 picks: the same as those of a loop in fp64",
        pictures_of,
        Contender("fastqat", _k_center),
        (Contender("loop in fp64", _loop(k_center_loop, np.float64)),),
        seconds=2,
        tolerance=0,
    ),
    Case(
        "k_center/balanced",
        "k-center greedy in each of 1000 classes of 1300 × 64 features, 10 % of each: the same as those of a loop in fp64",
        classes_of,
        Contender("fastqat", _balanced),
        (Contender("loop in fp64", _balanced_loop),),
        quick=False,
        seconds=1,
        tolerance=0,
    ),
    Case(
        "herding/cifar10",
        "herding, 2000 pictures as a ResNet-8 sees them, 200 picks: the same as those of a loop in fp64",
        pictures_of,
        Contender("fastqat", _herding),
        (Contender("loop in fp64", _loop(herding_deepcore, np.float64)),),
        seconds=2,
        tolerance=0,
    ),
)


def main(picks: int = 5000, deepcore_picks: int = 50) -> None:
    """One run of each with `picks` picks, and DeepCore's formula for herding with `deepcore_picks`, whose time is linear in them."""
    x = embeddings_of("full").features
    runs = [
        ("k-center, fastqat", picks, lambda: farthest_first(x, picks, first=0)),
        ("k-center, numpy loop", picks, lambda: k_center_loop(x.numpy(), picks)),
        ("herding, fastqat", picks, lambda: herd(x, picks)),
        ("herding, numpy loop", picks, lambda: herding_loop(x.numpy(), picks)),
        ("herding, DeepCore's formula", deepcore_picks, lambda: herding_deepcore(x.numpy(), deepcore_picks)),
    ]
    for name, count, run in runs:
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        print(f"{name:30} {count} picks of {len(x)} x {x.shape[1]}: {seconds:8.2f} s, {seconds / count * 1e3:8.3f} ms per pick", flush=True)


if __name__ == "__main__":
    main()
