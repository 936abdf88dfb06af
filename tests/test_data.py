"""Named data sets: layouts, splits, normalisation, and what is said when something is missing or wrong."""

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from fastqat import data
from fastqat._errors import DataError
from fastqat.data import TensorData, load, splits_from_arrays

RNG = np.random.default_rng(0)


def pictures(n: int, *shape: int) -> np.ndarray:
    return RNG.integers(0, 256, (n, *shape), dtype=np.uint8)


def labels(n: int, classes: int) -> np.ndarray:
    return np.arange(n, dtype=np.int64) % classes


def write_idx(path: Path, array: np.ndarray, compressed: bool) -> None:
    content = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    if compressed:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
    else:
        path.write_bytes(content)


def write_fashion(root: Path, compressed: bool = False) -> np.ndarray:
    x = pictures(20, 28, 28)
    for part, n in (("train", 20), ("t10k", 10)):
        write_idx(root / f"FashionMNIST/raw/{part}-images-idx3-ubyte", x[:n], compressed)
        write_idx(root / f"FashionMNIST/raw/{part}-labels-idx1-ubyte", labels(n, 10).astype(np.uint8), compressed)
    return x


def test_digits_is_split_by_class():
    splits = load("digits")
    assert (len(splits.train), len(splits.test), splits.input_shape, splits.num_classes) == (1438, 359, (1, 8, 8), 10)
    share = torch.bincount(splits.test.y) / (torch.bincount(splits.test.y) + torch.bincount(splits.train.y))
    assert (share - 0.2).abs().max() < 0.005


@pytest.mark.parametrize("compressed", [False, True])
def test_fashion_mnist_reads_idx_files(tmp_path, compressed):
    x = write_fashion(tmp_path, compressed)
    splits = load("fashion-mnist", tmp_path)
    assert np.array_equal(splits.train.x[:, 0].numpy(), x)
    assert splits.train.y.tolist() == labels(20, 10).tolist()
    assert splits.class_names[0] == "t-shirt" and splits.flip and splits.padding == 2


def test_truncated_idx_file_is_named(tmp_path):
    write_fashion(tmp_path)
    path = tmp_path / "FashionMNIST/raw/train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="train-images-idx3-ubyte is not a whole IDX file"):
        load("fashion-mnist", tmp_path)


def write_cifar_batch(path: Path, x: np.ndarray, y: np.ndarray, key: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
    path.write_bytes(pickle.dumps({"data": rows, key: y.tolist()}, protocol=2))


def test_cifar10_python_files_and_npz_agree(tmp_path):
    x, y = pictures(50, 32, 32, 3), labels(50, 10)
    for i in range(5):
        write_cifar_batch(tmp_path / f"a/cifar-10-batches-py/data_batch_{i + 1}", x[10 * i : 10 * i + 10], y[:10], "labels")
    write_cifar_batch(tmp_path / "a/cifar-10-batches-py/test_batch", x[:10], y[:10], "labels")
    (tmp_path / "b").mkdir()
    np.savez(tmp_path / "b/cifar10.npz", x_train=x, y_train=y, x_test=x[:10], y_test=y[:10])
    from_python, from_npz = load("cifar10", tmp_path / "a"), load("cifar10", tmp_path / "b")
    assert torch.equal(from_python.train.x, from_npz.train.x) and torch.equal(from_python.test.y, from_npz.test.y)
    assert np.array_equal(from_npz.train.x.permute(0, 2, 3, 1).numpy(), x)
    assert data.fingerprint(from_python.train) == data.fingerprint(from_npz.train) != data.fingerprint(from_npz.test)


def test_cifar100_reads_fine_labels(tmp_path):
    for part in ("train", "test"):
        write_cifar_batch(tmp_path / "cifar-100-python" / part, pictures(100, 32, 32, 3), labels(100, 100), "fine_labels")
    assert load("cifar100", tmp_path).num_classes == 100


class _RunsCode:
    def __reduce__(self):
        return print, ("code in a data file",)


def test_cifar_files_cannot_run_code(tmp_path, capsys):
    write_cifar_batch(tmp_path / "cifar-100-python/test", pictures(4, 32, 32, 3), labels(4, 2), "fine_labels")
    (tmp_path / "cifar-100-python/train").write_bytes(pickle.dumps(_RunsCode()))
    with pytest.raises(DataError, match="is not a whole CIFAR file"):
        load("cifar100", tmp_path)
    assert "code in a data file" not in capsys.readouterr().out


@pytest.mark.parametrize("shape", [(6, 100), (7,)])
def test_npz_of_floats_keeps_channels_first(tmp_path, shape):
    x, y = RNG.normal(size=(12, *shape)).astype(np.float32), labels(12, 3)
    np.savez(tmp_path / "w.npz", x_train=x, y_train=y, x_test=x, y_test=y, subject_train=y)
    splits = load(f"npz:{tmp_path / 'w.npz'}")
    assert splits.train.x.shape[:2] == (12, shape[0])
    batch = next(splits.train.batches(12))[0]
    assert batch.mean().abs() < 1e-6 and (batch.transpose(0, 1).flatten(1).std(1, correction=0) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10", "cifar100"])
def test_missing_data_says_where_and_how(tmp_path, name):
    with pytest.raises(DataError) as raised:
        load(name, tmp_path)
    message = str(raised.value)
    assert str(tmp_path) in message and "torchvision.datasets" in message and "FASTQAT_DATA" in message and "\n" not in message


def test_data_root_comes_from_the_environment(tmp_path, monkeypatch):
    write_fashion(tmp_path)
    monkeypatch.setenv("FASTQAT_DATA", str(tmp_path))
    assert len(load("fashion-mnist").train) == 20


@pytest.mark.parametrize("name", ["nothing", "digits:x", "npz", "imagefolder:"])
def test_unknown_name_lists_what_is_known(name):
    with pytest.raises(DataError, match="accepted: digits, fashion-mnist"):
        load(name)


def arrays(**changes: np.ndarray) -> dict[str, np.ndarray]:
    x, y = pictures(6, 8, 8), labels(6, 3)
    return {"x_train": x, "y_train": y, "x_test": x, "y_test": y} | changes


BAD_ARRAYS = {
    "empty": (arrays(x_train=pictures(0, 8, 8), y_train=labels(0, 3)), "is empty"),
    "negative label": (arrays(y_train=np.array([0, 1, -1, 0, 1, 2])), "labels must lie in 0..2"),
    "label unknown in training": (arrays(y_test=np.array([0, 1, 2, 3, 0, 1])), "labels must lie in 0..2"),
    "float labels": (arrays(y_train=np.zeros(6)), "one integer per sample"),
    "lengths differ": (arrays(y_train=labels(5, 3)), "x_train has 6 samples and y_train has 5 labels"),
    "test lengths differ": (arrays(y_test=labels(5, 3)), "x_test has 6 samples and y_test has 5 labels"),
    "other size": (arrays(x_test=pictures(6, 9, 8)), r"training samples have shape \(1, 8, 8\) and test samples \(1, 9, 8\)"),
    "other channels": (arrays(x_test=pictures(6, 8, 8, 3)), r"have shape \(1, 8, 8\) and test samples \(3, 8, 8\)"),
    "scalar": (arrays(x_train=np.array(3.0)), r"x_train must hold one sample of numbers per row, .* float64 of shape \(\)"),
    "scalar label": (arrays(y_test=np.array(3)), "y_test must hold one integer per sample"),
    "one value per sample": (arrays(x_test=np.zeros(6)), "x_test must hold one sample"),
    "text": (arrays(x_train=np.full((6, 2), "a")), "x_train must hold one sample of numbers"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays(case):
    values, message = BAD_ARRAYS[case]
    with pytest.raises(DataError, match=message):
        splits_from_arrays(values)


def test_npz_without_an_array_or_damaged(tmp_path):
    path = tmp_path / "x.npz"
    with pytest.raises(DataError, match="there is no file"):
        load(f"npz:{path}")
    np.savez(path, x_train=pictures(3, 8, 8))
    with pytest.raises(DataError, match="has no array y_train, x_test, y_test"):
        load(f"npz:{path}")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match="cannot be read as .npz"):
        load(f"npz:{path}")


def flip_bits(path: Path, at: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 0x55
    path.write_bytes(content)


def test_flipped_bits_in_compressed_files_are_one_line(tmp_path):
    packed = tmp_path / "FashionMNIST/raw/train-images-idx3-ubyte.gz"
    told: list[str] = []
    for at in np.linspace(0.02, 0.98, 25):
        np.savez_compressed(tmp_path / "x.npz", **arrays())
        write_fashion(tmp_path, compressed=True)
        for path, name in ((tmp_path / "x.npz", f"npz:{tmp_path / 'x.npz'}"), (packed, "fashion-mnist")):
            flip_bits(path, at)
            try:
                load(name, tmp_path)  # a date in a header may change without harm
            except DataError as error:
                told.append(str(error))
    assert len(told) > 40 and all(str(packed) in line or "x.npz" in line for line in told)


def test_stratified_subset_has_the_size_and_the_shares():
    y = torch.cat([torch.zeros(100), torch.ones(50), torch.full((7,), 2)]).long()
    for size in (1, 2, 10, 30, 156, 157, 999):
        chosen = data.stratified_subset(y, size, seed=0)
        assert len(chosen) == min(size, 157) and torch.equal(chosen, chosen.unique())
        assert (torch.bincount(y[chosen], minlength=3) - torch.bincount(y) * min(size, 157) / 157).abs().max() < 1
    assert torch.equal(data.stratified_subset(y, 30, seed=0), data.stratified_subset(y, 30, seed=0))
    assert not torch.equal(data.stratified_subset(y, 30, seed=0), data.stratified_subset(y, 30, seed=1))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 6, 5)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_normalisation_is_exact_and_the_same_everywhere(shape, dtype):
    x = torch.from_numpy(pictures(10, *shape)).to(dtype)
    set_ = TensorData(x, torch.arange(10))
    expected = (x.float() - set_.mean.view(1, -1, 1, 1)) / set_.std.view(1, -1, 1, 1)
    assert torch.equal(torch.cat([b for b, _ in set_.batches(4)]), expected)
    assert torch.equal(torch.stack([set_[i][0] for i in range(10)]), expected)
    order = torch.tensor([7, 2, 2])
    (batch, y), *_ = set_.batches(5, order)
    assert torch.equal(batch, expected[order]) and y.tolist() == [7, 2, 2]
    assert torch.equal(next(set_.subset(order).batches(3))[0], expected[order])


def test_moments_of_pictures_are_exact():
    x = torch.from_numpy(pictures(50, 3, 9, 9))
    mean, std = data.channel_moments(x)
    assert torch.equal(mean, x.double().mean((0, 2, 3)).float())
    assert torch.allclose(std, x.double().transpose(0, 1).flatten(1).std(1, correction=0).float(), rtol=1e-6)


def test_stratified_split_is_fixed_by_the_seed():
    y = torch.arange(103) % 4
    rest, held = data.stratified_split(y, 0.25, seed=1)
    assert sorted(torch.cat([rest, held]).tolist()) == list(range(103))
    assert torch.bincount(y[held]).tolist() == [round(0.25 * n) for n in torch.bincount(y).tolist()]
    assert torch.equal(held, data.stratified_split(y, 0.25, seed=1)[1])
    assert not torch.equal(held, data.stratified_split(y, 0.25, seed=2)[1])


def test_imagefolder_needs_two_folders(tmp_path):
    with pytest.raises(DataError, match=r"needs the folders train/ and val/"):
        load(f"imagefolder:{tmp_path}")


def make_folder(root: Path, classes: int = 2, each: int = 6) -> None:
    image = pytest.importorskip("PIL.Image")
    for part in ("train", "val"):
        for c in range(classes):
            folder = root / part / f"class{c}"
            folder.mkdir(parents=True)
            for i in range(each):
                image.fromarray(pictures(1, 40, 36, 3)[0]).save(folder / f"{i}.png")


def test_imagefolder_views(tmp_path):
    pytest.importorskip("torchvision")
    make_folder(tmp_path)
    splits = load(f"imagefolder:{tmp_path}", image_size=16)
    assert splits.input_shape == (3, 16, 16) and splits.class_names == ("class0", "class1")
    assert splits.train[0][0].shape == (3, 16, 16) and torch.equal(splits.train[3][0], splits.train[3][0])
    assert not torch.equal(splits.augmented[3][0], splits.augmented[3][0])
    (tmp_path / "val" / "class1").rename(tmp_path / "val" / "other")
    with pytest.raises(DataError, match="must be the same folders"):
        load(f"imagefolder:{tmp_path}")


def test_imagefolder_without_torchvision_says_so(tmp_path, monkeypatch):
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
    monkeypatch.setitem(__import__("sys").modules, "torchvision", None)
    with pytest.raises(DataError, match="imagefolder needs torchvision"):
        load(f"imagefolder:{tmp_path}")
