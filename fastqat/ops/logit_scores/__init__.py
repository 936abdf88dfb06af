"""Every per-sample score that needs only logits."""

from .api import LogitScores, logit_scores

__all__ = ["LogitScores", "logit_scores"]
