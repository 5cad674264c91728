"""Contributions of features to a score, against their definition, on real ONNX models."""

from functools import cache, partial
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from core.shapley import COALITIONS, shapley_values
from mlflow_server.model.pyfunc import ModelFile
from tests.support.training.onnx_models import FEATURES, fitted, spec_of
from training.model.onnx_export import export
from training.model.scoring import open_session, session_inputs


@cache
@threadpool_limits.wrap(limits=1)
def scorer(kind, task):
    """A real model with a step before it, as it is served: columns [N] to scores [N] or [N, K]."""
    pipeline, _ = fitted(kind, task, 1e-3)
    model = export(pipeline, spec_of(task))
    session = open_session(ModelFile(model.SerializeToString()))
    return lambda rows: session.run(["score"], dict(rows))[0]


def by_definition(score, row, background):
    """Mean over every order in which features join, and every row of the background."""
    contributions = []
    for order in permutations(row):
        columns = dict(background)
        means = [score(columns).mean(axis=0, dtype=float)]
        for name in order:
            columns[name] = np.repeat(row[name], len(background[name]))
            means.append(score(columns).mean(axis=0, dtype=float))
        gains = dict(zip(order, np.diff(means, axis=0), strict=True))
        contributions.append([gains[name] for name in row])
    return means[0], np.mean(contributions, axis=0)


near = partial(pytest.approx, abs=1e-6, rel=1e-7)
VALUES = st.tuples(
    st.integers(0, 6),
    st.floats(0, 200, width=16),
    st.sampled_from(("new", "repeat", "loyal", "elsewhere")),
    st.integers(0, 180),
    st.floats(0, 60, width=16) | st.just(np.nan),
)


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("random_forest", "classification"),
        ("random_forest", "regression"),
        ("hist_gradient_boosting", "multiclass"),
    ],
)
@settings(max_examples=8, deadline=None)
@given(row=VALUES, rows=st.lists(VALUES, min_size=1, max_size=4))
def test_contributions_equal_the_definition_and_add_up_to_the_score(
    kind, task, row, rows
):
    score = scorer(kind, task)
    row_columns = session_inputs(FEATURES, pd.DataFrame([row], columns=[*FEATURES]))
    background = session_inputs(FEATURES, pd.DataFrame(rows, columns=[*FEATURES]))
    mean, values = shapley_values(score, row_columns, background)
    expected_mean, expected = by_definition(score, row_columns, background)
    assert np.squeeze(mean) == near(expected_mean)
    assert values == near(expected.reshape(values.shape))
    assert mean + values.sum(axis=0) == near(score(row_columns)[0])


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
    assert values[:, 0] == near(exact)
    same_mean, same_values = shapley_values(score, of(row), of(background))
    assert (same_mean, same_values.tolist()) == (mean, values.tolist())
