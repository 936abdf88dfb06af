"""RetinaNet: built without downloads, quantized, calibrated; everything of it comes from torchvision."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from fastqat._errors import InputError
from fastqat.nn.calibration import calibrate
from fastqat.nn.config import QConfig
from fastqat.nn.convert import quantize

_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
DETECTORS = ("retinanet_tiny", *(f"retinanet_{name}_fpn" for name in _RESNETS))
"""What `make_detector` builds."""

OUTPUT_LAYERS = ("*.cls_logits", "*.bbox_reg")
"""The two layers that a RetinaNet ends in."""


def torchvision_detection() -> Any:
    """``torchvision.models.detection``.

    Raises:
        InputError: torchvision does not import.
    """
    try:
        from torchvision.models import detection
    except (ImportError, RuntimeError) as error:  # a torchvision beside the wrong torch fails with RuntimeError
        raise InputError(f"detection needs torchvision, which does not import ({error}); install the one that fits your torch") from error
    return detection


def make_detector(
    name: str,
    num_classes: int,
    *,
    min_size: int = 800,
    max_size: int = 1333,
    frozen_norm: bool = False,
    trainable_layers: int = 5,
) -> nn.Module:
    """An untrained RetinaNet of torchvision; pictures are resized inside.

    Args:
        name: ``retinanet_resnet50_fpn`` (the layers of torchvision's own, which takes its published weights with ``frozen_norm=True`` and
            91 classes), the same on another ResNet, or ``retinanet_tiny``: four convolutions and 32 channels, for small pictures and tests.
        num_classes: the largest category id + 1.
        min_size, max_size: pictures are scaled to a shorter side of `min_size` pixels, or a longer one of `max_size` if that is less.
        frozen_norm: normalise by fixed statistics (`FrozenBatchNorm2d` with eps 0, as torchvision's weights want), as with weights trained
            elsewhere; False: batch norm, to train from scratch. ``retinanet_tiny`` has batch norm in any case.
        trainable_layers: the last so many of the five parts of the ResNet learn; the others stay as they are, for which their norms must be
            frozen too.

    Raises:
        InputError: an unknown name, torchvision does not import, a number out of range, or fewer than five trainable parts without frozen
            norms.
    """
    detection = torchvision_detection()
    if name not in DETECTORS:
        raise InputError(f"unknown detector {name!r}; accepted: {', '.join(DETECTORS)}, or pass a RetinaNet of your own to train_detector")
    if num_classes < 2 or not 0 <= trainable_layers <= 5 or not 1 <= min_size <= max_size:
        got = f"num_classes {num_classes}, trainable_layers {trainable_layers}, min_size {min_size}, max_size {max_size}"
        raise InputError(f"a detector needs 2 or more classes, 0 to 5 trainable layers, and 1 ≤ min_size ≤ max_size; got {got}")
    if trainable_layers < 5 and (name == "retinanet_tiny" or not frozen_norm):
        raise InputError(
            f"trainable_layers={trainable_layers} keeps parts of a ResNet as they are, and the statistics of batch norm would move; use "
            "frozen_norm=True and a ResNet, or trainable_layers=5"
        )
    sizes = {"min_size": min_size, "max_size": max_size}
    if name == "retinanet_tiny":
        return _tiny(detection, num_classes, sizes)
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops import FrozenBatchNorm2d
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    backbone = resnet_fpn_backbone(
        backbone_name=name.split("_")[1],
        weights=None,
        # With 1e-5 the published weights would be another network: torchvision sets its own nets to 0.
        norm_layer=partial(FrozenBatchNorm2d, eps=0.0) if frozen_norm else nn.BatchNorm2d,
        trainable_layers=trainable_layers,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    return detection.RetinaNet(backbone, num_classes, **sizes)


def _tiny(detection: Any, num_classes: int, sizes: dict[str, int]) -> nn.Module:
    """Strides 8 and 16, nine anchors of 12 to 45 pixels at each place."""
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.models.detection.retinanet import RetinaNetHead

    def part(channels_in: int, channels_out: int) -> nn.Sequential:
        conv = nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(channels_out), nn.ReLU())

    body = nn.Sequential(part(3, 16), part(16, 32), part(32, 32), part(32, 64))
    backbone = BackboneWithFPN(body, {"2": "0", "3": "1"}, [32, 64], 32)
    backbone.fpn.extra_blocks = None  # no level of stride 32: its places are larger than the shapes
    anchors = AnchorGenerator(((12, 15, 19), (24, 30, 38)), ((0.5, 1.0, 2.0),) * 2)
    # Group norm as in torchvision's retinanet_resnet50_fpn_v2: with 32 channels the towers' small first weights would pass nothing on.
    head = RetinaNetHead(32, anchors.num_anchors_per_location()[0], num_classes, norm_layer=partial(nn.GroupNorm, 8))
    return detection.RetinaNet(backbone, num_classes, anchor_generator=anchors, head=head, **sizes)


def quantize_detector(model: nn.Module, config: str | QConfig) -> nn.Module:
    """A copy of the RetinaNet `model` with quantized convolutions: backbone, feature pyramid and the towers of both heads.

    What stays float: the first convolution (``skip="first"``), as in the papers, and, in place of the last layer, the two layers that the
    network ends in: class logits and box offsets. A head runs on every level of the pyramid with the same weights, and its layers have one
    step size for all levels. Norms, frozen or not, are not touched.

    Args:
        model: of `make_detector` or of torchvision.
        config: as `fastqat.quantize`; its overrides come first.

    Raises:
        InputError: as `fastqat.quantize`, or the model is no RetinaNet.
    """
    check_retinanet(model)
    parsed = QConfig.parse(config) if isinstance(config, str) else config
    overrides = {**parsed.overrides, **{pattern: None for pattern in OUTPUT_LAYERS if pattern not in parsed.overrides}}
    return quantize(model, replace(parsed, overrides=overrides), skip=("first",))


def check_retinanet(model: nn.Module) -> None:
    """InputError when `model` is no RetinaNet of torchvision."""
    if not isinstance(model, torchvision_detection().RetinaNet):
        raise InputError(f"the detector must be a RetinaNet of torchvision (torchvision.models.detection); got {type(model).__name__}")


def calibrate_detector(model: nn.Module, batches: Iterable[tuple[list[Tensor], Any]]) -> nn.Module:
    """`fastqat.calibrate` over lists of pictures: `batches` yields ``(pictures, targets)`` as `CocoFolder.batches`, and is read whole."""
    pictures = (pictures for pictures, _ in batches)
    return calibrate(model, pictures, max_batches=sys.maxsize, forward=lambda network, batch: network(batch))
