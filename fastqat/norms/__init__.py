"""Per-sample gradient norms: `per_sample_grad_norms`, and the registry of rules that it works with."""

from .api import per_sample_grad_norms
from .result import GradNorms
from .rules import Rule, find_rule, register_rule
from .rules.scale import ScaleRule

__all__ = ["GradNorms", "Rule", "ScaleRule", "find_rule", "per_sample_grad_norms", "register_rule"]
