"""Great Expectations: is a batch what the dataset's suite says?

The suite is GX's own JSON in `expectations/<dataset>.json`. A rule with `mostly` sets single rows
aside; a rule that fails as a whole rejects the batch, or only warns if its severity says so. Fewer
than `SINGLE_ROWS` failing rows are set aside whatever their share: one bad order among three due
in a quiet hour is a bad order, not a bad batch.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from stack.errors import DataError

if TYPE_CHECKING:
    from datetime import datetime

    import pyarrow as pa

    from feature_repo.definition import Dataset

EXPECTATIONS = Path(__file__).parent / "expectations"
SINGLE_ROWS = 20
# Arrow's integers keep their nulls only in the nullable types; the suites name these.
NULLABLE: dict[str, Any] = {
    "int64": pd.Int64Dtype(), "double": pd.Float64Dtype(), "bool": pd.BooleanDtype(),
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One rule that did not hold. rows: positions of the failing rows, if it speaks of rows."""

    rule: str
    column: str | None
    severity: str
    passed: bool
    message: str
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Validation:
    """What a suite says of a batch, and GX's own report as JSON."""

    findings: tuple[Finding, ...]
    report: dict[str, Any]

    @property
    def rejections(self) -> tuple[Finding, ...]:
        """Rules that failed as a whole: the batch must stop."""
        return tuple(f for f in self.findings if not f.passed and f.severity != "warning")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if not f.passed and f.severity == "warning")

    def bad_rows(self) -> dict[int, str]:
        """Position of each row that fails alone → the rules it broke."""
        rules: dict[int, list[str]] = {}
        for finding in self.findings:
            for row in finding.rows if finding.passed else ():
                rules.setdefault(row, []).append(f"{finding.rule}({finding.column})")
        return {row: ", ".join(broken) for row, broken in sorted(rules.items())}


def validate(dataset: Dataset, rows: pa.Table, as_of: datetime) -> Validation:
    """Hold `rows` against the dataset's suite.

    Raises:
        DataError: the suite cannot be read.

    """
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx  # noqa: PLC0415  (5 s; only where something is validated)
    from great_expectations.data_context.types.base import ProgressBarsConfig  # noqa: PLC0415

    logging.getLogger("great_expectations").setLevel(logging.WARNING)  # it says where it is
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    batch = (
        context.data_sources.add_pandas("rows")
        .add_dataframe_asset(dataset.name)
        .add_batch_definition_whole_dataframe("batch")
        .get_batch({"dataframe": rows.to_pandas(types_mapper=lambda t: NULLABLE.get(str(t)))})
    )
    result = batch.validate(
        gx.ExpectationSuite(**_suite(dataset.name)),
        result_format="COMPLETE",
        expectation_parameters={
            "as_of": as_of.isoformat(),
            "fresh_from": (as_of - dataset.silence).isoformat(),
        },
    )
    outcomes = [outcome.to_json_dict() for outcome in result.results]
    findings = tuple(_finding(outcome) for outcome in outcomes)
    return Validation(
        findings=tuple(f for f in findings if not f.passed or f.rows),
        report={"suite": dataset.name, "rows": rows.num_rows, "results": outcomes},
    )


def _suite(name: str) -> dict[str, Any]:
    path = EXPECTATIONS / f"{name}.json"
    try:
        suite: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as exc:
        raise DataError(f"expectations/{path.name}: cannot be read as a GX suite: {exc}") from exc
    return suite


def _finding(outcome: dict[str, Any]) -> Finding:
    config, result = outcome["expectation_config"], outcome["result"]
    rule, kwargs = config["type"], config["kwargs"]
    column = kwargs.get("column")
    rows = tuple(result.get("unexpected_index_list") or ())
    return Finding(
        rule=rule,
        column=column,
        severity=str(config.get("severity", "critical")),
        passed=bool(outcome["success"]) or ("mostly" in kwargs and 0 < len(rows) < SINGLE_ROWS),
        message=f"{rule}({column or 'table'}): {_found(outcome, rows)}",
        rows=rows,
    )


def _found(outcome: dict[str, Any], rows: tuple[int, ...]) -> str:
    result, config = outcome["result"], outcome["expectation_config"]["kwargs"]
    expected = {k: v for k, v in config.items() if k not in {"column", "batch_id"}}
    if rows:
        return f"{len(rows)} rows, such as {result.get('partial_unexpected_list', [])[:3]}"
    found = result.get("observed_value", _raised(outcome.get("exception_info") or {}))
    return f"expected {expected}, found {found}"


def _raised(info: dict[str, Any]) -> str:
    """What GX says where it could not look: no such column, or values it cannot compare."""
    said = [info, *(value for value in info.values() if isinstance(value, dict))]
    texts = [str(each["exception_message"]) for each in said if each.get("exception_message")]
    return texts[0].splitlines()[0] if texts else "nothing to compare"
