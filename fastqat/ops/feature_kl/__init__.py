"""The divergence of two feature maps, forward and backward, without their softmax in memory."""

from .api import feature_kl

__all__ = ["feature_kl"]
