"""Triton kernels of per-sample gradient norms, launched from ``launch.py``: fp32 sums, partial results per tile, no atomics.

The gradient of one sample's weight is a matrix G [O/groups, columns] = Σ_t g_t u_tᵀ, u_t what the kernel sees at position t. The direct
form has a tile of G in registers, the Gram form a tile of the products between positions; u is gathered by address (``windows.py``).
"""

from .direct import grad_norm_direct_kernel, grad_norm_grouped_kernel
from .finish import grad_norm_finish_kernel
from .gram import grad_norm_gram_kernel
from .rows import grad_norm_masked_row_kernel, grad_norm_row_kernel

__all__ = [
    "grad_norm_direct_kernel",
    "grad_norm_finish_kernel",
    "grad_norm_gram_kernel",
    "grad_norm_grouped_kernel",
    "grad_norm_masked_row_kernel",
    "grad_norm_row_kernel",
]
