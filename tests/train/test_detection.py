"""RetinaNet quantized, its anchors matched, its boxes decoded: against torchvision's own losses and boxes."""

import copy
import math

import pytest
import torch
from torch import nn

from fastqat._errors import CheckpointError, DataError, InputError
from fastqat.nn.layer import QuantLayer
from fastqat.train.detection import CocoFolder, make_detector, quantize_detector, score_pictures
from fastqat.train.detection.anchors import asked_of, boxes_of, distillation_losses, losses_of, prepare, run_heads
from fastqat.train.detection.run import _load_given
from fastqat.train.detection.stage import _mirrored

from .detection_runs import CLASSES, heads_of, quantized, shapes, tiny_detector

pytest.importorskip("torchvision")
pytest.importorskip("PIL")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return CocoFolder(shapes(tmp_path_factory.mktemp("shapes")), "train", keep_empty=True)


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
    assert {norm.eps for norm in small.modules() if type(norm).__name__ == "FrozenBatchNorm2d"} == {0.0}  # as where torchvision loads them
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


def test_counted_anchors_are_those_of_the_focal_loss(data):
    """With y and V of `Asked` the focal loss of torchvision comes out again."""
    from torchvision.ops import sigmoid_focal_loss

    model = tiny_detector().eval()
    heads, boxes, images = heads_of(model, data, list(range(6)))
    asked = asked_of(model, heads, boxes, images)
    losses = [
        sigmoid_focal_loss(heads.logits[i], one.one_hot(boxes[i]["labels"], CLASSES))[one.counted].sum() / one.objects
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
    assert not asked.one_hot(targets[0]["labels"], CLASSES).any() and not asked.shares(0).any()


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


def test_in_bfloat16_boxes_are_still_decoded_in_fp32(data):
    model = make_detector("retinanet_tiny", CLASSES, min_size=512, max_size=512)
    nn.init.zeros_(model.head.classification_head.cls_logits.bias)
    nn.init.normal_(model.head.regression_head.bbox_reg.weight, std=0.05)
    model.eval().detections_per_img = 20
    images, _ = prepare(model, [data[0][0]], None)
    with torch.no_grad():
        (found,) = boxes_of(model, run_heads(model, images, amp=True), images, [(512, 512)])
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32
    far = found["boxes"][found["boxes"] > 256]
    assert len(far) and (far % 1 != 0).any()  # bfloat16 has steps of 2 there


def test_without_autocast_the_boxes_are_the_models_own(data):
    model = tiny_detector().eval()
    nn.init.zeros_(model.head.classification_head.cls_logits.bias)
    pictures = [data[1][0][:, :50], data[0][0]]
    images, _ = prepare(model, pictures, None)
    with torch.no_grad():
        ours, theirs = boxes_of(model, run_heads(model, images), images, [(50, 64), (64, 64)]), model(pictures)
    assert len(theirs[0]["boxes"])
    assert all(torch.equal(a[name], b[name]) for a, b in zip(ours, theirs, strict=True) for name in ("boxes", "labels", "scores"))


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
    with pytest.raises(InputError, match="use frozen_norm=True and a ResNet"):
        make_detector("retinanet_resnet18_fpn", 3, trainable_layers=3)
    with pytest.raises(InputError, match="use frozen_norm=True and a ResNet"):
        make_detector("retinanet_tiny", 3, frozen_norm=True, trainable_layers=3)
    broken = tiny_detector()
    nn.init.constant_(broken.head.classification_head.cls_logits.bias, math.nan)
    with pytest.raises(InputError, match="the teacher gives NaN for picture 0"):
        score_pictures(model, data, ["ds"], teacher=broken, progress=False)
    with pytest.raises(InputError, match="the model gives NaN for picture 0"):
        nn.init.constant_(model.head.classification_head.cls_logits.bias, math.nan)
        score_pictures(model, data, progress=False)
    with pytest.raises(DataError):
        score_pictures(model, CocoFolder(data.root, "nowhere"))
