"""ScaleLayout and RangeStats: every granularity against a loop over what shares a scale; samples of a stream."""

import pytest
import torch
from torch import Tensor

from fastqat.quantizers.layout import ScaleLayout
from fastqat.quantizers.stats import SAMPLE, RangeStats

LAYOUTS = {
    "tensor": ScaleLayout(),
    "channel 0": ScaleLayout((4,), 0),
    "channel 1": ScaleLayout((6,), 1),
    "last channel": ScaleLayout((5,), -1),
    "group": ScaleLayout((4, 2, 5), 1, 3),
    "whole axis": ScaleLayout((4, 1, 5), 1, 6),
}


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0))


def shared(x: Tensor, layout: ScaleLayout) -> list[Tensor]:
    """The elements of each scale, one by one."""
    if layout.axis is None:
        return [x.flatten()]
    if layout.group_size is None:
        return [part.flatten() for part in x.unbind(layout.axis)]
    n = layout.group_size
    return [x[o, g * n : (g + 1) * n, k] for o in range(4) for g in range(6 // n) for k in range(5)]


@pytest.mark.parametrize("name", LAYOUTS)
def test_rows_and_statistics(x: Tensor, name: str) -> None:
    layout = LAYOUTS[name]
    parts = shared(x, layout)
    for row, part in zip(layout.rows(x), parts, strict=True):
        assert sorted(row.tolist()) == sorted(part.tolist())
    stats = RangeStats(layout)
    stats.update(x)
    for got, function in ((stats.low, torch.amin), (stats.high, torch.amax), (stats.mean_abs, lambda part: part.abs().mean())):
        assert got.shape == layout.shape
        torch.testing.assert_close(got.flatten(), torch.stack([function(part) for part in parts]))


@pytest.mark.parametrize("name", LAYOUTS)
def test_spread_gives_each_element_its_own_value(x: Tensor, name: str) -> None:
    layout = LAYOUTS[name]
    stats = RangeStats(layout)
    stats.update(x)
    low, high = layout.spread(stats.low, x), layout.spread(stats.high, x)
    assert torch.broadcast_shapes(low.shape, x.shape) == x.shape
    assert ((low <= x) & (x <= high)).all()
    spread = low.expand_as(x)
    assert all(len(set(part.tolist())) == 1 for part in shared(spread, layout)), "one value for what shares a scale"


@pytest.mark.parametrize("name", ["tensor", "channel 1", "last channel"])
def test_statistics_over_a_stream_equal_those_of_the_whole(x: Tensor, name: str) -> None:
    whole, stream = RangeStats(LAYOUTS[name]), RangeStats(LAYOUTS[name])
    whole.update(torch.cat([x, x[:2] * 3, x[:0]]))
    for part in (x, x[:2] * 3, x[:0]):
        stream.update(part)
    for field in ("low", "high", "mean_abs"):
        torch.testing.assert_close(getattr(stream, field), getattr(whole, field))


def test_a_vector() -> None:
    stats = RangeStats(ScaleLayout((2,), 0))
    stats.update(torch.tensor([1.0, -2.0]))
    assert stats.low.tolist() == [1, -2] == stats.high.tolist()


def test_a_short_stream_is_kept_whole(x: Tensor) -> None:
    stats = RangeStats(LAYOUTS["channel 1"], "stream")
    stats.update(x)
    stats.update(2 * x)
    assert torch.equal(stats.sample, torch.cat([LAYOUTS["channel 1"].rows(x), LAYOUTS["channel 1"].rows(2 * x)], 1))


@pytest.mark.parametrize(("scales", "limit"), [(1, SAMPLE), (64, 2**14), (2**14, 2**8)])
def test_a_long_stream_is_sampled_evenly_and_always_alike(scales: int, limit: int) -> None:
    layout = ScaleLayout((scales,), 1)
    samples = []
    for _ in range(2):
        stats = RangeStats(layout, "stream")
        for batch in range(5):  # the values tell the batch
            stats.update(torch.arange(batch * limit // 2, (batch + 1) * limit // 2).view(-1, 1).expand(-1, scales))
        samples.append(stats.sample)
    assert torch.equal(*samples)
    assert limit / 4 < samples[0].shape[1] <= limit and samples[0].shape[0] == scales
    batches = torch.bincount(samples[0][0].long() // (limit // 2), minlength=5)
    assert batches.min() > 0.7 * batches.max(), f"every batch has the same say: {batches.tolist()}"
    gaps = samples[0][-1].sort().values.diff()
    assert gaps.min() > 0, "no value twice"


def test_the_sample_does_not_fall_in_step_with_the_width_of_an_image() -> None:
    stats = RangeStats(ScaleLayout(), "stream")
    columns = torch.arange(32.0).expand(16, 64, 32, 32)
    stats.update(columns)
    share = torch.bincount(stats.sample[0].long(), minlength=32) / stats.sample.numel()
    assert share.min() > 0.02 and share.max() < 0.045, share.tolist()
