"""Columns without values on one side or both: no exception, and no `ok`."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from monitoring.drift import measure
from monitoring.verdict import judge
from stack.spec import load_spec

LIMITS = load_spec("customer_churn_model").drift
DRAW = np.random.default_rng(0)
FULL = pd.DataFrame({"orders": DRAW.normal(size=400), "score": DRAW.random(400)})
EMPTY = FULL.assign(orders=np.nan)
WORDLESS = "orders: nothing to compare with, the reference has no value of it"


@pytest.mark.parametrize(
    ("reference", "current", "verdict", "said"),
    [
        (FULL, FULL, "ok", []),
        (FULL, EMPTY, "bad", ["orders: 100% null, 0% before"]),
        (EMPTY, FULL, "insufficient_data", [WORDLESS]),
        (EMPTY, EMPTY, "ok", []),  # nothing has changed: score is compared
        (FULL.iloc[:0], FULL, "insufficient_data", [WORDLESS, WORDLESS.replace("orders", "score")]),
    ],
)
def test_a_column_without_values_is_named(tmp_path, reference, current, verdict, said):
    found = measure(reference, current, tmp_path, LIMITS.significant)
    assert (tmp_path / "report.html").exists()
    got, bad, notes = judge(LIMITS, len(current), found, [])
    assert (got, bad + notes) == (verdict, said)
