"""Per-sample scores: what makes a sample worth keeping. One registered file each; `score_dataset` computes them."""

from fastqat._loading import load_all
from fastqat.selection.scores.registry import Score, get_score, list_scores, register_score

load_all(__name__, __path__)

__all__ = ["Score", "get_score", "list_scores", "register_score"]
