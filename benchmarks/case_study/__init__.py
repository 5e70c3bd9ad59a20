"""Benchmarks of the paper's case study on emulated engines."""
