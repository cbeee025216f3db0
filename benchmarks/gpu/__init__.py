"""Checks and timings on a GPU, without pytest-benchmark: `benchmarks/gpu_suite.sh` runs them all.

Each also runs on the CPU (`--device cpu`), in small, to try the code.
"""
