"""Test-wide settings: two threads everywhere, so that multi-threaded paths run; Triton's interpreter where there is no GPU."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when fastqat is imported: kernels then run on CPU tensors, asked for by name

torch.set_num_threads(2)
