"""A small data set in COCO's layout whose boxes can be learned in a minute: coloured shapes on a noisy ground."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from fastqat._files import atomic_path, write_atomic

SHAPES = ("square", "disc", "triangle")
_COLOURS = ((220, 60, 50), (60, 190, 80), (70, 90, 230))


def make_shapes(root: str | Path, *, pictures: int = 64, val_pictures: int | None = None, size: int = 64, seed: int = 0) -> Path:
    """Write ``train`` and ``val`` splits of `size` × `size` pictures with one to three shapes each, and return the folder.

    Categories 1 to 3: red squares, green discs, blue triangles, with a side of a fifth to a third of the picture, on grey noise; every
    eighth picture has a crowd box too, which readers must leave out. The same arguments give the same bytes.

    Args:
        root: folder, made if needed.
        pictures, val_pictures: of the two splits; None: half as many to validate.
        size: side in pixels.
        seed: of the draws.

    Raises:
        OSError: the folder cannot be written.

    Example::

        data = CocoFolder(make_shapes("shapes", pictures=256), "train")
    """
    root = Path(root)
    for number, (split, count) in enumerate((("train", pictures), ("val", pictures // 2 if val_pictures is None else val_pictures))):
        rng = np.random.default_rng((seed, number))
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(count):
            pixels, found = _picture(rng, size)
            images.append({"id": index + 1, "file_name": f"{index + 1:06d}.png", "width": size, "height": size})
            found += [(1, (0, 0, size, size), 1)] if index % 8 == 7 else []
            for category, box, crowd in found:
                annotations.append(_annotation(len(annotations) + 1, index + 1, category, box, crowd))
            _save(root / split / images[-1]["file_name"], pixels)
        categories = [{"id": i + 1, "name": name} for i, name in enumerate(SHAPES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_atomic(root / "annotations" / f"instances_{split}.json", json.dumps(content))
    return root


def _annotation(number: int, image: int, category: int, box: tuple[int, int, int, int], crowd: int) -> dict[str, Any]:
    area = box[2] * box[3]
    return {"id": number, "image_id": image, "category_id": category, "bbox": list(box), "area": area, "iscrowd": crowd}


def _save(path: Path, pixels: np.ndarray) -> None:
    from PIL import Image

    with atomic_path(path) as part:
        Image.fromarray(pixels).save(part, format="PNG")


def _picture(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[tuple[int, tuple[int, int, int, int], int]]]:
    """Pixels ``[size, size, 3]``, and (category, box, 0) of each shape; shapes do not overlap."""
    pixels = rng.integers(90, 140, (size, size, 3), dtype=np.uint8)
    free = np.ones((size, size), dtype=bool)
    found = []
    for _ in range(int(rng.integers(1, 4))):
        kind, side = int(rng.integers(len(SHAPES))), int(rng.integers(size // 5, size // 3))
        x, y = (int(v) for v in rng.integers(0, size - side, 2))
        if not free[y : y + side, x : x + side].all():
            continue
        free[y : y + side, x : x + side] = False
        pixels[y : y + side, x : x + side][_mask(kind, side)] = _COLOURS[kind]
        found.append((kind + 1, (x, y, side, side), 0))
    return pixels, found


def _mask(kind: int, side: int) -> np.ndarray:
    """bool ``[side, side]``: which pixels belong to the shape."""
    y, x = (np.indices((side, side)) + 0.5) / side
    if SHAPES[kind] == "disc":
        return (x - 0.5) ** 2 + (y - 0.5) ** 2 <= 0.25
    return abs(x - 0.5) <= y / 2 if SHAPES[kind] == "triangle" else np.ones((side, side), dtype=bool)
