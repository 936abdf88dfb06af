"""Test-wide settings: two threads everywhere, so that multi-threaded paths run; the interpreter of Triton where there is no GPU; the same
drawn examples on every run."""

import os
from collections.abc import Iterator

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when fastqat is imported: kernels then run on CPU tensors, asked for by name

torch.set_num_threads(2)

try:
    from hypothesis import settings
except ImportError:  # the tests that draw examples are then skipped
    pass
else:
    settings.register_profile("fastqat", derandomize=True, database=None, deadline=None)
    settings.load_profile("fastqat")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For many small steps: two threads wait for each other longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
