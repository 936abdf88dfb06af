"""A folder in COCO's layout: ``annotations/instances_<split>.json`` and the pictures in ``<split>/``."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from fastqat._errors import DataError
from fastqat.selection.budget import check_count
from fastqat.selection.seeding import Stream, generator_for

Target = dict[str, Tensor]
"""``boxes`` fp32 ``[n, 4]`` as (x1, y1, x2, y2) in pixels, ``labels`` int64 ``[n]``: category ids."""

_SPLIT_SEED = 0
# RetinaNet has one output per anchor and id up to the largest; COCO's largest is 90.
_MOST_CATEGORIES = 4096


class CocoFolder(Dataset):
    """Pictures and boxes of one split of a folder in COCO's layout; ``data[i]`` is ``(picture, target)``.

    The picture is fp32 RGB ``[3, H, W]`` in [0, 1], of its own size; for `target` see `Target`. Labels are the category ids of the file, so
    that weights trained elsewhere on the same categories fit; id 0 is left to the background, as in torchvision.

    As torchvision's reference training does, crowd boxes (``iscrowd``) are left out, boxes are cut to the picture, and those without
    an area are left out; then the pictures without a box are, unless `keep_empty`. (Average precision knows crowds: pycocotools reads the
    file itself.)

    Args:
        root: the folder that has ``annotations/``.
        split: such as ``train2017``: names the file and the folder of pictures.
        keep_empty: keep pictures without boxes, as an evaluation must.
        limit: at most so many pictures, drawn once and for all.
        workers: processes that decode pictures.

    Attributes:
        image_ids: ``[N]``, the ids of the pictures, ascending.
        categories: id → name.
        num_classes: the largest category id + 1, as RetinaNet counts.

    Raises:
        DataError: a file or folder is missing or no annotations are in it; a picture, category or id that is named is not there; a box is
            malformed; no picture is left. On reading: a picture is damaged, or of another size than the file says.
        InputError: `limit` is no whole number of at least 1.

    Example::

        data = CocoFolder("coco", "val2017", keep_empty=True)
        picture, target = data[0]
        for pictures, targets in data.batches(8): ...
    """

    def __init__(self, root: str | Path, split: str, *, keep_empty: bool = False, limit: int | None = None, workers: int = 0):
        self.root, self.split, self.workers = Path(root).expanduser(), split, workers
        self.annotations, self.folder = self.root / "annotations" / f"instances_{split}.json", self.root / split
        content, self._digest = _read(self.annotations)
        self.categories = _categories(content, self.annotations)
        self.num_classes = max(self.categories) + 1
        images = _images(content, self.annotations, self.folder)
        boxes = _boxes(content, images, self.categories, self.annotations)
        kept = [image for image in sorted(images) if keep_empty or image in boxes]
        if not kept:
            raise DataError(f"{self.annotations} has no picture with a box ({len(images)} pictures); check the split and its annotations")
        if limit is not None and check_count("limit", limit) < len(kept):
            order = torch.randperm(len(kept), generator=generator_for(_SPLIT_SEED, Stream.SUBSET))[:limit]
            kept = [kept[i] for i in order.sort().values.tolist()]
        self.image_ids = kept
        self._names = [images[image][0] for image in kept]
        self._sizes = np.array([images[image][1:] for image in kept])  # width, height
        parts = [np.array(boxes.get(image, ()), dtype=np.float64).reshape(-1, 5) for image in kept]
        self._starts = np.cumsum([0, *map(len, parts)])
        self._boxes = np.concatenate(parts)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, i: int) -> tuple[Tensor, Target]:
        i = range(len(self))[i]  # negative ones count from the end
        return self._picture(i), self.target(i)

    def target(self, i: int) -> Target:
        """The boxes of picture `i`, without reading it."""
        i = range(len(self))[i]
        rows = self._boxes[self._starts[i] : self._starts[i + 1]]
        return {"boxes": torch.from_numpy(rows[:, :4]).float(), "labels": torch.from_numpy(rows[:, 4]).long()}

    def _picture(self, i: int) -> Tensor:
        from PIL import Image

        path = self.folder / self._names[i]
        try:
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB"))
        except Exception as error:  # a damaged picture may raise anything
            raise DataError(f"{path} cannot be read as a picture ({error}); fetch it again") from error
        if pixels.shape[:2] != tuple(self._sizes[i][::-1]):
            got, said = f"{pixels.shape[1]}x{pixels.shape[0]}", "x".join(map(str, self._sizes[i]))
            raise DataError(f"{path} is {got} and {self.annotations.name} says {said}; its boxes would not fit: bring the right picture")
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float() / 255

    def batches(self, batch_size: int, indices: Tensor | None = None) -> Iterator[tuple[list[Tensor], list[Target]]]:
        """Yield ``(pictures, targets)``, lists of up to `batch_size`, in the order of `indices` (None: data-set order)."""
        source: Dataset = self if indices is None else Subset(self, indices.tolist())
        # A generator of its own: reading draws nothing from torch's global one.
        yield from DataLoader(
            source,
            batch_size,
            num_workers=self.workers,
            collate_fn=_as_lists,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),
        )

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the annotations, the choice of pictures, and the size of any of their files."""
        digest = hashlib.sha256(self._digest.encode())
        for name, image in zip(self._names, self.image_ids, strict=True):
            digest.update(f"{image} {name} {os.stat(self.folder / name).st_size}\n".encode())
        return digest.hexdigest()


def _as_lists(samples: Sequence[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
    return [x for x, _ in samples], [target for _, target in samples]


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """The annotations in `path`, and the hash of the file."""
    if not path.is_file():
        others = sorted(other.name for other in path.parent.glob("*.json")) if path.parent.is_dir() else []
        found = f"there are {', '.join(others)}" if others else "there is no .json file"
        raise DataError(
            f"there is no file {path}; a folder in COCO's layout has annotations/instances_SPLIT.json and the pictures in SPLIT/ "
            f"({found} in {path.parent}); give the folder and the split"
        )
    try:
        text = path.read_bytes()
        content = json.loads(text)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}); fetch it again") from error
    lists = [content.get(key) if isinstance(content, dict) else None for key in ("images", "annotations", "categories")]
    if not all(isinstance(one, list) and all(isinstance(entry, dict) for entry in one) for one in lists):
        raise DataError(f"{path} is not in COCO's format; it needs images, annotations and categories, each a list of mappings")
    return content, hashlib.sha256(text).hexdigest()


def _categories(content: dict[str, Any], path: Path) -> dict[int, str]:
    numbers = [category.get("id") for category in content["categories"]]
    if not numbers or not all(type(number) is int and 1 <= number <= _MOST_CATEGORIES for number in numbers):
        raise DataError(f"{path}: category ids must be whole numbers from 1 to {_MOST_CATEGORIES}; got {sorted(numbers, key=str)[:5]}")
    return {category["id"]: str(category.get("name", category["id"])) for category in content["categories"]}


def _images(content: dict[str, Any], path: Path, folder: Path) -> dict[int, tuple[str, int, int]]:
    """Picture id → file name, width, height."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder} with the pictures of {path.name}; put them there")
    images: dict[int, tuple[str, int, int]] = {}
    for image in content["images"]:
        number, name, *size = (image.get(key) for key in ("id", "file_name", "width", "height"))
        if not isinstance(name, str) or type(number) is not int or not all(type(side) is int and side > 0 for side in size):
            raise DataError(f"{path}: every picture needs a file_name and whole numbers id, width > 0 and height > 0; got {image!r}")
        if number in images:
            raise DataError(f"{path}: pictures {images[number][0]} and {name} have one id, {number}; give each its own")
        images[number] = (name, *size)
    there = {entry.name for entry in os.scandir(folder)}
    missing = [name for name, _, _ in images.values() if name not in there and not (folder / name).is_file()]
    if missing:
        raise DataError(f"{len(missing)} of the {len(images)} pictures of {path.name} are not in {folder}, the first is {missing[0]}")
    return images


def _boxes(
    content: dict[str, Any], images: dict[int, tuple[str, int, int]], categories: dict[int, str], path: Path
) -> dict[int, list[tuple[float, ...]]]:
    """Picture id → its boxes and labels (x1, y1, x2, y2, id): no crowds, cut to the picture, with an area."""
    boxes: dict[int, list[tuple[float, ...]]] = {}
    for annotation in content["annotations"]:
        image, category = annotation.get("image_id"), annotation.get("category_id")
        if type(image) is not int or image not in images:
            raise DataError(f"{path}: annotation {annotation.get('id')} is of picture {image!r}, which images does not list")
        if type(category) is not int or category not in categories:
            raise DataError(f"{path}: annotation {annotation.get('id')} has category {category!r}; the categories are {sorted(categories)}")
        if annotation.get("iscrowd", 0):
            continue
        x1, y1, x2, y2 = _corners(annotation, images[image], path)
        if np.float32(x2) > np.float32(x1) and np.float32(y2) > np.float32(y1):  # as `target` gives them
            boxes.setdefault(image, []).append((x1, y1, x2, y2, category))
    return boxes


def _corners(annotation: dict[str, Any], image: tuple[str, int, int], path: Path) -> tuple[float, float, float, float]:
    """(x, y, width, height) → corners inside the picture."""
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in box):
        raise DataError(f"{path}: annotation {annotation.get('id')} has bbox {box!r}; it needs four numbers: x, y, width, height")
    _, width, height = image
    x, y, w, h = box
    return max(0.0, x), max(0.0, y), min(float(width), x + w), min(float(height), y + h)
