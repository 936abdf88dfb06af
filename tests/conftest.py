"""Test-wide settings: two threads, so that multi-threaded paths run, and the same on every machine."""

import torch

torch.set_num_threads(2)
