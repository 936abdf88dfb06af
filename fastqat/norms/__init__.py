"""Per-sample gradient norms: `per_sample_grad_norms`, and the registry of rules that it works with."""

from .api import per_sample_grad_norms
from .result import GradNorms
from .rules import Rule, find_rule, register_rule

__all__ = ["GradNorms", "Rule", "find_rule", "per_sample_grad_norms", "register_rule"]
