"""The kernels in Triton, one a file, each named as the torch reference above it; imported only where triton runs.

They have been run in Triton's interpreter alone so far, where they are right against torch in float64, and compiled for GPUs
(tests/test_triton.py does both). None has run or been timed on one. `benchmarks/bench_kernels.py` times them beside torch: a
kernel that does not win there goes.
"""
