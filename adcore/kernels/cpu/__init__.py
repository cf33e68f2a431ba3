"""Fast paths in torch, one file per kernel; none of them imports the public functions.

Each is tested against the plain code in the file of the same name one folder up, and was timed on a CPU
(benchmarks/results.csv). `nearest`, `kcenter` and `gmm` also run on GPUs, where they need less memory than the plain code; they
have not been timed there.
"""
