"""Folders in COCO's layout: what is read, what is left out, and what is refused with which words."""

import json
from pathlib import Path

import pytest
import torch

from fastqat._errors import DataError, InputError
from fastqat.train.detection import CocoFolder, DetectorConfig
from fastqat.train.detection.shapes import make_shapes

pytest.importorskip("PIL")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_shapes(tmp_path / "shapes", pictures=8, size=64)


def edit(root: Path, change) -> Path:
    """Change the annotations of the training split."""
    path = root / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return root


def test_pictures_and_boxes_are_those_that_were_drawn(root):
    data = CocoFolder(root, "train")
    assert len(data) == 8 and data.image_ids == list(range(1, 9)) and data.num_classes == 4
    for i in range(8):
        picture, target = data[i]
        assert picture.shape == (3, 64, 64) and picture.dtype == torch.float32 and 0 <= picture.min() < picture.max() <= 1
        assert target["boxes"].dtype == torch.float32 and target["labels"].dtype == torch.int64
        for (x1, y1, x2, y2), label in zip(target["boxes"].int().tolist(), target["labels"].tolist(), strict=True):
            row = (y1 + 3 * y2) // 4  # all shapes cover the middle of this row
            assert int(picture[:, row, (x1 + x2) // 2].argmax()) == label - 1  # squares are red, discs green, triangles blue


def test_batches_are_lists_in_the_order_that_is_asked_for(root):
    data = CocoFolder(root, "train")
    state = torch.random.get_rng_state()
    order = torch.tensor([5, 0, 3])
    (first, targets), (second, _) = data.batches(2, order)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [len(first), len(second)] == [2, 1]
    assert (
        torch.equal(first[0], data[5][0])
        and torch.equal(second[0], data[3][0])
        and torch.equal(targets[1]["boxes"], data.target(0)["boxes"])
    )
    assert sum(len(pictures) for pictures, _ in data.batches(3)) == 8
    by_worker = [pictures for pictures, _ in CocoFolder(root, "train", workers=1).batches(2, order)]
    assert torch.equal(by_worker[0][0], first[0]) and torch.equal(by_worker[1][0], second[0])


def test_the_same_arguments_draw_the_same_files(root, tmp_path):
    again, other = make_shapes(tmp_path / "again", pictures=8, size=64), make_shapes(tmp_path / "other", pictures=8, size=64, seed=1)
    files = [path.relative_to(root) for path in sorted(root.rglob("*")) if path.is_file()]
    assert len(files) == 2 + 8 + 4 and all((root / file).read_bytes() == (again / file).read_bytes() for file in files)
    assert not any((root / file).read_bytes() == (other / file).read_bytes() for file in files)


def test_crowds_empty_boxes_and_pictures_without_boxes_are_left_out(root):
    def change(content):
        assert sum(one["iscrowd"] for one in content["annotations"]) == 1
        content["annotations"] = [one for one in content["annotations"] if one["image_id"] not in (2, 3, 4)]
        more = [(2, [10, 10, 0, 5]), (3, [60, 60, 20, 20]), (4, [70, 0, 5, 5])]
        content["annotations"] += [{"id": 900 + i, "image_id": i, "category_id": 3, "bbox": box, "iscrowd": 0} for i, box in more]

    edit(root, change)
    data = CocoFolder(root, "train")
    assert data.image_ids == [1, 3, 5, 6, 7, 8]
    assert data.target(1)["boxes"].tolist() == [[60, 60, 64, 64]]
    assert all((data.target(i)["boxes"][:, 2:] - data.target(i)["boxes"][:, :2]).max() < 64 for i in range(len(data)))  # the crowd's is 64
    whole = CocoFolder(root, "train", keep_empty=True)
    assert len(whole) == 8 and whole[1][1]["boxes"].shape == (0, 4) and whole[1][1]["labels"].shape == (0,)


def test_limit_draws_the_same_pictures_each_time(root):
    some = CocoFolder(root, "train", limit=3)
    assert len(some) == 3 and some.image_ids == sorted(some.image_ids) == CocoFolder(root, "train", limit=3).image_ids
    assert torch.equal(some[1][0], CocoFolder(root, "train")[some.image_ids[1] - 1][0])
    with pytest.raises(InputError, match="limit must be a whole number ≥ 1; got 0"):
        CocoFolder(root, "train", limit=0)


def test_negative_indices_count_from_the_end(root):
    data = CocoFolder(root, "train")
    picture, target = data[-1]
    assert torch.equal(picture, data[7][0]) and len(target["boxes"]) and torch.equal(target["boxes"], data[7][1]["boxes"])
    with pytest.raises(IndexError):
        data[8]


def test_the_fingerprint_follows_annotations_choice_and_files(root):
    marks = {CocoFolder(root, "train").fingerprint for _ in range(2)}
    marks.add(CocoFolder(root, "train", limit=4).fingerprint)
    edit(root, lambda content: content["annotations"].pop())
    marks.add(CocoFolder(root, "train").fingerprint)
    with open(root / "train" / "000001.png", "ab") as handle:
        handle.write(b"\0")
    marks.add(CocoFolder(root, "train").fingerprint)
    assert len(marks) == 4


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c.pop("categories"), "is not in COCO's format"),
        (lambda c: c.update(images=[], annotations=[], categories=[]), "category ids must be whole numbers from 1"),
        (lambda c: c["categories"].append({"id": 0, "name": "nothing"}), "category ids must be whole numbers from 1"),
        (lambda c: c["annotations"][2].update(category_id=9), r"category 9; the categories are \[1, 2, 3\]"),
        (lambda c: c["annotations"][2].update(image_id=99), "is of picture 99, which images does not list"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "needs four numbers: x, y, width, height"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3, "4"]), "needs four numbers"),
        (lambda c: c["images"][0].pop("width"), "needs a file_name and whole numbers id, width > 0"),
        (lambda c: c["images"][0].update(file_name="gone.png"), "1 of the 8 pictures .* the first is gone.png"),
        (lambda c: c["annotations"].clear(), "has no picture with a box"),
        (lambda c: c["images"].append({**c["images"][0], "file_name": "000002.png"}), "000001.png and 000002.png have one id, 1"),
        (lambda c: c["images"][0].update(id=[1]), "whole numbers id, width > 0 and height > 0"),
        (lambda c: c["images"][0].update(width=0), "whole numbers id, width > 0 and height > 0"),
        (lambda c: c["categories"][0].update(id=[1]), "category ids must be whole numbers"),
        (lambda c: c["annotations"][0].update(image_id=[1]), r"is of picture \[1\]"),
        (lambda c: c["annotations"][0].update(category_id=[1]), r"has category \[1\]"),
    ],
)
def test_annotations_that_do_not_fit_are_refused(root, change, told):
    with pytest.raises(DataError, match=told):
        CocoFolder(edit(root, change), "train")


def test_files_that_are_missing_or_damaged_are_named(root, tmp_path):
    with pytest.raises(DataError, match=r"there are instances_train.json, instances_val.json in .*; give the folder and the split"):
        CocoFolder(root, "train2017")
    with pytest.raises(DataError, match="there is no .json file"):
        CocoFolder(tmp_path / "elsewhere", "train")
    (root / "val").rename(root / "other")
    with pytest.raises(DataError, match="there is no folder .*val with the pictures"):
        CocoFolder(root, "val")
    (root / "annotations" / "instances_val.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        CocoFolder(root, "val")
    (root / "train" / "000002.png").write_bytes(b"no picture")
    data = CocoFolder(root, "train")
    with pytest.raises(DataError, match="000002.png cannot be read as a picture"):
        data[1]


def test_a_picture_of_another_size_is_refused(root):
    edit(root, lambda content: content["images"][0].update(width=80))
    with pytest.raises(DataError, match="is 64x64 and instances_train.json says 80x64"):
        CocoFolder(root, "train")[0]


def test_settings_come_back_from_yaml(tmp_path):
    config = DetectorConfig(data=tmp_path, select="evs", fraction=0.2, loss="kd", name="mine", resume=True)
    path = tmp_path / "config.yaml"
    path.write_text(config.saved().to_yaml())
    assert DetectorConfig.from_yaml(path) == config.saved() and config.saved().name is None
    assert config.run_dir == Path("runs/mine")
    path.write_text("fractions: 0.1")
    with pytest.raises(InputError, match="unknown setting 'fractions'"):
        DetectorConfig.from_yaml(path)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"fraction": 0}, "fraction in"),
        ({"model": "yolo"}, "model must be one of retinanet_tiny"),
        ({"select": "k_center"}, "select must be one of"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"lr": -1.0}, "lr must be a finite number"),
        ({"momentum": 1.0}, "momentum must be less than 1"),
        ({"resume": True, "overwrite": True}, "give one of them"),
        ({"min_size": 1400}, "min_size must be at most max_size; got 1400 and 1333"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be positive"),
        ({"bn_reestimate": -1}, "bn_reestimate must be at least 0"),
    ],
)
def test_settings_that_no_run_can_have_are_refused(options, told):
    with pytest.raises(InputError, match=told):
        DetectorConfig(**options)
