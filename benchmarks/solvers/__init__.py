"""Solvers compared on exact denoisers, ours and those of peer libraries. `python -m benchmarks.solvers --help`."""
