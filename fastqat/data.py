"""Named data sets behind one function: ``load("digits")``, ``load("cifar10")``, ``load("npz:PATH")``, ...

Small sets become `TensorData`: raw values held as one tensor on a device, normalised batch by batch. Folders of pictures stay on
disk and go through a `torch.utils.data.DataLoader`. Nothing is downloaded: a missing file is an error that says how to get it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from fastqat._data_files import read_cifar, read_idx, read_npz
from fastqat._errors import DataError
from fastqat._tensor_data import (
    TensorData,
    channel_moments,
    fingerprint,
    group_split,
    relabelled,
    stratified_split,
    stratified_subset,
    subset,
)

__all__ = [
    "DataSplits",
    "TensorData",
    "channel_moments",
    "data_root",
    "fingerprint",
    "group_split",
    "load",
    "relabelled",
    "splits_from_arrays",
    "stratified_split",
    "stratified_subset",
    "subset",
]

FASHION_CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# Exercises of the shoulder, in the order of seglearn's labels.
WATCH_CLASSES = ("pendulum", "abduction", "elevation", "internal rotation", "external rotation", "trapezius", "row")
GROUP_KEYS = ("recording_train", "subject_train")


@dataclass(frozen=True)
class DataSplits:
    """What `load` returns: deterministic views of the training and test samples, and facts about them.

    `augmented` is the training set with random transforms, sample for sample like `train`; None for `TensorData`, whose
    augmentation (`padding` of the random crop, `flip`) is done on the device by batches. `groups` numbers the recordings that
    training samples are cut from, int64 ``[N]``, where that is known: samples of one recording may overlap, so none is split.
    """

    train: Dataset
    test: Dataset
    num_classes: int
    input_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    augmented: Dataset | None = None
    padding: int = 0
    flip: bool = False
    groups: Tensor | None = None


def data_root(root: str | Path | None = None) -> Path:
    """The folder of the data sets: `root`, else the environment's ``FASTQAT_DATA``, else ``~/.cache/fastqat/data``."""
    return Path(root or os.environ.get("FASTQAT_DATA") or "~/.cache/fastqat/data").expanduser()


def load(name: str, root: str | Path | None = None, *, image_size: int = 224) -> DataSplits:
    """Load a named data set from disk.

    Args:
        name: ``digits``, ``fashion-mnist``, ``cifar10``, ``cifar100``, ``watch``, ``imagefolder:PATH`` (``train/`` and ``val/`` or
            ``test/``, one folder per class) or ``npz:PATH`` (arrays ``x_train, y_train, x_test, y_test``; uint8 pictures as
            ``[N, H, W]`` or ``[N, H, W, C]``, floating values as ``[N, C, ...]``; ``recording_train`` or ``subject_train``
            where samples of one recording or subject must stay together when validation is held out).
        root: folder of the named sets; None: see `data_root`.
        image_size: side of the square that ``imagefolder`` pictures are cropped to.

    Raises:
        DataError: unknown name; a file is missing (says which, where and how to get it) or unreadable; the set is empty; arrays
            do not fit each other; a label of the test set does not occur in training.

    Example:
        >>> import fastqat.data
        >>> splits = fastqat.data.load("digits")
        >>> len(splits.train), len(splits.test), splits.input_shape, splits.num_classes
        (1438, 359, (1, 8, 8), 10)
    """
    kind, _, path = name.partition(":")
    if kind in _NAMED and not path:
        return _NAMED[kind](data_root(root))
    if kind in _BY_PATH and path:
        return _BY_PATH[kind](Path(path).expanduser(), image_size)
    raise DataError(f"unknown data set {name!r}; accepted: {', '.join(_NAMED)}, {', '.join(f'{kind}:PATH' for kind in _BY_PATH)}")


def splits_from_arrays(
    arrays: dict[str, np.ndarray], class_names: Sequence[str] = (), *, padding: int = 0, flip: bool = False, source: str = "the arrays"
) -> DataSplits:
    """`DataSplits` of ``x_train, y_train, x_test, y_test``; shapes as in `load`, shapes and labels checked."""
    missing = [key for key in ("x_train", "y_train", "x_test", "y_test") if key not in arrays]
    if missing:
        raise DataError(f"{source} has no array {', '.join(missing)}; it needs x_train, y_train, x_test, y_test")
    y_train, y_test = (_labels(arrays[key], key, source) for key in ("y_train", "y_test"))
    x_train, x_test = (_channels_first(arrays[key], key, source) for key in ("x_train", "x_test"))
    for part, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
        if len(x) != len(y):
            raise DataError(f"{source}: x_{part} has {len(x)} samples and y_{part} has {len(y)} labels; give one label per sample")
    if x_train.shape[1:] != x_test.shape[1:]:
        shapes = f"training samples have shape {tuple(x_train.shape[1:])} and test samples {tuple(x_test.shape[1:])}"
        raise DataError(f"{source}: {shapes} (channels first); make them the same")
    if not len(y_train) or not len(y_test):
        raise DataError(f"{source} is empty: {len(y_train)} training and {len(y_test)} test samples; both need at least one")
    num_classes = max(len(class_names), int(y_train.max()) + 1)
    highest, lowest = max(int(y_train.max()), int(y_test.max())), min(int(y_train.min()), int(y_test.min()))
    if lowest < 0 or highest >= num_classes:
        raise DataError(f"{source}: labels must lie in 0..{num_classes - 1}, the classes of the training set; got {lowest}..{highest}")
    train = TensorData(x_train, y_train)
    test = TensorData(x_test, y_test, train.mean, train.std)
    names = tuple(class_names) or tuple(str(i) for i in range(num_classes))
    groups = _groups(arrays, len(y_train), source)
    return DataSplits(train, test, num_classes, tuple(train.x.shape[1:]), names, padding=padding, flip=flip, groups=groups)


def _groups(arrays: dict[str, np.ndarray], size: int, source: str) -> Tensor | None:
    """What must not be split: recordings where they are known, else subjects, else nothing."""
    key = next((key for key in GROUP_KEYS if key in arrays), None)
    if key is None:
        return None
    groups = _labels(arrays[key], key, source)
    if len(groups) != size:
        raise DataError(f"{source}: {key} has {len(groups)} values for {size} training samples; give one per sample, or leave it out")
    return groups


def _labels(array: np.ndarray, key: str, source: str) -> Tensor:
    if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
        raise DataError(f"{source}: {key} must hold one integer per sample; got {array.dtype} of shape {array.shape}")
    return torch.from_numpy(array.astype(np.int64))


def _channels_first(array: np.ndarray, key: str, source: str) -> Tensor:
    """uint8 ``[N, H, W]`` or ``[N, H, W, C]`` → ``[N, C, H, W]``; everything else is ``[N, C, ...]`` already."""
    if array.ndim < 2 or array.dtype.kind not in "buif":
        raise DataError(f"{source}: {key} must hold one sample of numbers per row, [N, ...]; got {array.dtype} of shape {array.shape}")
    if array.dtype == np.uint8 and array.ndim == 3:
        array = array[:, None]
    elif array.dtype == np.uint8 and array.ndim == 4 and array.shape[-1] in (1, 3, 4):
        array = array.transpose(0, 3, 1, 2)
    array = array[:, :, None] if array.ndim == 2 else array
    return torch.from_numpy(np.array(array, dtype=np.uint8 if array.dtype == np.uint8 else np.float32, order="C"))


def _missing(name: str, root: Path, files: str, fetch: str) -> DataError:
    return DataError(
        f'{name} is not in {root}: expected {files}. Get it with: python -c "import torchvision; torchvision.datasets.{fetch}'
        f"('{root}', download=True)\", or point --data-root or FASTQAT_DATA to the folder that has it"
    )


def _digits(root: Path) -> DataSplits:
    """scikit-learn's 1797 digits of 8×8; a fifth of each class is the test set (fixed split)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(f"digits comes with scikit-learn, which does not import ({error}); pip install scikit-learn") from error
    digits = load_digits()
    x, y = (digits.images * 15).astype(np.uint8), digits.target.astype(np.int64)
    train, test = (part.numpy() for part in stratified_split(torch.from_numpy(y), 0.2, seed=0))
    return splits_from_arrays({"x_train": x[train], "y_train": y[train], "x_test": x[test], "y_test": y[test]}, padding=1, source="digits")


def _fashion_mnist(root: Path) -> DataSplits:
    """The idx files of torchvision's ``FashionMNIST/raw``, plain or gzipped, read without torchvision."""
    raw = root / "FashionMNIST" / "raw"
    files = {"x_train": "train-images-idx3", "y_train": "train-labels-idx1", "x_test": "t10k-images-idx3", "y_test": "t10k-labels-idx1"}
    arrays = {}
    for key, stem in files.items():
        found = [path for path in (raw / f"{stem}-ubyte", raw / f"{stem}-ubyte.gz") if path.is_file()]
        if not found:
            raise _missing("fashion-mnist", root, f"FashionMNIST/raw/{stem}-ubyte (or .gz) and its three companions", "FashionMNIST")
        arrays[key] = read_idx(found[0])
    return splits_from_arrays(arrays, FASHION_CLASSES, padding=2, flip=True, source="fashion-mnist")


def _cifar(root: Path, name: str, folder: str, train: Sequence[str], test: str, label_key: str, names: Sequence[str]) -> DataSplits:
    """``<name>.npz`` where it exists, else torchvision's folder of python files."""
    if (root / f"{name}.npz").is_file():
        return splits_from_arrays(read_npz(root / f"{name}.npz"), names, padding=4, flip=True, source=str(root / f"{name}.npz"))
    paths = [root / folder / part for part in (*train, test)]
    absent = [path for path in paths if not path.is_file()]
    if absent:
        raise _missing(name, root, f"{absent[0].relative_to(root)} (torchvision's layout) or {name}.npz", name.upper())
    x_train, y_train = read_cifar(paths[:-1], label_key)
    x_test, y_test = read_cifar(paths[-1:], label_key)
    arrays = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    return splits_from_arrays(arrays, names, padding=4, flip=True, source=str(root / folder))


def _cifar10(root: Path) -> DataSplits:
    train = [f"data_batch_{i}" for i in range(1, 6)]
    return _cifar(root, "cifar10", "cifar-10-batches-py", train, "test_batch", "labels", CIFAR10_CLASSES)


def _cifar100(root: Path) -> DataSplits:
    return _cifar(root, "cifar100", "cifar-100-python", ["train"], "test", "fine_labels", [])


def _watch(root: Path) -> DataSplits:
    """``watch.npz``: windows ``[N, 6, 100]`` of a watch's accelerometer and gyroscope (seglearn's data); test subjects of their own."""
    path = root / "watch.npz"
    if not path.is_file():
        arrays = "x_train [N, 6, 100], y_train, recording_train, x_test, y_test"
        raise DataError(
            f"watch is not in {root}: expected watch.npz with the arrays {arrays}, windows cut from seglearn.datasets.load_watch() "
            "with other subjects in test; put it there, or point --data-root or FASTQAT_DATA to the folder that has it"
        )
    return splits_from_arrays(read_npz(path), WATCH_CLASSES, source=str(path))


def _npz(path: Path, image_size: int) -> DataSplits:
    if not path.is_file():
        raise DataError(f"there is no file {path}; npz:PATH needs a .npz with arrays x_train, y_train, x_test, y_test")
    return splits_from_arrays(read_npz(path), source=str(path))


def _imagefolder(path: Path, image_size: int) -> DataSplits:
    """A tree of class folders, decoded and transformed by torchvision; ImageNet's usual mean and standard deviation."""
    held = next((path / part for part in ("val", "test") if (path / part).is_dir()), None)
    if held is None or not (path / "train").is_dir():
        raise DataError(f"imagefolder:{path} needs the folders train/ and val/ (or test/), each with one folder of pictures per class")
    try:
        from torchvision import datasets, transforms
    except (ImportError, RuntimeError) as error:  # a torchvision beside the wrong torch fails with RuntimeError
        raise DataError(f"imagefolder needs torchvision, which does not import ({error}); install the one that fits your torch") from error
    normalise = [transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    plain = transforms.Compose([transforms.Resize(image_size * 8 // 7), transforms.CenterCrop(image_size), *normalise])
    random = transforms.Compose([transforms.RandomResizedCrop(image_size), transforms.RandomHorizontalFlip(), *normalise])
    try:
        train, augmented = (datasets.ImageFolder(path / "train", transform) for transform in (plain, random))
        test = datasets.ImageFolder(held, plain)
    except FileNotFoundError as error:
        raise DataError(f"{path} has a class folder without pictures, or no class folder: {error}") from error
    if test.classes != train.classes:
        raise DataError(f"{path}: train/ has classes {train.classes} and {held.name}/ has {test.classes}; they must be the same folders")
    return DataSplits(train, test, len(train.classes), (3, image_size, image_size), tuple(train.classes), augmented)


_NAMED: dict[str, Callable[[Path], DataSplits]] = {
    "digits": _digits,
    "fashion-mnist": _fashion_mnist,
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "watch": _watch,
}
_BY_PATH: dict[str, Callable[[Path, int], DataSplits]] = {"imagefolder": _imagefolder, "npz": _npz}
