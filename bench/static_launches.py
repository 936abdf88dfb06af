"""Which kernels the Triton backend launches, with what, for the shapes of real networks: recorded on meta tensors, nothing is run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastqat import _backend
from fastqat.ops.fake_quant.reference import Grid

from .static_triton import Place, Variant

POINTERS = {torch.float64: "*fp64", torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int64: "*i64"}
POINTERS |= {torch.int32: "*i32", torch.int16: "*i16", torch.int8: "*i8", torch.uint8: "*u8"}


@dataclass(frozen=True)
class Shape:
    """A tensor and how it shares scales; `vectors`: rows begin on vector boundaries or can be made to, so that 128 bits are promised."""

    sizes: tuple[int, ...]
    axis: int | None = None
    group_size: int | None = None
    channels_last: bool = False
    vectors: bool = True

    def bits(self, dtype: torch.dtype) -> int:
        """The promised width of an access: 128 bits, else single elements."""
        return 128 if self.vectors else 8 * dtype.itemsize

    def tensor(self, dtype: torch.dtype, device: str = "meta") -> Tensor:
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        return torch.empty(self.sizes, dtype=dtype, device=device, memory_format=layout)

    def grid(self, zero_point: bool, semantics: str, qmin: int, qmax: int, device: str = "meta") -> Grid:
        """Scales of the right shape."""
        shape = [1] if self.axis is None else [self.sizes[self.axis]]
        if self.axis is not None and self.group_size is not None:
            shape = [n // self.group_size if d == self.axis else n for d, n in enumerate(self.sizes)]
        scale = torch.empty(shape, device=device)
        return Grid(scale, torch.empty_like(scale) if zero_point else None, qmin, qmax, self.axis, self.group_size, semantics)


SHAPES = {
    "tensor": Shape((64, 256, 56, 56)),
    "small tensor": Shape((4096,)),
    "odd tensor": Shape((1_000_003,)),
    "channel 0": Shape((512, 512, 3, 3), axis=0),
    "channel 0, [64, 3, 7, 7]": Shape((64, 3, 7, 7), axis=0, vectors=False),
    "channel 1": Shape((64, 256, 32, 32), axis=1),
    "channel 1, 7 × 7": Shape((64, 2048, 7, 7), axis=1),
    "channel −1": Shape((8192, 768), axis=1),
    "channels-last": Shape((64, 256, 56, 56), axis=1, channels_last=True),
    "group 128": Shape((4096, 4096), axis=1, group_size=128),
    "group 32 along 0": Shape((4096, 4096), axis=0, group_size=32),
}
DTYPES = (torch.float32, torch.bfloat16)
HALF = [("tensor", torch.float16)]  # compiles to what bfloat16 does, but for the conversions


class Launch(NamedTuple):
    """A kernel, its arguments by name, and the launch options."""

    kernel: Any
    given: dict[str, Any]
    options: dict[str, Any]


class Recorder:
    """Stands in for a Triton kernel: ``recorder[grid](...)`` notes the arguments."""

    def __init__(self, kernel: Any, launches: list[Launch]):
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            names = [parameter.name for parameter in self.kernel.params]
            given = dict(zip(names, args, strict=False)) | {name: value for name, value in kwargs.items() if name in names}
            self.launches.append(Launch(self.kernel, given, {name: value for name, value in kwargs.items() if name not in names}))

        return launch


@contextlib.contextmanager
def recorded(module: ModuleType) -> Iterator[list[Launch]]:
    """Every kernel of `module` is recorded in the list instead of launched, while the block runs."""
    kernels = {name: value for name, value in vars(module).items() if name.endswith("_kernel")}
    launches: list[Launch] = []
    vars(module).update({name: Recorder(kernel, launches) for name, kernel in kernels.items()})
    try:
        yield launches
    finally:
        vars(module).update(kernels)


def variant(launch: Launch, name: str) -> Variant:
    """A recorded launch as the compiler gets it: types, constants and alignment as triton's own launcher derives them."""
    kernel, given, options = launch
    types: dict[str, Any] = {}
    constants: dict[Place, Any] = {}
    aligned: set[Place] = set()
    for index, parameter in enumerate(kernel.params):
        fixed, free = parameter.is_constexpr, parameter.do_not_specialize
        for place, value in _places(parameter.name, (index,), given[parameter.name]):
            if fixed or value is None or (isinstance(value, int) and value == 1 and not free):
                constants[place] = value
            elif isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0 and not free):
                aligned.add(place)
        types[parameter.name] = _type(given[parameter.name], fixed, free)
    return Variant(kernel, name, types, constants, frozenset(aligned), options)


def _places(name: str, path: tuple[int, ...], value: Any) -> Iterator[tuple[Place, Any]]:
    """An argument, or the elements of a tuple, with how the compiler is told of each."""
    if not isinstance(value, tuple):
        yield name if len(path) == 1 else path, value
    else:
        for index, each in enumerate(value):
            yield from _places(name, (*path, index), each)


def _type(value: Any, fixed: bool, free: bool) -> Any:
    """The Triton type of an argument; a tuple has one for each element, under the same names."""
    if isinstance(value, tuple):
        types = [_type(each, fixed, free) for each in value]
        return type(value)(*types) if hasattr(value, "_fields") else tuple(types)
    if isinstance(value, Tensor):
        return POINTERS[value.dtype]
    if fixed or value is None or (isinstance(value, int) and value == 1 and not free):
        return "constexpr"
    return "fp32" if isinstance(value, float) else "i32" if -(2**31) <= value < 2**31 else "i64"


def one_tensor() -> Iterator[Variant]:
    """The launches of `fake_quantize` and `quantize_codes`: every shape and dtype, with and without a zero point, both semantics."""
    from fastqat.ops.fake_quant import kernels

    backend = _backend._implementations["fake_quant"]["triton"]
    for (name, dtype), extra in product([*product(SHAPES, DTYPES), *HALF], (False, True)):
        shape = SHAPES[name]
        x = shape.tensor(dtype)
        grid = shape.grid(extra, "reciprocal" if extra else "div", *((0, 255) if extra else (-128, 127)))
        with recorded(kernels) as launches:
            backend.forward(x, grid)
            backend.backward(x, x, grid, 1.0, True, extra)
            backend.codes(x, grid)
        for launch in launches:
            what = [name, short(dtype), *(["zero point", "reciprocal"] if extra else [])]
            tensors = {key: t.element_size() for key, t in launch.given.items() if isinstance(t, Tensor) and t.numel() == x.numel()}
            what += ["codes"] if launch.given.get("CODES") else []
            yield replace(variant(launch, ", ".join(what)), tensors=tensors, bits=shape.bits(dtype))


def short(dtype: torch.dtype) -> str:
    """``"float32"``, ``"bfloat16"``, ..."""
    return str(dtype).removeprefix("torch.")


def many_tensors() -> Iterator[Variant]:
    """The launches of `fake_quantize_all` for 60 weights and their gradients: the tensors are found through a table."""
    from fastqat.ops.fake_quant_all import kernels

    backend = _backend._implementations["fake_quant_all"]["triton"]
    shape = Shape((64, 64, 3, 3), axis=0)  # on the CPU, since the table holds addresses
    for dtype, extra in product((*DTYPES, torch.float16), (False, True)):
        xs, grids = [shape.tensor(dtype, "cpu")] * 60, [shape.grid(extra, "reciprocal" if extra else "div", -8, 7, "cpu")] * 60
        with recorded(kernels) as launches:
            backend.forward(xs, grids)
            backend.backward(xs, xs, grids, [1.0] * 60, [(True, extra)] * 60)
        for launch in launches:
            name = launch.kernel.__name__
            moved = 0 if "finish" in name else 3 * dtype.itemsize if "backward" in name else 2 * dtype.itemsize
            what = ", ".join(["60 weights", short(dtype), *(["zero points", "reciprocal"] if extra else [])])
            yield replace(variant(launch, what), tensors={"*table_ptr": dtype.itemsize} if moved else {}, ideal=moved or None)
