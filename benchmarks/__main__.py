"""`make bench`: every figure the README states about speed, measured here and now."""

from benchmarks import ingest, serving

serving.main(4.0)
ingest.main(10_000_000)
