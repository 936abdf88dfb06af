"""Benchmarks as data: `fastqat bench` and ``pytest bench`` measure the same cases and write the same rows."""
