"""Score rows with the very bytes that are, or would be, served."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from mlflow_server.served_model import SCORE

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from numpy.typing import NDArray

    from stack.spec import FeatureType

DTYPES: dict[str, Any] = {"int64": np.int64, "double": np.float64, "string": np.object_}
TIMED_ROWS = 1000


def score(
    model: bytes, inputs: Mapping[str, FeatureType], rows: pd.DataFrame
) -> NDArray[np.float64]:
    """What an ONNX model with one column per input says, float64 [N]: probability or number."""
    feed = _feed(inputs, rows)
    scores: NDArray[np.float64] = _session(model).run([SCORE], feed)[0].astype(np.float64)
    return scores


def latency_p99_ms(model: bytes, inputs: Mapping[str, FeatureType], rows: pd.DataFrame) -> float:
    """Time of one row in one thread, as serving has it: 99th percentile of up to 1,000 rows."""
    session, feed, took = _session(model), _feed(inputs, rows), []
    for row in range(min(len(rows), TIMED_ROWS)):
        one = {name: column[row : row + 1] for name, column in feed.items()}
        began = time.perf_counter()
        session.run([SCORE], one)
        took.append(time.perf_counter() - began)
    return float(np.percentile(took, 99)) * 1000


def _session(model: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _feed(inputs: Mapping[str, FeatureType], rows: pd.DataFrame) -> dict[str, Any]:
    return {name: rows[name].to_numpy(dtype=DTYPES[kind]) for name, kind in inputs.items()}
