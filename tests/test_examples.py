"""Every example runs and prints what it promises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
# Percent: accuracies, of detectors average precision; wrong labels found, where chance finds 10; of the flagged labels, the wrong ones.
LEAST = {
    "acs_in_your_own_loop": 90,
    "detection_acs": 45,
    "find_label_errors": 85,
    "lightning_selection": 90,
    "per_sample_gradients": 60,
    "quarc_in_your_own_loop": 90,
    "transformers_selection": 80,
}
NEEDS = {
    "detection_acs": ("torchvision", "pycocotools"),
    "lightning_selection": ("lightning",),
    "transformers_selection": ("transformers",),
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path: Path) -> None:
    pytest.importorskip("sklearn", reason="the examples use scikit-learn's digits")
    for package in NEEDS.get(path.stem, ()):
        pytest.importorskip(package)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    percentages = [float(word[:-1]) for word in done.stdout.split() if word.endswith("%")]
    assert len(percentages) == 3 and min(percentages) > LEAST[path.stem], done.stdout
