"""Rows of a promotion ledger."""

from datetime import UTC, datetime, timedelta

from core.spec import load_spec
from mlflow_server.promotion.ledger import LedgerRow

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
SPEC = load_spec("customer_churn_model")
LEDGER = LedgerRow(SPEC.name, 1, "production", 100, None, "2", "ann", "first", None,
                   NOW - 30 * HOUR, NOW - 30 * HOUR)  # fmt: skip
