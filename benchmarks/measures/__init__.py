"""The questions of `benchmarks/speed.py`, one file each."""
