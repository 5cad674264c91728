"""Score rows with the very bytes that are, or would be, served."""

from __future__ import annotations

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


def score(
    model: bytes, inputs: Mapping[str, FeatureType], rows: pd.DataFrame
) -> NDArray[np.float64]:
    """Probability of class 1, float64 [N], of an ONNX model with one column per input."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feed = {name: rows[name].to_numpy(dtype=DTYPES[kind]) for name, kind in inputs.items()}
    scores: NDArray[np.float64] = session.run([SCORE], feed)[0].astype(np.float64)
    return scores
