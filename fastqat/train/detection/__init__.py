"""Detection: torchvision's RetinaNet, quantized and trained on the pictures that ACS picks, from a folder in COCO's layout.

``fastqat detect --data FOLDER`` or, from Python, `train_detector`. It needs torchvision, and pycocotools for average
precision (``pip install fastqat[detection]``); importing this package needs neither.
"""

from fastqat.train.detection.coco import CocoFolder
from fastqat.train.detection.config import DetectorConfig
from fastqat.train.detection.models import make_detector, quantize_detector
from fastqat.train.detection.run import train_detector
from fastqat.train.detection.scores import score_pictures

__all__ = ["CocoFolder", "DetectorConfig", "make_detector", "quantize_detector", "score_pictures", "train_detector"]
