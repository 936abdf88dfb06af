"""Operators: one folder per family, each with api, reference, op and, where a GPU profits, kernels."""
