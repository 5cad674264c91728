"""`make bench`: what the README says of it, measured here and now."""

from benchmarks import (
    busy_entity,
    drift,
    features,
    ingest,
    onnx,
    serving,
    training,
)
from benchmarks.team import frame
from benchmarks.team import serving as team_serving

serving.main(3.0)
onnx.main()
features.main(1_000_000)
busy_entity.main(105_000)
ingest.main(10_000_000)
training.main(1_000_000)
frame.main(200_000)
team_serving.main(3.0)
drift.main(10_000_000)
