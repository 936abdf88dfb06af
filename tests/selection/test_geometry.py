"""Neighbours, farthest-first traversal and herding against plain loops in fp64."""

import pytest
import torch

from bench.memory import peak_bytes
from fastqat._errors import InputError
from fastqat.selection.geometry import blocks, farthest_first, herding, metrics, nearest, passes, points
from fastqat.selection.geometry.screens import CodeScreen, FloatScreen

from . import geometry_oracles as oracle

METRICS = ["euclidean", "cosine", "symmetric_kl"]
SIZES = [(1, 1), (9, 2), (30, 12)]


def prepared(kind, size, width, metric, seed=0):
    x = oracle.data(kind, size, width, seed)
    if metric == "symmetric_kl":
        return x.softmax(1)
    return x + 0.5 if metric == "cosine" and bool((x == 0).all(1).any()) else x


@pytest.mark.parametrize("active", [5, 1024, None])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", oracle.KINDS)
def test_farthest_first_is_the_plain_loop(kind, metric, active, monkeypatch):
    """Followed in lists of `active` samples, and by passes."""
    if active:
        monkeypatch.setattr(passes, "MOST_BYTES", 0)
        monkeypatch.setattr(farthest_first, "_ACTIVE", active)
        monkeypatch.setattr(farthest_first, "_LEAST_ACTIVE", active)
    for size, width in SIZES:
        x = prepared(kind, size, width, metric)
        for budget in sorted({1, min(7, size), size}):
            want, radii = oracle.k_center(x, budget, metric, first=size // 2)
            got = farthest_first.farthest_first(x, budget, metric=metric, first=size // 2)
            assert got.tolist() == want
            torch.testing.assert_close(farthest_first.cover_radii(x, got, metric=metric), radii, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("metric", METRICS)
def test_farthest_first_begins_next_to_the_mean(metric):
    for seed in range(5):
        x = prepared("normal", 40, 3, metric, seed)
        assert farthest_first.farthest_first(x, 9, metric=metric).tolist() == oracle.k_center(x, 9, metric)[0]


@pytest.mark.parametrize("block_bytes", [1 << 25, 20_000])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", oracle.KINDS)
def test_nearest_neighbours_are_those_of_all_distances(kind, metric, block_bytes):
    for size, width in [(2, 3), (30, 12)]:
        x = prepared(kind, size, width, metric)
        for k in sorted({1, min(10, size - 1), size - 1}):
            distances, indices = nearest.nearest_neighbours(x, k, metric=metric, block_bytes=block_bytes)
            want, want_indices = oracle.nearest(x, k, metric)
            assert indices.tolist() == want_indices.tolist()
            torch.testing.assert_close(distances, want, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("screen", [CodeScreen, FloatScreen, None])
@pytest.mark.parametrize("kind", oracle.KINDS)
def test_herding_is_the_plain_loop(kind, screen, monkeypatch):
    if screen:
        monkeypatch.setattr(passes, "MOST_BYTES", 0)
        monkeypatch.setattr(herding, "make_screen", screen)
    for size, width in [(1, 1), (2, 3), (8, 1), (32, 4), (64, 20)]:  # powers of two: the mean of a lattice is exact
        x = oracle.data(kind, size, width)
        for budget in sorted({1, min(7, size), size}):
            assert herding.herd(x, budget).tolist() == oracle.herding(x, budget)


def test_herding_follows_the_mean_where_argmax_drives_it_away():
    x = oracle.data("normal", 512, 8)
    error = lambda picks: float((x[picks].mean(0) - x.mean(0)).norm())  # noqa: E731
    random = torch.randperm(512, generator=torch.Generator().manual_seed(0))[:32]
    largest = x.norm(dim=1).argsort(descending=True)[:32]
    assert error(herding.herd(x, 32)) < 0.1 * error(random) < error(largest)


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    from sklearn.datasets import load_digits

    return torch.tensor(load_digits().data, dtype=torch.float32)


def embedded(x):
    """What a random layer with a ReLU makes of pictures: no ties, correlated, an offset."""
    weight = torch.randn(x.shape[1], 48, generator=torch.Generator().manual_seed(1)) / 8
    return (x @ weight).relu()


@pytest.mark.parametrize("of", [lambda x: x, embedded], ids=["pixels", "embedding"])
@pytest.mark.parametrize("most", [0, passes.MOST_BYTES])
def test_picks_on_digits_are_those_of_the_plain_loops(digits, of, most, monkeypatch):
    monkeypatch.setattr(passes, "MOST_BYTES", most)
    monkeypatch.setattr(farthest_first, "_ACTIVE", 100)
    x = of(digits)
    assert farthest_first.farthest_first(x, 180).tolist() == oracle.k_center(x, 180, "euclidean")[0]
    assert herding.herd(x, 180).tolist() == oracle.herding(x, 180)


def test_neighbours_of_digits_are_those_of_scikit_learn(digits):
    from sklearn.neighbors import NearestNeighbors

    x = embedded(digits)
    want = NearestNeighbors(n_neighbors=10).fit(x.double().numpy()).kneighbors()
    distances, indices = nearest.nearest_neighbours(x, 10)
    assert torch.equal(indices, torch.tensor(want[1]))
    torch.testing.assert_close(distances, torch.tensor(want[0]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("most", [0, passes.MOST_BYTES])
def test_other_dtypes_mean_their_own_values(dtype, most, monkeypatch):
    monkeypatch.setattr(passes, "MOST_BYTES", most)
    x = oracle.data("normal", 64, 6).to(dtype)
    assert farthest_first.farthest_first(x, 20, first=0).tolist() == oracle.k_center(x, 20, "euclidean", 0)[0]
    assert herding.herd(x, 20).tolist() == oracle.herding(x, 20)
    assert nearest.nearest_neighbours(x, 5)[1].tolist() == oracle.nearest(x, 5, "euclidean")[1].tolist()


@pytest.mark.parametrize("most", [0, passes.MOST_BYTES])
def test_wide_rows_are_multiplied_in_fp64(most, monkeypatch):
    monkeypatch.setattr(passes, "MOST_BYTES", most)
    x = oracle.data("normal", 30, 3000)
    assert points.Points(x, metrics.make_metric("euclidean", x)).dtype == torch.float64
    assert farthest_first.farthest_first(x, 12, first=3).tolist() == oracle.k_center(x, 12, "euclidean", 3)[0]
    assert nearest.nearest_neighbours(x, 4)[1].tolist() == oracle.nearest(x, 4, "euclidean")[1].tolist()


@pytest.mark.parametrize("most", [0, passes.MOST_BYTES])
def test_no_matrix_of_all_pairs_is_held(most, monkeypatch):
    monkeypatch.setattr(passes, "MOST_BYTES", most)
    x = oracle.data("normal", 8000, 16)
    for call in (lambda: farthest_first.farthest_first(x, 100), lambda: nearest.nearest_neighbours(x, 5), lambda: herding.herd(x, 20)):
        assert peak_bytes(call) < 8000**2


@pytest.mark.parametrize("most", [0, passes.MOST_BYTES])
def test_strides_do_not_matter(most, monkeypatch):
    monkeypatch.setattr(passes, "MOST_BYTES", most)
    x = oracle.data("normal", 50, 12)
    for view in (x[:, ::2], x[:6].T, x[:1].expand(20, 12)):
        rows = min(20, len(view))
        assert torch.equal(farthest_first.farthest_first(view, rows), farthest_first.farthest_first(view.contiguous(), rows))
        assert torch.equal(herding.herd(view, rows), herding.herd(view.contiguous(), rows))


def test_estimates_are_within_their_bound():
    for kind in oracle.KINDS:
        x = oracle.data(kind, 20, 100)
        for metric in METRICS:
            y = x.softmax(1) if metric == "symmetric_kl" else x
            where = points.Points(y, metrics.make_metric(metric, y))
            everyone = torch.arange(20)
            products, error = where.estimates(slice(0, 20), where.side(everyone))
            exact = torch.stack([where.exact(torch.full((20,), i), everyone) for i in range(20)])
            assert bool(((products.double() + where.own[:, None] - exact).abs() <= error[:, None]).all()), (kind, metric)


def test_products_in_few_digits_are_not_used(monkeypatch):
    device = torch.device("cpu")
    assert blocks.product_dtype(device, 100, 1.0) == torch.float32
    assert blocks.product_dtype(device, 100_000, 1.0) == torch.float64
    assert blocks.product_dtype(device, 100, 1e30) == torch.float64
    full = torch.Tensor.__matmul__
    rounded = lambda a, b: full(a.bfloat16().to(a.dtype), b) if a.dtype == torch.float32 else full(a, b)  # noqa: E731
    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    assert blocks.product_dtype(device, 100, 1.0) == torch.float64


def test_codes_are_not_used_where_their_products_saturate(monkeypatch):
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: (a.int() @ b.int()).clamp(-(2**15), 2**15 - 1))
    x = oracle.data("normal", 64, 20)
    assert not CodeScreen(x, x.double().mean(0)).exact_products
    assert herding.herd(x, 20).tolist() == oracle.herding(x, 20)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: farthest_first.farthest_first(x, 5), "budget must be at most the number of samples, 4; got 5"),
        (lambda x: farthest_first.farthest_first(x, 0), "budget must be a whole number ≥ 1; got 0"),
        (lambda x: farthest_first.farthest_first(x, 2, first=4), "first must be the index of one of 4 samples; got 4"),
        (lambda x: farthest_first.farthest_first(x, 2, metric="l1"), "unknown metric 'l1'; choose one of euclidean, cosine"),
        (lambda x: farthest_first.farthest_first(x, 2, metric="cosine"), "1 rows are all zeros, the first is 2"),
        (lambda x: farthest_first.farthest_first(-x, 2, metric="symmetric_kl"), "got negative features; apply softmax"),
        (lambda x: nearest.nearest_neighbours(x, 4), "k must be less than the number of samples, 4; got 4"),
        (lambda x: herding.herd(x, 5), "budget must be at most the number of samples, 4; got 5"),
    ],
)
def test_bad_input_says_what_to_do(call, message):
    with pytest.raises(InputError, match=message):
        call(torch.tensor([[1.0, 2.0], [3.0, 1.0], [0.0, 0.0], [1.0, 1.0]]))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", ["normal", "lattice", "twice", "far away"])
def test_picks_are_the_same_on_both_sides_of_the_limit(kind, metric, monkeypatch):
    x = prepared(kind, 256, 16, metric)
    width = 32 if metric == "symmetric_kl" else 16
    ways = []
    for most in (8 * 256 * width, 8 * 256 * width - 1):
        monkeypatch.setattr(passes, "MOST_BYTES", most)
        ways.append((passes.few_enough(x, width), farthest_first.farthest_first(x, 90, metric=metric), herding.herd(x, 90)))
    (few, picks, herded), (still_few, other_picks, other_herded) = ways
    assert few and not still_few
    assert torch.equal(picks, other_picks)
    assert metric == "symmetric_kl" or torch.equal(herded, other_herded)


@pytest.mark.parametrize("most", [0, passes.MOST_BYTES])
def test_herding_of_equal_samples_compares_one_of_each_kind(most, monkeypatch):
    monkeypatch.setattr(passes, "MOST_BYTES", most)
    x = oracle.data("normal", 4, 6)[torch.arange(128) % 4]
    compared, nearest_of = [], herding._nearest
    monkeypatch.setattr(
        herding, "_nearest", lambda features, rows, wanted: compared.append(len(rows)) or nearest_of(features, rows, wanted)
    )
    assert herding.herd(x, 128).tolist() == oracle.herding(x, 128)
    assert sum(compared) < 4 * 128


@pytest.mark.parametrize("metric", METRICS)
def test_neighbours_of_equal_samples_take_one_look_at_all(metric, monkeypatch):
    x = prepared("normal", 4, 6, metric)[torch.arange(128) % 4]
    looks, exact = [], points.Points.exact
    monkeypatch.setattr(points.Points, "exact", lambda self, a, b: looks.append(len(b) == 1) or exact(self, a, b))
    assert nearest.nearest_neighbours(x, 5, metric=metric)[1].tolist() == oracle.nearest(x, 5, metric)[1].tolist()
    assert sum(looks) == 4
