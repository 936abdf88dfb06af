"""The kernels of csrc/cuda on CPU tensors, through the stand-in for the CUDA runtime in cuda_on_host/cuda_runtime.h."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fastqat.ops._layout import by_storage, dense, from_storage, like, quant_view
from fastqat.ops.fake_quant.reference import Grid, code_dtype

ROOT = Path(__file__).parent.parent.parent
STORAGE = [torch.float32, torch.bfloat16, torch.float16]  # in the order of the enumerations in csrc/cuda
CODES = [torch.int8, torch.uint8, torch.int16, torch.int32]
FACTOR = 0.37


class Job(ctypes.Structure):
    """fastqat::Job of csrc/cuda/fake_quant_maps.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "grad_y", "out", "scale", "zero_point", "scale_sums", "zero_point_sums")),
        *((name, ctypes.c_void_p) for name in ("grad_scale", "grad_zero_point")),
        ("factor", ctypes.c_double),
        ("qmin", ctypes.c_float),
        ("qmax", ctypes.c_float),
        ("code_type", ctypes.c_int),
        *((name, ctypes.c_bool) for name in ("reciprocal", "aligned", "whole")),
    ]


class Inputs(NamedTuple):
    x: Tensor
    grid: Grid
    grad_y: Tensor | None = None


Gradients = tuple[Tensor, Tensor, Tensor | None]


class OnHost:
    """The kernels of csrc/cuda on CPU tensors: one launch for each tensor, or one for all of a kind (`together`)."""

    def __init__(self, library: ctypes.CDLL):
        self.library = library
        library.divide.restype = library.launches.restype = ctypes.c_int64
        library.divide.argtypes = [ctypes.c_int64, ctypes.c_int64]

    def _call(self, function: str, inputs: Sequence[Inputs], outputs: Sequence[dict[str, Tensor | None]], together: bool = False) -> int:
        jobs, views, storages = (Job * len(inputs))(), (ctypes.c_int64 * (4 * len(inputs)))(), (ctypes.c_int * len(inputs))()
        kept = []  # tensors live until the kernels have run
        for i, ((x, grid, grad_y), out) in enumerate(zip(inputs, outputs, strict=True)):
            zero_point = None if grid.zero_point is None else by_storage(x, grid.zero_point.float())
            tensors = {"x": x, "grad_y": grad_y, "scale": by_storage(x, grid.scale), "zero_point": zero_point, **out}
            kept.append(tensors)
            pointers = {name: None if tensor is None else tensor.data_ptr() for name, tensor in tensors.items()}
            numbers = {"qmin": grid.qmin, "qmax": grid.qmax, "code_type": CODES.index(code_dtype(grid.qmin, grid.qmax))}
            jobs[i] = Job(**pointers, **numbers, factor=FACTOR, reciprocal=grid.semantics == "reciprocal")
            views[4 * i : 4 * i + 4] = quant_view(x, grid.axis, grid.group_size)
            storages[i] = STORAGE.index(x.dtype)
        before = self.library.launches()
        getattr(self.library, function)(len(inputs), jobs, views, storages, together)
        return self.library.launches() - before

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        x = dense(x)
        x_hat = torch.empty_like(x).fill_(torch.nan)
        self._call("forward", [Inputs(x, grid)], [{"out": x_hat}])
        return x_hat

    def codes(self, x: Tensor, grid: Grid) -> Tensor:
        x = dense(x)
        codes = torch.empty_like(x, dtype=code_dtype(grid.qmin, grid.qmax)).fill_(77)
        self._call("codes", [Inputs(x, grid)], [{"out": codes}])
        return codes

    def backward(self, grad_y: Tensor, x: Tensor, grid: Grid, in_place: bool = False) -> Gradients:
        return self.backward_all([Inputs(x, grid, grad_y)], in_place)[0]

    def backward_all(self, inputs: Sequence[Inputs], in_place: bool = False, together: bool = False) -> list[Gradients]:
        xs = [dense(x) for x, *_ in inputs]
        ready = [Inputs(x, each.grid, like(x, each.grad_y)) for x, each in zip(xs, inputs, strict=True)]
        outputs = []
        for x, grid, grad_y in ready:
            sums = [torch.full((grid.scale.numel(),), torch.nan) for _ in range(2)]
            grad_x = grad_y if in_place else torch.empty_like(x).fill_(torch.nan)
            outputs.append({"out": grad_x, "grad_scale": sums[0], "grad_zero_point": None if grid.zero_point is None else sums[1]})
        self._call("backward", ready, outputs, together)
        found = []
        for (x, grid, _), out in zip(ready, outputs, strict=True):
            sums = (out[name] for name in ("grad_scale", "grad_zero_point"))
            found.append((out["out"], *(None if each is None else from_storage(x, each, grid.scale.shape) for each in sums)))
        return found


def array(tensor: Tensor) -> ctypes.Structure:
    """Address, sizes and strides, as the C functions take them."""
    dims = ctypes.c_int64 * tensor.dim()
    kind = type("Array", (ctypes.Structure,), {"_fields_": [("data", ctypes.c_void_p), ("size", dims), ("stride", dims)]})
    return kind(tensor.data_ptr(), tuple(tensor.shape), tensor.stride())


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def on_device(tensor: Tensor) -> Tensor:
    """A copy in device memory with the same strides, at the same distance from the beginning of its storage."""
    memory = torch.empty(0, dtype=tensor.dtype, device="cuda")
    return memory.set_(tensor.untyped_storage().cuda(), tensor.storage_offset(), tensor.shape, tensor.stride())


def compiled(folder: Path, source: str, *flags: str) -> ctypes.CDLL:
    """Compile one file of this folder, with the kernels that it includes, with g++ into `folder`, and load it."""
    library = folder / f"{source}.so"
    always = ["-std=c++17", "-shared", "-fPIC", "-ffp-contract=off", "-fno-strict-aliasing", "-Wall", "-Wno-unknown-pragmas"]
    includes = [f"-I{ROOT / 'tests/native/cuda_on_host'}", f"-I{ROOT / 'csrc'}"]
    subprocess.run(["g++", *always, *flags, *includes, str(ROOT / "tests/native" / f"{source}.cpp"), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def build(folder: Path) -> OnHost:
    """The kernels of fake quantization."""
    return OnHost(compiled(folder, "fake_quant_on_host", "-O0"))
