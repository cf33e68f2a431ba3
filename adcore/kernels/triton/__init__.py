"""The kernels in Triton, one per file, named as the file of the public function; imported only where Triton is selected.

tests/kernels/test_triton.py runs them in Triton's interpreter against torch in float64, and compiles them for a GPU. None has
run on a GPU yet. `benchmarks/bench_kernels.py` times them against torch there; a kernel that is not faster is removed.
"""
