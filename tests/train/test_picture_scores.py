"""Scores of pictures with boxes: against loops, and what they must not depend on."""

import math

import pytest
import torch
from torch import nn

from fastqat.methods import ACS
from fastqat.train.detection import CocoFolder, score_pictures
from fastqat.train.detection.anchors import Asked, asked_of
from fastqat.train.detection.scores import picture_scores

from .detection_runs import CLASSES, heads_of, quantized, shapes, tiny_detector

pytest.importorskip("torchvision")
pytest.importorskip("PIL")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return CocoFolder(shapes(tmp_path_factory.mktemp("shapes")), "train", keep_empty=True)


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(0.0, width) * max(0.0, height)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def oracle(q, p, anchors, boxes, labels):
    """d_EVS and d_DS of one picture without padding, in loops and fp64; matching as RetinaNet's paper says it."""
    overlaps = [[iou(box, anchor) for box in boxes] for anchor in anchors]
    best = [max(row[j] for row in overlaps) for j in range(len(boxes))]
    found = {j: [] for j in range(len(boxes))}  # (EVS, DS) of each foreground anchor of a box
    nothing = [0.0, 0.0]
    for a, row in enumerate(overlaps):
        closest = max(range(len(boxes)), key=lambda j: row[j]) if boxes else -1
        chosen = bool(boxes) and (row[closest] >= 0.5 or any(row[j] == best[j] for j in range(len(boxes))))
        if boxes and not chosen and row[closest] >= 0.4:
            continue
        y = [float(chosen and k == labels[closest]) for k in range(CLASSES)]
        if chosen:
            found[closest].append([sum((q[a][k] - t[k]) ** 2 for k in range(CLASSES)) for t in (y, p[a])])
        else:
            nothing = [
                nothing[i] + sum((max(q[a][k], t[k]) ** 2 * (q[a][k] - t[k])) ** 2 for k in range(CLASSES)) for i, t in enumerate((y, p[a]))
            ]
    of_boxes = [[math.fsum(one[i] for one in anchors) / len(anchors) for i in (0, 1)] for anchors in found.values() if anchors]
    foreground = sum(map(len, found.values()))
    means = [math.fsum(one[i] for one in of_boxes) / max(1, len(of_boxes)) for i in (0, 1)]
    return [math.sqrt(means[i] + nothing[i] / max(1, foreground)) for i in (0, 1)]


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


def spearman(a, b):
    ranks = [torch.as_tensor(values).double().argsort().argsort().double() for values in (a, b)]
    return torch.corrcoef(torch.stack(ranks))[0, 1].item()


def test_pictures_do_not_come_first_for_having_few_anchors_or_boxes(tmp_path):
    data = CocoFolder(shapes(tmp_path, pictures=96), "train")
    model, teacher = tiny_detector(), tiny_detector(1)
    table = score_pictures(model, data, ["evs", "ds"], teacher=teacher, progress=False)
    heads, boxes, images = heads_of(model.eval(), data, range(96))
    counts = {"anchors": [int(one.objects) for one in asked_of(model, heads, boxes, images)]}
    counts["boxes"] = [len(one["labels"]) for one in boxes]
    assert max(counts["anchors"]) >= 4 * min(counts["anchors"])
    for name in ("evs", "ds"):
        for many in counts.values():
            assert abs(spearman(table[name], many)) < 0.3


def test_each_box_and_each_of_its_anchors_count_alike():
    matched = torch.tensor([0, 0, 0, 2, -1, -2])  # box 1 has no anchor of its own
    shares = Asked(matched, matched != -2).shares(3)
    assert shares.tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2, 0, 0])


def test_background_that_both_sides_call_nothing_adds_nothing():
    """At RetinaNet's prior of 1 % ten thousand background outputs weigh less than one anchor that is wrong by a hundredth."""
    logits = torch.full((10_001, 1), -4.6)
    asked = Asked(torch.tensor([0] + [-1] * 10_000), torch.ones(10_001, dtype=torch.bool))
    (score,) = picture_scores(logits, asked, torch.tensor([0]))
    assert score.item() == pytest.approx(0.99, abs=1e-3)
