"""The one table of backends: which exist, which op each serves, and why the rest is not there.

An op family (``"fake_quant"``, ``"logit_scores"``) registers one implementation object per backend: a module or class with
the family's functions. `pick` is called inside the operator, on real tensors, so that ``torch.compile`` never sees the choice.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from ._errors import BackendError, InputError


def _load_native() -> str | None:
    """Import the compiled extension; return None, or the reason why it is not usable."""
    if os.environ.get("FASTQAT_NO_NATIVE", "0") not in ("", "0"):
        return "switched off by FASTQAT_NO_NATIVE"
    try:
        importlib.import_module("fastqat._C")
    except ImportError as error:
        if importlib.util.find_spec("fastqat._C") is None:
            return "fastqat._C is not built; reinstall fastqat with a C++17 compiler on PATH"
        return f"fastqat._C does not load: {error}"
    return None


def _cpu_reason() -> str | None:
    return NATIVE_REASON


@functools.cache
def _cuda_reason() -> str | None:
    return NATIVE_REASON or _load_cuda()


def _load_cuda() -> str | None:
    """Import the CUDA object beside a CUDA torch; a CPU-only torch never loads it."""
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    if importlib.util.find_spec("fastqat._C_cuda") is None:
        return "fastqat._C_cuda is not built; reinstall fastqat with FASTQAT_CUDA=1, nvcc and a CUDA torch"
    if not torch.cuda.is_available():
        return "no CUDA device is visible to torch"
    try:
        cuda = importlib.import_module("fastqat._C_cuda")
    except ImportError as error:
        return f"fastqat._C_cuda does not load: {error}"
    return cuda.why_not(torch.cuda.current_device()) or None


# Triton decides when a kernel is defined, so this is read once too. Interpreted kernels take CPU tensors, for tests: only by name.
TRITON_INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"


def _triton_reason() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    return None if TRITON_INTERPRETED or torch.cuda.is_available() else "no CUDA device is visible to torch"


@dataclass(frozen=True)
class Backend:
    """One row: a name, the device types it serves by itself, and why it is not available (None when it is)."""

    name: str
    device_types: tuple[str, ...]
    reason: Callable[[], str | None]


NATIVE_REASON = _load_native()

# In order of preference; "reference" serves every device.
BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend("triton", ("cpu",) if TRITON_INTERPRETED else ("cuda",), _triton_reason),
        Backend("cuda", ("cuda",), _cuda_reason),
        Backend("cpu", ("cpu",), _cpu_reason),
        Backend("reference", ("cpu", "cuda"), lambda: None),
    )
}

_implementations: dict[str, dict[str, Any]] = {}
_FROM_ENVIRONMENT = os.environ.get("FASTQAT_BACKEND") or None
_forced: list[str] = []  # the name given to use_backend, none or one


def register(op: str, backend: str, implementation: Any) -> None:
    """Enter `implementation` as what `backend` runs for the op family `op`.

    The implementation may have ``refuses(*tensors) -> str | None``: a reason why it does not take these tensors.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
    _implementations.setdefault(op, {})[backend] = implementation
    _candidates.cache_clear()


def _why_not(op: str, name: str, device_type: str | None = None) -> str | None:
    """None when backend `name` can run `op` (on `device_type`) here, else the reason."""
    if name not in _implementations.get(op, {}):
        return f"has no kernel for {op}"
    backend = BACKENDS[name]
    if device_type is not None and name != "reference" and device_type not in backend.device_types:
        return f"does not serve device {device_type!r}"
    return backend.reason()


def refuses_float64(*tensors: torch.Tensor) -> str | None:
    """`refuses` of kernels that compute in fp32: the reference alone computes in fp64."""
    return "float64 runs on the reference backend only" if any(t.dtype == torch.float64 for t in tensors) else None


def refuses_in_triton(*tensors: torch.Tensor) -> str | None:
    """`refuses` of Triton kernels: fp64 too, and bf16 in the interpreter, which has none."""
    if TRITON_INTERPRETED and any(t.dtype == torch.bfloat16 for t in tensors):
        return "Triton's interpreter has no bfloat16; use float32 or float16, or a GPU"
    return refuses_float64(*tensors)


def _refusal(implementation: Any, tensors: tuple[torch.Tensor, ...]) -> str | None:
    refuses = getattr(implementation, "refuses", None)
    return refuses(*tensors) if refuses else None


@functools.cache
def _candidates(op: str, device_type: str) -> tuple[Any, ...]:
    """Implementations that can run `op` on `device_type` here, in order of preference; found once, since `pick` runs at every call."""
    names = [name for name in BACKENDS if not (name == "triton" and TRITON_INTERPRETED)]
    return tuple(_implementations[op][name] for name in names if _why_not(op, name, device_type) is None)


def _forced_backend() -> str | None:
    """The backend asked for by name; the environment is read at import."""
    name = _forced[0] if _forced else _FROM_ENVIRONMENT
    if name is not None and name not in BACKENDS:
        raise InputError(f"unknown backend {name!r} in FASTQAT_BACKEND; choose one of {', '.join(BACKENDS)}")
    return name


def pick(op: str, *tensors: torch.Tensor) -> Any:
    """The implementation of `op` for `tensors`: the backend asked for, else the first in the table that takes them.

    Raises:
        BackendError: a backend was asked for by name (`use_backend`, ``FASTQAT_BACKEND``) and cannot run; it never falls back.
    """
    device_type = tensors[0].device.type
    forced = _forced_backend()
    if forced is not None:
        implementation = _implementations[op].get(forced)
        reason = _why_not(op, forced, device_type) or _refusal(implementation, tensors)
        if reason:
            raise BackendError(
                f"backend {forced!r} was asked for, but it cannot run {op}: {reason}. "
                "Remove use_backend() / FASTQAT_BACKEND to let fastqat choose."
            )
        return implementation
    for implementation in _candidates(op, device_type):
        if _refusal(implementation, tensors) is None:
            return implementation
    raise BackendError(f"no backend can run {op} on {tensors[0].device}")


def backends_for(op: str, device_type: str = "cpu") -> list[str]:
    """Names of the backends that can run `op` here on `device_type`; tests and benchmarks loop over them."""
    return [name for name in BACKENDS if _why_not(op, name, device_type) is None]


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every op of the block on backend `name`: ``"reference"``, ``"cpu"``, ``"triton"`` or ``"cuda"``.

    Holds for all threads while the block runs, since backward passes may run on autograd's own; the environment variable
    ``FASTQAT_BACKEND`` does the same for a whole process.

    Raises:
        InputError (a ValueError): `name` is not a backend.
        BackendError (a RuntimeError): inside the block, when the backend cannot run an op: it never falls back silently.

    Example:
        >>> import torch, fastqat as fq
        >>> with fq.use_backend("reference"):
        ...     fq.fake_quantize(torch.tensor([0.26, 9.0]), torch.tensor(0.5), qmin=-8, qmax=7)
        tensor([0.5000, 3.5000])
    """
    if name not in BACKENDS:
        raise InputError(f"unknown backend {name!r}; choose one of {', '.join(BACKENDS)}")
    before, _forced[:] = _forced[:], [name]
    try:
        yield
    finally:
        _forced[:] = before


@dataclass(frozen=True)
class BackendTable:
    """Backend × op: ``table[backend][op]`` is None when available, else the reason why not. Prints as a table."""

    rows: dict[str, dict[str, str | None]] = field(default_factory=dict)

    def __getitem__(self, backend: str) -> dict[str, str | None]:
        return self.rows[backend]

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __repr__(self) -> str:
        width = 2 + max((len(op) for ops in self.rows.values() for op in ops), default=0)
        lines = [f"{'backend':<11}{'op':<{width}}state"]
        for backend, ops in self.rows.items():
            for op, reason in ops.items():
                lines.append(f"{backend:<11}{op:<{width}}{'available' if reason is None else 'no: ' + reason}")
        return "\n".join(lines)


def backends() -> BackendTable:
    """What can run here: a table backend × op, with the reason where something cannot: that there is no kernel comes first.

    Example:
        >>> import fastqat as fq
        >>> fq.backends()["reference"]["fake_quant"] is None
        True
    """
    return BackendTable({name: {op: _why_not(op, name) for op in _implementations} for name in BACKENDS})
