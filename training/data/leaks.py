"""Remarks on features that may know the label, as they predict it too well."""

from collections.abc import Iterator, Mapping

import pandas as pd
import pyarrow as pa
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from core.spec import ModelSpec
from training.data.frame import feature_columns

SUSPICIOUS = 0.98
"""AUC, R², or the share of the most frequent class's errors that a feature corrects."""


def leak_remarks(
    spec: ModelSpec, rows: pa.Table, metrics: Mapping[str, float]
) -> Iterator[str]:
    """Yield a line for each feature that almost determines the label, and one for the AUC.

    There is none if the rows have no labels.

    Args:
        spec: The model.
        rows: Rows of a frame.
        metrics: Metrics of the model on these rows; may be empty.

    """
    if not spec.has_labels:
        return
    y = rows["label"].to_numpy()
    advice = "is it known before the label?"
    is_classes = spec.task != "regression"
    tree_class = DecisionTreeClassifier if is_classes else DecisionTreeRegressor
    share_wrong = 1 - pd.Series(y).value_counts(normalize=True).max()
    for name, column in feature_columns(spec, rows).items():
        values = column
        if spec.inputs[str(name)] == "string":
            values = pd.Series(pd.factorize(column)[0])
        matrix = values.to_frame()
        tree = tree_class(max_leaf_nodes=4, random_state=0)
        decided = tree.fit(matrix, y).score(matrix, y)
        if is_classes:
            decided = 1 - (1 - decided) / share_wrong if share_wrong else 0
        if decided >= SUSPICIOUS:
            yield f"{name} alone almost determines {spec.label_name}: {advice}"
    if metrics.get("auc", 0) >= SUSPICIOUS:
        yield f"AUC {metrics['auc']:.4f} is near 1: a feature may know {spec.label_name}"
