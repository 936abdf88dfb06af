"""RetinaNet quantized, its anchors matched, pictures scored: against loops, and against torchvision's own losses."""

import copy
import math

import pytest
import torch
from torch import nn

from fastqat._errors import CheckpointError, DataError, InputError
from fastqat.methods import ACS
from fastqat.nn.layer import QuantLayer
from fastqat.train.detection import CocoFolder, make_detector, quantize_detector, score_pictures
from fastqat.train.detection.anchors import asked_of, distillation_losses, losses_of, prepare, run_heads
from fastqat.train.detection.models import calibrate_detector
from fastqat.train.detection.run import _load_given
from fastqat.train.detection.scores import picture_scores
from fastqat.train.detection.stage import _mirrored

from .detection_runs import CLASSES, shapes, tiny_detector

pytest.importorskip("torchvision")
pytest.importorskip("PIL")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return CocoFolder(shapes(tmp_path_factory.mktemp("shapes")), "train", keep_empty=True)


def quantized(data, seed=0, config="w4a4"):
    return calibrate_detector(quantize_detector(tiny_detector(seed), config), data.batches(4))


def float_layers(model):
    return [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d) and not isinstance(layer, QuantLayer)]


def test_everything_but_the_first_layer_and_the_two_outputs_is_quantized(data):
    model = quantized(data)
    outputs = ["head.classification_head.cls_logits", "head.regression_head.bbox_reg"]
    assert float_layers(model) == ["backbone.body.0.0", *outputs]
    # 3 of the backbone, 2 + 2 of the pyramid, 4 of each head's tower
    assert sum(isinstance(layer, QuantLayer) for layer in model.modules()) == 3 + 4 + 8
    model.eval()([data[0][0], data[1][0]])


def test_a_resnet_with_frozen_norms_has_the_layers_of_torchvision_and_takes_weights_with_their_older_names(tmp_path):
    from torchvision.models.detection import retinanet_resnet50_fpn

    with torch.device("meta"):
        theirs = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
        ours = make_detector("retinanet_resnet50_fpn", 91)
    assert {k: v.shape for k, v in theirs.state_dict().items()} == {k: v.shape for k, v in ours.state_dict().items()}
    small = make_detector("retinanet_resnet18_fpn", 3, frozen_norm=True, trainable_layers=3)
    assert not small.backbone.body.conv1.weight.requires_grad and small.backbone.body.layer4[0].conv1.weight.requires_grad
    older = {}
    for name, value in small.state_dict().items():
        for i in range(4):
            name = name.replace(f"conv.{i}.0.", f"conv.{2 * i}.") if name.startswith("head") else name
        older[name] = value + 1
    torch.save(older, tmp_path / "published.pt")
    _load_given(small, tmp_path / "published.pt")
    assert torch.equal(small.head.regression_head.conv[3][0].weight, older["head.regression_head.conv.6.weight"])
    with pytest.raises(CheckpointError, match="published.pt is of another architecture"):
        _load_given(tiny_detector(), tmp_path / "published.pt")
    assert len(float_layers(quantize_detector(small, "w4a4"))) == 3


def test_an_override_of_the_user_comes_before_the_outputs_that_stay_float():
    from fastqat.nn.config import QConfig

    base = QConfig.parse("w4a32")
    model = quantize_detector(tiny_detector(), QConfig(base.weight, None, overrides={"*.cls_logits": QConfig.parse("w8a32")}))
    assert float_layers(model) == ["backbone.body.0.0", "head.regression_head.bbox_reg"]


def heads_of(model, data, indices):
    pictures, targets = next(data.batches(len(indices), torch.tensor(indices)))
    images, boxes = prepare(model, pictures, targets)
    heads = run_heads(model, images)
    return heads, boxes, images


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(0.0, width) * max(0.0, height)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def oracle(q, p, anchors, boxes, labels):
    """d_EVS and d_DS of one picture without padding, in loops and fp64; matching as RetinaNet's paper says it."""
    overlaps = [[iou(box, anchor) for box in boxes] for anchor in anchors]
    best = [max(row[j] for row in overlaps) for j in range(len(boxes))]
    evs = ds = foreground = 0.0
    for a, row in enumerate(overlaps):
        closest = max(range(len(boxes)), key=lambda j: row[j]) if boxes else -1
        chosen = bool(boxes) and (row[closest] >= 0.5 or any(row[j] == best[j] for j in range(len(boxes))))
        if boxes and not chosen and row[closest] >= 0.4:
            continue
        foreground += chosen
        y = [float(chosen and k == labels[closest]) for k in range(CLASSES)]
        evs += sum((q[a][k] - y[k]) ** 2 for k in range(CLASSES))
        ds += sum((q[a][k] - p[a][k]) ** 2 for k in range(CLASSES))
    return [math.sqrt(value / max(1.0, foreground)) for value in (evs, ds)]


def test_scores_are_those_of_the_formula(data):
    model, teacher = quantized(data), tiny_detector(1).eval()
    nn.init.normal_(model.head.classification_head.cls_logits.weight, std=0.3)
    model.head.classification_head.cls_logits.weight.data[::5] += 0.1
    table = score_pictures(model, data, ["evs", "ds"], teacher=teacher, batch_size=3, progress=False)
    model.eval()
    for i in (0, 5):
        with torch.no_grad():
            heads, boxes, _ = heads_of(model, data, [i])
            q, p = heads.logits[0].double().sigmoid(), heads_of(teacher, data, [i])[0].logits[0].double().sigmoid()
        wanted = oracle(q.tolist(), p.tolist(), heads.anchors[0].tolist(), boxes[0]["boxes"].tolist(), boxes[0]["labels"].tolist())
        found = [table["evs"][i].item(), table["ds"][i].item()]
        assert found == pytest.approx(wanted, rel=1e-4)
    assert table.labels is None and table.num_samples == len(data)
    assert table["evs"].std() > 0 and table["ds"].std() > 0


def test_counted_anchors_are_those_of_the_focal_loss(data):
    """With y and V of `Asked` the focal loss of torchvision comes out again."""
    from torchvision.ops import sigmoid_focal_loss

    model = tiny_detector().eval()
    heads, boxes, images = heads_of(model, data, list(range(6)))
    asked = asked_of(model, heads, boxes, images)
    losses = [
        sigmoid_focal_loss(heads.logits[i][one.counted], one.one_hot(boxes[i]["labels"], CLASSES), reduction="sum") / one.objects
        for i, one in enumerate(asked)
    ]
    theirs = model.head.compute_loss(
        boxes, {"cls_logits": heads.logits, "bbox_regression": heads.offsets}, heads.anchors, [one.matched for one in asked]
    )
    torch.testing.assert_close(torch.stack(losses).mean(), theirs["classification"])
    assert any((~one.counted).any() for one in asked)  # some anchors lie between the thresholds


def test_background_in_the_padding_of_a_batch_does_not_count():
    model = tiny_detector().eval()
    boxes = torch.tensor([[4.0, 4.0, 24.0, 24.0]])
    target = {"boxes": boxes, "labels": torch.tensor([1])}
    model.transform.min_size, model.transform.max_size = (32,), 64
    images, targets = prepare(model, [torch.rand(3, 32, 32), torch.rand(3, 32, 64)], [target, target])
    one, other = asked_of(model, run_heads(model, images), targets, images)
    assert images.image_sizes == [(32, 32), (32, 64)]
    assert int(other.counted.sum()) > int(one.counted.sum()) == len(one.counted) // 2 - int((one.matched == -2).sum())


def test_a_picture_without_boxes_is_background_only(data):
    model = tiny_detector().eval()
    images, targets = prepare(model, [data[0][0]], [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}])
    (asked,) = asked_of(model, run_heads(model, images), targets, images)
    assert asked.counted.all() and not asked.foreground.any() and asked.objects == 1
    assert not asked.one_hot(targets[0]["labels"], CLASSES).any()


def test_training_minimises_torchvisions_losses(data):
    model = tiny_detector().train()
    pictures, targets = next(data.batches(4))
    theirs = copy.deepcopy(model)(pictures, targets)
    ours = losses_of(model, None, pictures, targets)
    assert {name: value.item() for name, value in ours.items()} == {name: value.item() for name, value in theirs.items()}


def test_mirrored_boxes_are_those_of_the_mirrored_picture(data):
    picture, target = data[0]
    mirrored, boxes = _mirrored(picture, target)
    for (x1, y1, x2, y2), (u1, v1, u2, v2) in zip(target["boxes"].int().tolist(), boxes["boxes"].int().tolist(), strict=True):
        assert (v1, v2) == (y1, y2)
        assert torch.equal(mirrored[:, v1:v2, u1:u2], picture[:, y1:y2, x1:x2].flip(-1))
    again, same = _mirrored(mirrored, boxes)
    assert torch.equal(again, picture) and torch.equal(same["boxes"], target["boxes"]) and same["labels"] is target["labels"]


def test_distillation_is_zero_at_the_teacher_and_its_gradient_is_the_disagreement(data):
    student, teacher = tiny_detector(0).eval(), tiny_detector(1).eval()
    with torch.no_grad():
        heads, boxes, images = heads_of(student, data, [0, 1])
        taught = run_heads(teacher, images)
    asked = asked_of(student, heads, boxes, images)
    same = distillation_losses(taught, taught, asked)
    assert [value.item() for value in same.values()] == pytest.approx([0, 0], abs=1e-5)
    logits = heads.logits.clone().requires_grad_()
    distillation_losses(heads._replace(logits=logits), taught, asked)["classification"].backward()
    for i, one in enumerate(asked):
        wanted = (heads.logits[i].sigmoid() - taught.logits[i].sigmoid()) * one.counted[:, None] / one.objects / len(asked)
        torch.testing.assert_close(logits.grad[i], wanted)
    away = [(heads.offsets[i] - taught.offsets[i])[one.foreground].abs().sum() / one.objects for i, one in enumerate(asked)]
    found = distillation_losses(heads, taught, asked)["bbox_regression"]
    torch.testing.assert_close(found, torch.stack(away).mean())
    losses = losses_of(student.train(), teacher, *next(data.batches(2)))
    sum(losses.values()).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_pass_leaves_modes_and_random_numbers_as_they_were(data):
    model = quantized(data).train()
    model.backbone.body["0"].eval()
    modes, state = [module.training for module in model.modules()], torch.random.get_rng_state()
    before = {name: value.clone() for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    first = score_pictures(model, data, progress=False)
    assert [module.training for module in model.modules()] == modes and torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert torch.equal(first["evs"], score_pictures(model, data, progress=False)["evs"])
    close = score_pictures(model, data, progress=False, amp=True)["evs"]
    torch.testing.assert_close(first["evs"], close, rtol=0.1, atol=0.01)


def test_acs_selects_pictures_by_these_scores(data):
    student, teacher = quantized(data), tiny_detector(1)
    acs = ACS(
        data, student, teacher, score_view=data, epochs=4, interval=2, fraction=0.25, scorer=score_pictures, balanced=False, progress=False
    )
    acs.begin_epoch(2)
    table = score_pictures(student, data, ["evs", "ds"], teacher=teacher, progress=False)
    blend = acs.beta(2) * table["evs"] + (1 - acs.beta(2)) * table["ds"]
    assert acs.selection.indices.tolist() == blend.argsort(descending=True, stable=True)[:4].tolist()
    assert acs.scoring_forwards == 2 * len(data)


def test_pictures_that_are_harder_have_larger_scores(data):
    """A head that knows a picture's boxes has a smaller EVS there than one that does not."""
    model = tiny_detector().eval()
    heads, boxes, images = heads_of(model, data, [0])
    (asked,) = asked_of(model, heads, boxes, images)
    knows = torch.full_like(heads.logits[0], -9.0)
    knows[asked.foreground, boxes[0]["labels"][asked.matched[asked.foreground]]] = 9.0
    right, prior = (picture_scores(logits, asked, boxes[0]["labels"])[0] for logits in (knows, heads.logits[0]))
    assert right < 0.02 < 0.9 < prior


def test_what_does_not_fit_is_refused(data):
    model = tiny_detector()
    with pytest.raises(InputError, match="scores evs and ds; got entropy"):
        score_pictures(model, data, ["entropy"])
    with pytest.raises(InputError, match="pass teacher="):
        score_pictures(model, data, ["ds"])
    with pytest.raises(InputError, match="must be a RetinaNet of torchvision .*; got Linear"):
        score_pictures(nn.Linear(2, 2), data)
    with pytest.raises(InputError, match="must be a RetinaNet of torchvision"):
        quantize_detector(nn.Conv2d(3, 3, 3), "w4a4")
    with pytest.raises(InputError, match=r"teacher has outputs \[8, 720, 6\] and the model \[8, 720, 4\]"):
        score_pictures(model, data, ["ds"], teacher=make_detector("retinanet_tiny", 6, min_size=64, max_size=64), progress=False)
    with pytest.raises(InputError, match="unknown detector 'yolo'"):
        make_detector("yolo", 3)
    with pytest.raises(InputError, match="needs 2 or more classes"):
        make_detector("retinanet_tiny", 1)
    with pytest.raises(InputError, match="NaN for picture 0"):
        nn.init.constant_(model.head.classification_head.cls_logits.bias, math.nan)
        score_pictures(model, data, progress=False)
    with pytest.raises(DataError):
        score_pictures(model, CocoFolder(data.root, "nowhere"))
