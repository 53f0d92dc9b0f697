"""How fast the core is: against one read of the features, and against other libraries.

`python -m benchmarks.run` measures and writes `benchmarks/results/`; `pytest benchmarks` holds the
same cases for pytest-benchmark. Nothing here asserts a time.
"""
