"""What the table of a replay says of a moment."""

from __future__ import annotations

from cli.replay import largest
from stack.spec import DriftLimits

NOT_MEASURED = float("nan")


def test_the_largest_psi_is_of_what_was_measured_and_is_acted_on():
    limits = DriftLimits(informative=("tenure",))
    figures = {"psi_spend": NOT_MEASURED, "psi_orders": 0.1, "psi_tenure": 9.0, "entities": 50.0}
    assert largest(limits, figures) == "0.10 orders"
    assert largest(limits, figures | {"psi_score": 0.3}) == "0.30 score"
    assert largest(limits, {"psi_spend": NOT_MEASURED, "psi_tenure": 9.0}) == ""
