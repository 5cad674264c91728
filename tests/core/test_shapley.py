"""Contributions of features to a score, against their definition, on real ONNX models."""

from functools import cache
from itertools import permutations

import numpy as np
import onnxruntime
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from core.shapley import COALITIONS, shapley_values
from training.estimators import build_pipeline
from training.onnx_export import export
from training.scoring import columns

FEATURES = {"visits": "int64", "spend": "double", "region": "string", "age": "double"}
REGIONS = ("north", "south", "east")


def customers():
    chance = np.random.default_rng(3)
    spend = chance.normal(0, 2, 400).round(1)
    spend[::7] = np.nan
    columns = {
        "visits": chance.integers(0, 6, 400),
        "spend": spend,
        "region": chance.choice(REGIONS, 400),
        "age": chance.normal(0, 2, 400).round(1),
    }
    return pd.DataFrame(columns)


@cache
def scorer(kind, classes):
    """A real model with a step before it, as it is served: columns [N] to scores [N] or [N, K]."""
    frame = customers()
    push = frame["visits"] * frame["age"] + np.where(frame["region"] == "north", 2, 0)
    label = pd.qcut(push, classes, labels=False) if classes else push
    task = ("regression", "", "classification", "multiclass")[classes]
    trees = {"n_estimators": 20} if kind == "random_forest" else {"max_iter": 20}
    with threadpool_limits(1):
        model = build_pipeline(kind, trees, FEATURES, 7, task).fit(frame, label)
    file = export(model, FEATURES, classes if task == "multiclass" else 0)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file.SerializeToString(), options)
    return lambda rows: session.run(["score"], dict(rows))[0]


def by_definition(score, row, background):
    """Mean over every order in which features join, and every row of the background."""
    contributions = []
    for order in permutations(row):
        columns = dict(background)
        means = [score(columns).mean(axis=0)]
        for name in order:
            columns[name] = np.repeat(row[name], len(background[name]))
            means.append(score(columns).mean(axis=0))
        gains = dict(zip(order, np.diff(means, axis=0), strict=True))
        contributions.append([gains[name] for name in row])
    return means[0], np.mean(contributions, axis=0)


VALUES = st.tuples(
    st.integers(0, 6),
    st.floats(-4, 4, width=16) | st.just(np.nan),
    st.sampled_from((*REGIONS, "elsewhere")),
    st.floats(-4, 4, width=16),
)


@pytest.mark.parametrize(
    ("kind", "classes"),
    [("random_forest", 2), ("random_forest", 0), ("hist_gradient_boosting", 3)],
    ids=["classification", "regression", "multiclass"],
)
@settings(max_examples=8, deadline=None)
@given(row=VALUES, rows=st.lists(VALUES, min_size=1, max_size=4))
def test_contributions_equal_the_definition_and_add_up_to_the_score(
    kind, classes, row, rows
):
    score = scorer(kind, classes)
    row_columns = columns(FEATURES, pd.DataFrame([row], columns=[*FEATURES]))
    background = columns(FEATURES, pd.DataFrame(rows, columns=[*FEATURES]))
    mean, values = shapley_values(score, row_columns, background)
    expected_mean, expected = by_definition(score, row_columns, background)
    limit = 1e-6 if classes else 1e-5  # float32 means of numbers up to 30
    np.testing.assert_allclose(np.squeeze(mean), expected_mean, atol=limit)
    np.testing.assert_allclose(values, expected.reshape(values.shape), atol=limit)
    total = mean + values.sum(axis=0)
    np.testing.assert_allclose(total, score(row_columns)[0], atol=limit)


def of(matrix):
    """Columns f0, f1, … of a matrix."""
    return {f"f{place}": column for place, column in enumerate(np.atleast_2d(matrix).T)}


def test_contributions_of_many_features_add_up_after_one_call_of_the_model():
    features = 600
    chance = np.random.default_rng(1)
    calls = []
    weights, row = chance.normal(size=(2, features))
    background = chance.normal(size=(5, features))
    background[:, :2] = row[:2]  # what everybody has makes no rows of its own

    def score(rows):
        calls.append(np.column_stack([*rows.values()]))
        return calls[-1] @ weights

    mean, values = shapley_values(score, of(row), of(background))
    (scored,) = calls
    # The row itself is scored five times.
    assert len(scored) - len(np.unique(scored, axis=0)) == 4
    assert len(scored) <= 5 * max(COALITIONS, 2 * features)
    assert mean + values.sum() == pytest.approx(row @ weights)
    exact = weights * (row - background.mean(axis=0))  # in whatever order they join
    np.testing.assert_allclose(values[:, 0], exact, atol=1e-6)
    same_mean, same_values = shapley_values(score, of(row), of(background))
    assert (same_mean, same_values.tolist()) == (mean, values.tolist())
