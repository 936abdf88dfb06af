"""Cases of facility location, graph cut, CRAIG and GradMatch, against the formulas in numpy and other packages.

``python -m bench.submodular_cases`` times one whole run of each with 5000 picks of 50k × 512 features, and all contenders at 10k.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastqat.selection.geometry.facility import facility_location
from fastqat.selection.geometry.graph_cut import graph_cut
from fastqat.selection.geometry.matching_pursuit import matching_pursuit

from .case import Case, Contender, Goal, Size, Work, needs_package
from .geometry_cases import Features, embeddings_of, pictures_of
from .memory import held_bytes, peak_bytes

RIDGE, REDUNDANCY = 0.5, 0.4


def some_embeddings(size: Size) -> Features:
    """5k embeddings and 500 picks, 2k and 200 quick: all pairs fit into memory."""
    whole = embeddings_of(size, samples=5000)
    count, picks = {"full": (5000, 500), "quick": (2000, 200), "small": (300, 30)}[size]
    return Features(whole.features[:count], picks)


def pictures_to_fit(size: Size) -> Features:
    """Pictures as a network sees them; few enough for the plain loops."""
    return pictures_of(size)


def similarities(x: np.ndarray) -> np.ndarray:
    """max d − d of all pairs, as DeepCore's CRAIG."""
    norms = np.einsum("nd,nd->n", x, x)
    distances = np.sqrt(np.maximum(norms[:, None] + norms - 2 * (x @ x.T), 0))
    return distances.max() - distances


def cosines(x: np.ndarray) -> np.ndarray:
    """Cosine similarities of all pairs."""
    unit = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30)
    return unit @ unit.T


def facility_numpy(x: np.ndarray, picks: int) -> np.ndarray:
    """All pairs in memory, gains of the formula, lazily as in DeepCore's default."""
    s = similarities(x)
    best = np.zeros(len(x), x.dtype)
    bounds, fresh, chosen = s.sum(0), np.zeros(len(x), bool), []
    while len(chosen) < picks:
        top = int(bounds.argmax())
        if not fresh[top]:
            bounds[top] = np.maximum(0, s[top] - best).sum()
            fresh[top] = True
            continue
        chosen.append(top)
        best = np.maximum(best, s[top])
        bounds[top], fresh[:] = -np.inf, False
    return np.array(chosen)


def facility_loop(x: np.ndarray, picks: int) -> np.ndarray:
    """The definition: distances from differences, all gains for every pick. Two samples that have only each other gain exactly the same,
    so that the rule for equals, the lowest index, must bear rounding."""
    rows = torch.from_numpy(x)
    costs = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").numpy()
    serving, left, chosen = np.full(len(x), costs.max()), np.ones(len(x), bool), []
    while len(chosen) < picks:
        gains = np.where(left, np.maximum(0, serving - costs).sum(1), -np.inf)
        chosen.append(int((gains >= gains.max() * (1 - 1e-10)).argmax()))
        left[chosen[-1]] = False
        serving = np.minimum(serving, costs[chosen[-1]])
    return np.array(chosen)


def graph_cut_numpy(x: np.ndarray, picks: int) -> np.ndarray:
    """All pairs in memory, the sums over the picks anew for every pick, as in DeepCore."""
    s = cosines(x)
    total, left, chosen = s.sum(0), np.ones(len(x), bool), []
    while len(chosen) < picks:
        gains = total - 2 * REDUNDANCY * s[chosen].sum(0) - REDUNDANCY * s.diagonal()
        gains[~left] = -np.inf
        chosen.append(int(gains.argmax()))
        left[chosen[-1]] = False
    return np.array(chosen)


def gradmatch_numpy(x: np.ndarray, picks: int) -> np.ndarray:
    """The formula: all products, then the least squares of all picks anew (DeepCore), with w ≥ 0 at every step as in the paper."""
    from scipy.optimize import nnls

    target = x.mean(0, dtype=np.float64)
    residual, left, chosen = target, np.ones(len(x), bool), []
    while len(chosen) < picks:
        products = np.where(left, x @ residual.astype(x.dtype), -np.inf)
        chosen.append(int(products.argmax()))
        left[chosen[-1]] = False
        rows = x[chosen].astype(np.float64)
        weights = nnls(np.concatenate([rows.T, RIDGE**0.5 * np.eye(len(rows))]), np.concatenate([target, np.zeros(len(rows))]))[0]
        residual = target - rows.T @ weights
    return np.array(chosen)


def facility_submodlib(x: np.ndarray, picks: int) -> np.ndarray:
    """submodlib's lazy greedy on the same similarities."""
    from submodlib import FacilityLocationFunction

    function = FacilityLocationFunction(n=len(x), mode="dense", sijs=similarities(x), separate_rep=False)
    return np.array([pick for pick, _ in function.maximize(budget=picks, optimizer="LazyGreedy")])


def graph_cut_submodlib(x: np.ndarray, picks: int) -> np.ndarray:
    """submodlib's lazy greedy on the same similarities."""
    from submodlib import GraphCutFunction

    function = GraphCutFunction(n=len(x), mode="dense", lambdaVal=REDUNDANCY, ggsijs=cosines(x))
    return np.array([pick for pick, _ in function.maximize(budget=picks, optimizer="LazyGreedy")])


def facility_apricot(x: np.ndarray, picks: int) -> np.ndarray:
    """apricot's lazy greedy on the same similarities."""
    from apricot import FacilityLocationSelection

    return FacilityLocationSelection(picks, metric="precomputed", optimizer="lazy").fit(similarities(x)).ranking


def ours_facility(x: Tensor, picks: int) -> Tensor:
    """facility_location with its defaults."""
    return facility_location(x, picks)[0]


def ours_graph_cut(x: Tensor, picks: int) -> Tensor:
    """graph_cut at the redundancy of the case."""
    return graph_cut(x, picks, redundancy=REDUNDANCY)


def ours_gradmatch(x: Tensor, picks: int) -> Tensor:
    """matching_pursuit towards the mean."""
    return matching_pursuit(x, x.mean(0, dtype=torch.float64), picks, ridge=RIDGE)[0]


def _ours(pick: Callable[[Tensor, int], Tensor]) -> Contender:
    return Contender("fastqat", lambda inputs: Work(lambda: {"picks": pick(inputs.features, inputs.picks)}))


def _theirs(name: str, pick: Callable[[np.ndarray, int], np.ndarray], package: str | None = None, dtype: type = np.float32) -> Contender:
    def make(inputs: Features) -> Work:
        x = inputs.features.numpy().astype(dtype)
        return Work(lambda: {"picks": torch.from_numpy(np.asarray(pick(x, inputs.picks))).long()})

    # picks within a rounding of each other may come in another order: only the loops in fp64 must agree
    agrees = None if dtype is np.float64 else ()
    return Contender(name, make, reason=(lambda: None) if package is None else needs_package(package), agrees=agrees)


SIZE = "5k × 512 features, 500 picks (2k, 200 picks quick)"
PICTURES = "2000 pictures as a ResNet-8 sees them, 200 picks: the same as those of a loop in fp64"


def _pictures_case(name: str, about: str, ours: Any, loop: Any) -> Case:
    """The same picks as those of a loop in fp64, on pictures."""
    return Case(
        f"{name}/cifar10",
        f"{about}, {PICTURES}",
        pictures_to_fit,
        _ours(ours),
        (_theirs("loop in fp64", loop, dtype=np.float64),),
        seconds=2,
        tolerance=0,
    )


CASES = (
    Case(
        "facility_location/5k",
        f"facility location, {SIZE}",
        some_embeddings,
        _ours(ours_facility),
        (
            _theirs("numpy, lazy", facility_numpy),
            _theirs("submodlib", facility_submodlib, "submodlib"),
            _theirs("apricot", facility_apricot, "apricot"),
        ),
        goals=(Goal("numpy, lazy", 1.0), Goal("submodlib", 1.0), Goal("apricot", 1.0)),
    ),
    Case(
        "graph_cut/5k",
        f"graph cut, λ = {REDUNDANCY}, {SIZE}",
        some_embeddings,
        _ours(ours_graph_cut),
        (_theirs("numpy", graph_cut_numpy), _theirs("submodlib", graph_cut_submodlib, "submodlib")),
        goals=(Goal("numpy", 1.0), Goal("submodlib", 1.0)),
    ),
    Case(
        "gradmatch/2k",
        "orthogonal matching pursuit, 2k × 512 features, 200 picks",
        lambda size: Features(some_embeddings("quick").features, 200) if size != "small" else some_embeddings(size),
        _ours(ours_gradmatch),
        (_theirs("numpy", gradmatch_numpy),),
        goals=(Goal("numpy", 1 / 5),),
    ),
    _pictures_case("facility_location", "facility location (CRAIG)", ours_facility, facility_loop),
    _pictures_case("graph_cut", "graph cut", ours_graph_cut, graph_cut_numpy),
    _pictures_case("gradmatch", "orthogonal matching pursuit", ours_gradmatch, gradmatch_numpy),
)


def main(samples: int = 50_000, picks: int = 5000, fewer: int = 10_000, fewer_picks: int = 1000) -> None:
    """One run of each of ours at `samples`, where all pairs are 10 GB and the others cannot run, then of all contenders at `fewer`."""
    x = embeddings_of("full", samples).features
    for name, pick in (("facility location", ours_facility), ("graph cut", ours_graph_cut), ("GradMatch", ours_gradmatch)):
        _report(f"{name}, fastqat", x, picks, lambda pick=pick: pick(x, picks), memory=samples <= 10_000)
    x = embeddings_of("full", fewer).features
    rows = x.numpy()
    for name, run in (
        ("facility location, fastqat", lambda: ours_facility(x, fewer_picks)),
        ("facility location, numpy, lazy", lambda: facility_numpy(rows, fewer_picks)),
        ("facility location, submodlib", lambda: facility_submodlib(rows, fewer_picks)),
        ("facility location, apricot", lambda: facility_apricot(rows, fewer_picks)),
        ("graph cut, fastqat", lambda: ours_graph_cut(x, fewer_picks)),
        ("graph cut, numpy", lambda: graph_cut_numpy(rows, fewer_picks)),
        ("graph cut, submodlib", lambda: graph_cut_submodlib(rows, fewer_picks)),
    ):
        _report(name, x, fewer_picks, run)


def _report(name: str, x: Tensor, picks: int, run: Callable[[], object], *, memory: bool = False) -> None:
    start = time.perf_counter()
    try:
        run()
    except ImportError as error:
        print(f"{name:32} {error}", flush=True)
        return
    seconds = time.perf_counter() - start
    peak = f", peak {peak_bytes(run, held_bytes([x])) / 2**20:.0f} MiB" if memory else ""
    print(f"{name:32} {picks} picks of {len(x)} x {x.shape[1]}: {seconds:8.2f} s{peak}", flush=True)


if __name__ == "__main__":
    main()
