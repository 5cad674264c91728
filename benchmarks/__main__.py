"""`make bench`: what the README says of it, measured here and now."""

from benchmarks import drift, features, ingest, serving, training

serving.main(3.0)
features.main(1_000_000)
ingest.main(10_000_000)
training.main(1_000_000)
drift.main(10_000_000)
