"""`make bench`: every figure the README states about speed, measured here and now."""

from benchmarks import features, ingest, serving

serving.main(4.0)
features.main(1_000_000)
ingest.main(10_000_000)
