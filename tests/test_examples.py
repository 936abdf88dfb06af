"""Every example runs and prints what it promises."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path: Path) -> None:
    pytest.importorskip("sklearn", reason="the examples use scikit-learn's digits")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    accuracies = [float(word[:-1]) for word in done.stdout.split() if word.endswith("%")]
    assert len(accuracies) == 3 and min(accuracies) > 90, done.stdout
