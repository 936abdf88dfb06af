"""What a value is, as a hash and as text: the same in every process and run for the same content, and another one for any other."""

from __future__ import annotations

import dis
import functools
import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def content_hash(*values: Any) -> str:
    """SHA-256 of values: tensors, arrays, pictures, numbers, strings, functions, modules, and lists, sets and mappings of these.

    Of a function: its code, defaults, closure, and the globals that it reads, of which modules and classes by name, and functions of
    another file without the globals that these read. Of a method or `functools.partial`: what it is bound to as well. Of a module: its
    layers, parameters and buffers. Of a `torch.device`: nothing. Of any other object: its `repr`; where that is the address only, its
    type and its attributes.
    """
    digest = _Digest()
    for value in values:
        digest.add(value)
    return digest.hex()


def describe(value: Any) -> str:
    """`repr` without memory addresses, which change from run to run, and the `content_hash` where that does not say all."""
    text = plain_repr(value)
    silent = isinstance(value, (FunctionType, MethodType, functools.partial, nn.Module)) or text != repr(value)
    return f"{text} {content_hash(value)[:16]}" if silent else text


def plain_repr(value: Any) -> str:
    """`repr` without memory addresses."""
    return _ADDRESS.sub("", repr(value))


def named_tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers by name."""
    return list(itertools.chain(model.named_parameters(), model.named_buffers()))


class _Digest:
    """A hash that values are entered into one after the other."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()
        self._inside: list[Any] = []  # what is being entered, from the outermost in: it may hold itself

    def hex(self) -> str:
        return self._sha.hexdigest()

    def add(self, value: Any) -> None:
        """Enter the content of a value, whatever it is made of."""
        self._text(f"{type(value).__name__}:")
        if any(value is outer for outer in self._inside):
            self._text("again")
        else:
            self._inside.append(value)
            self._enter(value)
            self._inside.pop()
        self._text(";")

    def _text(self, text: str) -> None:
        self._sha.update(text.encode())

    def _all(self, *values: Any) -> None:
        for value in values:
            self.add(value)

    def _enter(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self._tensor(value.detach())
        elif isinstance(value, nn.Module):
            self._all(plain_repr(value), named_tensors(value))
        elif isinstance(value, (type, ModuleType, BuiltinFunctionType, torch.device)):
            self._text("" if isinstance(value, torch.device) else value.__name__)
        elif isinstance(value, str):
            self._text(value)
        elif hasattr(value, "tobytes"):  # arrays of numpy, pictures of PIL
            self._text(f"{getattr(value, 'size', '')}{getattr(value, 'dtype', '')}")
            self._sha.update(value.tobytes())
        elif isinstance(value, Mapping):
            self._all(*value.items())
        elif isinstance(value, (set, frozenset)):
            self._all(*sorted(map(content_hash, value)))
        elif isinstance(value, (list, tuple)):
            self._all(*value)
        else:
            self._code_or_object(value)

    def _tensor(self, value: Tensor) -> None:
        self._text(f"{value.dtype}{tuple(value.shape)}")
        if value.numel():
            self._sha.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().data)

    def _code_or_object(self, value: Any) -> None:
        if isinstance(value, FunctionType):
            self._function(value)
        elif isinstance(value, MethodType):
            self._all(value.__func__, value.__self__)
        elif isinstance(value, functools.partial):
            self._all(value.func, value.args, value.keywords)
        elif isinstance(value, CodeType):
            self._all(value.co_code, value.co_names, value.co_consts)
        elif (text := plain_repr(value)) == repr(value):
            self._text(text)
        else:
            self._all(text, type(value).__call__ if callable(value) else None, getattr(value, "__dict__", None))

    def _function(self, function: FunctionType, *, follow: bool = True) -> None:
        """`follow`: the globals that it reads too."""
        self._text(f"{function.__module__}.{function.__qualname__}")
        self._all(function.__code__, function.__defaults__, function.__kwdefaults__)
        for cell in function.__closure__ or ():
            try:
                self.add(cell.cell_contents)
            except ValueError:  # not assigned yet
                self._text("empty")
        around = function.__globals__
        for name in sorted(set(_globals_read(function.__code__)) & around.keys()) if follow else ():
            value = around[name]
            if isinstance(value, FunctionType) and value.__globals__ is not around:
                self._function(value, follow=False)
            else:
                self._all(name, value)


def _globals_read(code: CodeType) -> Iterator[str]:
    """Names of the globals that a function reads, the functions inside of it included."""
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield step.argval
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _globals_read(inner)
