"""What the GPU kernels compile to, without a GPU: registers, spills, shared memory, width and bytes of their accesses.

python -m bench.static_report [--archs 80 90 100] [--filter backward] [--only triton] [--bad]

Every Triton kernel in the variants that its catalogue names, and every kernel of csrc/cuda. Fails on a spill, a stack frame, an atomic,
an access narrower than stated, or more bytes per element than the ideal (forward 2e, backward 3e, codes e plus the code's). Where triton
or nvcc is missing, says so and reports the rest.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, product

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from . import static_cuda, static_features, static_launches, static_norms, static_scores, static_triton
from .static_row import Compiled

ARCHS = (80, 90, 100)
HEADINGS = ("kernel", "variant", "sm", "registers", "spills", "shared", "load bits", "store bits", "bytes/element", "ideal", "")


CATALOGUE = (
    *(static_launches.one_tensor, static_launches.many_tensors, static_norms.gradient_norms),
    *(static_scores.logit_scores, static_scores.grand_last, static_scores.affine_layers, static_features.feature_kl),
)


def triton_kernels(archs: Sequence[int], pattern: str) -> Iterator[Compiled]:
    """Every launch of the Triton backend whose name contains `pattern`, compiled for each architecture."""
    for variant in chain.from_iterable(each() for each in CATALOGUE):
        if pattern in f"{variant.kernel.__name__} {variant.name}":
            for arch in archs:
                yield static_triton.compiled(variant, arch)


def cuda_kernels(archs: Sequence[int], pattern: str) -> Iterator[Compiled]:
    """Every kernel of the .cu files whose name contains `pattern`, compiled for each architecture, a file per core at a time."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for kernels in pool.map(lambda job: static_cuda.compiled(*job), product(static_cuda.sources(), archs)):
            yield from (kernel for kernel in kernels if pattern in f"{kernel.name} {kernel.variant}")


PARTS = {"triton": (static_triton.reason, triton_kernels), "cuda": (static_cuda.reason, cuda_kernels)}


def cells(kernel: Compiled) -> tuple[str, ...]:
    """One line of the table."""
    used, moved, ideal = kernel.resources, kernel.bytes_per_element, kernel.expected.bytes_per_element
    return (
        kernel.name,
        kernel.variant,
        str(kernel.arch),
        str(used.registers),
        str(used.spills + used.stack),
        str(used.shared),
        "/".join(map(str, sorted(kernel.widths("load")))),
        "/".join(map(str, sorted(kernel.widths("store")))),
        "" if moved is None else f"{moved:.3g}",
        "" if moved is None else str(ideal),
        "; ".join(kernel.problems()),
    )


def report(kernels: Sequence[Compiled], console: Console) -> int:
    """Print the table; the number of kernels with a problem."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in ("kernel", "variant", "") else "right", overflow="fold")
    for kernel in kernels:
        table.add_row(*cells(kernel), style="red" if kernel.problems() else "")
    console.print(table)
    return sum(bool(kernel.problems()) for kernel in kernels)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, print and judge; 0 when no kernel has a problem, 1 when one has."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--archs", nargs="+", type=int, default=ARCHS, help="compute capabilities; 90 is 9.0")
    parser.add_argument("--filter", default="", help="only kernels and variants with this in their name")
    parser.add_argument("--only", choices=PARTS, help="only the Triton kernels, or only csrc/cuda")
    parser.add_argument("--bad", action="store_true", help="print only the kernels with a problem")
    options = parser.parse_args(arguments)
    console = Console() if sys.stdout.isatty() else Console(width=220)
    failed = count = 0
    for name, (reason, compile_all) in PARTS.items():
        if options.only not in (None, name):
            continue
        if reason():
            console.print(f"{name}: not reported: {reason()}")
            continue
        kernels = list(compile_all(options.archs, options.filter))
        shown = [kernel for kernel in kernels if kernel.problems() or not options.bad]
        failed, count = failed + report(shown, console), count + len(kernels)
    console.print(f"{count} kernels compiled for sm {', '.join(map(str, options.archs))}: {failed or 'none'} with a problem")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
