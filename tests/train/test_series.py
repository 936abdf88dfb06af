"""Series: the data set `watch`, the residual net for them, and validation that splits no recording."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fastqat._errors import DataError, InputError
from fastqat.data import group_split, load
from fastqat.train.config import TrainConfig
from fastqat.train.models import SERIES_MODELS, make_model
from fastqat.train.pool import prepare_data
from fastqat.train.run import train


def write_watch(root, **changes):
    """A small ``watch.npz``: seven classes, three recordings each, of waves whose pitch is the class."""
    rng, arrays = np.random.default_rng(0), {}
    for part, recordings in (("train", 3), ("test", 1)):
        y = np.repeat(np.arange(7), 8 * recordings)
        wave = np.sin(np.arange(100) * (0.1 + 0.1 * y[:, None])) + 0.2 * rng.normal(size=(len(y), 100))
        arrays |= {f"x_{part}": wave[:, None].repeat(6, 1).astype(np.float32), f"y_{part}": y}
        arrays[f"recording_{part}"] = np.arange(len(y)) // 8
    np.savez(root / "watch.npz", **{key: value for key, value in (arrays | changes).items() if value is not None})


def test_watch_is_read_with_its_recordings(tmp_path):
    write_watch(tmp_path)
    splits = load("watch", tmp_path)
    assert (len(splits.train), len(splits.test), splits.input_shape, splits.num_classes) == (168, 56, (6, 100), 7)
    assert splits.class_names[:2] == ("pendulum", "abduction") and splits.groups.unique().numel() == 21


def test_absent_watch_says_what_is_needed(tmp_path):
    with pytest.raises(DataError, match=r"watch.npz with the arrays x_train \[N, 6, 100\]"):
        load("watch", tmp_path)


def test_recordings_of_another_length_are_refused(tmp_path):
    write_watch(tmp_path, recording_train=np.arange(3))
    with pytest.raises(DataError, match="recording_train has 3 values for 168 training samples"):
        load("watch", tmp_path)


@pytest.mark.parametrize("limit", [None, 100])
def test_validation_splits_no_recording_and_has_every_class(tmp_path, limit):
    write_watch(tmp_path)
    config = TrainConfig(data="watch", data_root=tmp_path, model="resnet1d", val_fraction=0.3, limit=limit)
    data, splits = prepare_data(config, torch.device("cpu")), load("watch", tmp_path)
    groups = {str(x.tolist()): int(group) for x, group in zip(splits.train.x, splits.groups, strict=True)}
    pool, val = ({groups[str(x.tolist())] for x in part.x} for part in (data.pool, data.val))
    assert not pool & val
    assert set(data.val.y.tolist()) == set(data.pool.y.tolist()) == set(range(7))


def test_subjects_stand_in_for_recordings(tmp_path):
    subjects = np.arange(168) % 4
    write_watch(tmp_path, recording_train=None, subject_train=subjects)
    data = prepare_data(TrainConfig(data="watch", data_root=tmp_path, model="resnet1d", val_fraction=0.25), torch.device("cpu"))
    assert len(data.val) == 42 and len(data.pool) == 126


def test_groups_of_one_class_are_held_class_by_class():
    labels = torch.arange(3).repeat_interleave(40)
    groups = torch.arange(120) // 4
    rest, held = group_split(labels, groups, 0.2, seed=0)
    assert torch.equal(torch.cat([rest, held]).sort().values, torch.arange(120))
    assert labels[held].bincount().tolist() == [8, 8, 8]
    assert not set(groups[rest].tolist()) & set(groups[held].tolist())
    assert torch.equal(held, group_split(labels, groups, 0.2, seed=0)[1])
    assert not torch.equal(held, group_split(labels, groups, 0.2, seed=1)[1])


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_one_group_is_held_and_one_is_left(fraction):
    rest, held = group_split(torch.zeros(12).long(), torch.arange(12) // 4, fraction, seed=0)
    assert len(rest) >= 4 and len(held) >= 4


@pytest.mark.parametrize("shape", [(1, 8), (6, 100), (3, 33)], ids=str)
def test_the_series_net_takes_every_series(shape):
    model = make_model("resnet1d", 7, shape)
    assert model(torch.randn(2, *shape)).shape == (2, 7)


def test_models_refuse_what_they_do_not_take():
    with pytest.raises(InputError, match=r"takes series \(channels, length\) of 8 and more; the data set has \(3, 32, 32\)"):
        make_model("resnet1d", 7, (3, 32, 32))
    with pytest.raises(InputError, match=r"for series there is resnet1d"):
        make_model("resnet8", 7, (6, 100))
    assert list(SERIES_MODELS) == ["resnet1d"]


@pytest.mark.parametrize("qconfig", ["w2a32", "w4a4:channel"])
def test_a_run_on_series_learns(tmp_path, one_thread, qconfig):
    write_watch(tmp_path)
    config = TrainConfig(
        data="watch", data_root=tmp_path, model="resnet1d", val_fraction=0.3, qconfig=qconfig, select="acs", fraction=0.5, interval=2,
        float_epochs=4, float_batch_size=16, epochs=4, batch_size=16, threads=1, runs=tmp_path / "runs", report=False, progress=False,
    )  # fmt: skip
    summary = train(config, say=lambda line: None)
    assert summary["float_accuracy"] > 0.9 and summary["test_accuracy"] > 0.5
    assert train(replace(config, resume=True), say=lambda line: None) == summary
