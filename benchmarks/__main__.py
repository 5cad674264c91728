"""`make bench`: every figure the README states about speed, measured here and now."""

from benchmarks import serving

serving.main(4.0)
