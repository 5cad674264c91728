"""Great Expectations: whether rows keep the rules in the suite of their dataset.

The suite is GX's own JSON in `expectations/<dataset>.json`. It has rules of three kinds:

- A rule of single rows sets each row aside that breaks it, whether an ingest or an event brings
  the row. With `mostly`, a delivery of an ingest stops where a larger share of its rows breaks the
  rule. Without `mostly`, a delivery stops at the first such row.
- A rule over many rows judges deliveries of an ingest alone.
- A rule of severity `warning` is reported. It stops nothing and sets nothing aside.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from core.errors import BatchRejectedError, DataError
from core.project import PROJECT
from feature_repo.definition import Dataset

EXPECTATIONS = PROJECT / "feature_repo" / "expectations"
SINGLE_ROWS = 20
"""A rule with `mostly` stops no delivery in which fewer rows break it, whatever their share."""
NOT_NULL = "expect_column_values_to_not_be_null"
ROW_RULES = (
    NOT_NULL,
    "expect_column_values_to_be_between",
    "expect_column_values_to_be_in_set",
    "expect_column_values_to_not_be_in_set",
    "expect_column_values_to_match_",
    "expect_column_values_to_not_match_",
    "expect_column_value_lengths_",
    "expect_column_pair_values_",
)
"""Rules of GX that a row keeps or breaks by itself, whatever the other rows are."""
NULLABLE_TYPES: dict[pa.DataType, Any] = {
    pa.int64(): pd.Int64Dtype(),
    pa.float64(): pd.Float64Dtype(),
    pa.bool_(): pd.BooleanDtype(),
}
"""Types of pandas that keep the nulls of an Arrow column; suites may name them."""
COMPARING_RULES = (
    "expect_column_pair_values_",
    "expect_multicolumn_",
    "expect_column_kl_divergence_",
    "expect_column_value_z_scores_",
    "expect_column_quantile_values_",
)
"""Rules for which GX needs the truth of a comparison, which a null of NULLABLE_TYPES has not."""
RULES_OF_FIGURES = (
    "expect_column_kl_divergence_",
    "expect_column_max_",
    "expect_column_mean_",
    "expect_column_median_",
    "expect_column_min_",
    "expect_column_quantile_values_",
    "expect_column_stdev_",
    "expect_column_sum_",
)
"""Rules of a figure of a column, which a column without values, or with one, may not have."""


@dataclass(frozen=True)
class Validation:
    """Results of a suite for some rows.

    Attributes:
        rejections: Lines for the rules that failed as a whole; a delivery must stop.
        warnings: Lines for the rules of severity `warning` that failed as a whole.
        bad_rows: Names of the rules that a row broke, by the position of the row; such rows are
            set aside.
        report: Results of GX.
        results: The result of each rule, small enough for a page: the `rule` as GX has it, the
            `observed` value of a rule over many rows, `examples` of at most 3 values that break
            it, the number of `rows` that do, whether it judges `events`, too, and the `outcome`:
            ok, set aside, warning or stopped.

    """

    rejections: list[str]
    warnings: list[str]
    bad_rows: dict[int, str]
    report: dict[str, Any]
    results: list[dict[str, Any]]

    def page(self) -> str:
        """Return the page of GX's Data Docs about the rows."""
        from great_expectations.core import expectation_validation_result  # noqa: PLC0415
        from great_expectations.render.renderer import ValidationResultsPageRenderer  # noqa: PLC0415
        from great_expectations.render.view import DefaultJinjaPageView  # noqa: PLC0415

        schema = expectation_validation_result.expectationSuiteValidationResultSchema
        # GX renders Python's numbers, and not numpy's.
        report = json.dumps(self.report, default=np.generic.item)
        document = ValidationResultsPageRenderer().render(schema.loads(report))
        return str(DefaultJinjaPageView().render(document))


class DatasetRules:
    """The suite of a dataset, open in Great Expectations.

    Args:
        dataset: Dataset of the suite.
        for_events: Open only the rules that events have to keep.
        unique_key: Add the rule that each key occurs once.

    Raises:
        DataError: The suite cannot be read, or GX cannot build a rule of it.

    """

    def __init__(
        self, dataset: Dataset, *, for_events: bool = False, unique_key: bool = False
    ) -> None:
        import great_expectations as gx  # noqa: PLC0415  (5 s; only where rows are validated)

        problems = suite_problems(dataset)
        if problems:
            raise DataError(f"nothing was changed: {'; '.join(problems)}")
        rules = suite_rules(dataset)
        if for_events:
            rules = [rule for rule in rules if _sets_aside(rule)]
        if unique_key:
            rules.append(_unique(dataset.key))
        self.count = len(rules)
        """Number of rules."""
        self.never_null = {
            rule["kwargs"]["column"]
            for rule in rules
            if rule["type"] == NOT_NULL and _sets_aside(rule)
        }
        """Columns in which a null breaks a rule."""
        time = dataset.event_time
        if (
            time not in self.never_null
        ):  # a row without time is in no window and in no ingest
            rules.append({"type": NOT_NULL, "kwargs": {"column": time, "mostly": 0.0}})
        self._dataset = dataset
        comparing = [rule for rule in rules if _compares(rule)]
        others = [rule for rule in rules if not _compares(rule)]
        self._suite = gx.ExpectationSuite(dataset.source_name, others)
        self._comparing_suite = gx.ExpectationSuite(
            f"{dataset.source_name}, comparing", comparing
        )
        logging.getLogger("great_expectations").propagate = False  # it logs its start
        context: Any = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = {"globally": False}
        asset = context.data_sources.add_pandas("rows").add_dataframe_asset(
            dataset.name
        )
        self._batch = asset.add_batch_definition_whole_dataframe("batch")

    def validate(self, rows: pa.Table, as_of: datetime) -> Validation:
        """Compare rows with the rules.

        Args:
            rows: Rows with the columns of the dataset.
            as_of: Newest event time that a row may have, aware UTC.

        Raises:
            BatchRejectedError: GX cannot evaluate a rule, such as a rule of an unknown column.

        """
        frame = rows.to_pandas(types_mapper=NULLABLE_TYPES.get)
        report = self._report(self._suite, frame, as_of)
        if self._comparing_suite.expectations:
            frame = _comparable(rows)
            _add_report(report, self._report(self._comparing_suite, frame, as_of))
        rejection = f"nothing was changed: {suite_file(self._dataset)}"
        validation = Validation([], [], {}, report, [])
        for outcome in validation.report["results"]:
            problem = _evaluation_problem(outcome["exception_info"])
            if problem:
                name = _rule_name(outcome["expectation_config"])
                raise BatchRejectedError(f"{rejection}: {name}: {problem}")
            _add_outcome(validation, outcome)
        return validation

    def _report(self, suite: Any, frame: pd.DataFrame, as_of: datetime) -> Any:
        """Return GX's results of a suite for rows; see `validate`."""
        from great_expectations.exceptions import SuiteParameterError  # noqa: PLC0415

        batch = self._batch.get_batch({"dataframe": frame})
        parameters = {"as_of": as_of, "fresh_from": as_of - self._dataset.silence}
        try:
            with np.errstate(invalid="ignore"):  # numpy warns of comparisons with a NaN
                results = batch.validate(
                    suite,
                    result_format="COMPLETE",
                    expectation_parameters=parameters,
                )
        except SuiteParameterError as exc:
            rejection = f"nothing was changed: {suite_file(self._dataset)}"
            raise BatchRejectedError(f"{rejection}: {exc}") from exc
        return results.to_json_dict()


def _comparable(rows: pa.Table) -> pd.DataFrame:
    """Return rows as GX can compare them: a null is a NaN, which no comparison holds for.

    Integers beside nulls stay integers: a double has no place for those from 2^53 on.
    """
    frame: pd.DataFrame = rows.to_pandas(integer_object_nulls=True)
    for field in rows.schema:
        is_number = pa.types.is_integer(field.type) or pa.types.is_boolean(field.type)
        if is_number and rows[field.name].null_count:
            column = frame[field.name]
            frame[field.name] = column.where(column.notna(), np.nan)
    return frame


def _add_report(report: dict[str, Any], more: dict[str, Any]) -> None:
    """Add the results of further rules to a report of GX."""
    report["results"] += more["results"]
    report["success"] = report["success"] and more["success"]
    counts = report["statistics"]
    for name in (
        "evaluated_expectations",
        "successful_expectations",
        "unsuccessful_expectations",
    ):
        counts[name] += more["statistics"][name]
    successes = counts["successful_expectations"]
    counts["success_percent"] = 100 * successes / counts["evaluated_expectations"]


def suite_file(dataset: Dataset) -> str:
    """Return the path of the dataset's suite below `feature_repo/`."""
    return f"expectations/{dataset.source_name}.json"


def suite_rules(dataset: Dataset) -> list[Any]:
    """Read the rules of the dataset's suite.

    Raises:
        DataError: The file is missing, or holds no suite.

    """
    file = EXPECTATIONS / f"{dataset.source_name}.json"
    try:
        return list(json.loads(file.read_text())["expectations"])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        expected = "expected Great Expectations' JSON with a list of rules under `expectations`"
        raise DataError(f"{suite_file(dataset)}: {expected}: {exc}") from exc


def suite_problems(dataset: Dataset) -> list[str]:
    """Return a line for each rule that GX cannot build; GX itself would leave the rule out.

    Raises:
        DataError: See `suite_rules`.

    """
    from great_expectations.expectations import expectation_configuration  # noqa: PLC0415

    problems = []
    for number, rule in enumerate(suite_rules(dataset), 1):
        try:
            expectation_configuration.ExpectationConfiguration(**rule).to_domain_obj()
        except Exception as exc:  # noqa: BLE001  (TypeError, pydantic's, GX's own)
            text = " ".join(str(exc).split())
            place = f"{suite_file(dataset)}: rule {number}"
            problems.append(
                f"{place}: {type(exc).__name__}: {text}, found {json.dumps(rule)}"
            )
    return problems


def _unique(key: Sequence[str]) -> dict[str, Any]:
    """Return the rule that each key occurs once."""
    if len(key) == 1:
        return {
            "type": "expect_column_values_to_be_unique",
            "kwargs": {"column": key[0]},
        }
    columns = {"column_list": [*key]}
    return {"type": "expect_compound_columns_to_be_unique", "kwargs": columns}


def _compares(rule: dict[str, Any]) -> bool:
    return bool(rule["type"].startswith(COMPARING_RULES))


def _is_warning(rule: dict[str, Any]) -> bool:
    return rule.get("severity") == "warning"


def _sets_aside(rule: dict[str, Any]) -> bool:
    """Whether a row that breaks the rule goes to quarantine."""
    return rule["type"].startswith(ROW_RULES) and not _is_warning(rule)


def _rule_name(rule: dict[str, Any]) -> str:
    return f"{rule['type']}({rule['kwargs'].get('column', 'table')})"


def _evaluation_problem(info: dict[str, Any]) -> str:
    """Return the first line of the error that kept GX from evaluating a rule; "" without error."""
    # GX nests an exception below the metric that raised it.
    for part in (info, *info.values()):
        if isinstance(part, dict) and part.get("exception_message"):
            return str(part["exception_message"]).splitlines()[0]
    return ""


def _is_without_value(outcome: dict[str, Any]) -> bool:
    """Whether a rule had no figure to judge: a column of nulls has no mean, one value no spread."""
    if not outcome["expectation_config"]["type"].startswith(RULES_OF_FIGURES):
        return False
    figure = outcome["result"].get("observed_value")
    if isinstance(figure, dict):
        return all(value is None for value in figure.get("values", [figure]))
    return figure is None


def _add_outcome(validation: Validation, outcome: dict[str, Any]) -> None:
    """Add the result of one rule to a validation."""
    rule = outcome["expectation_config"]
    details = outcome["result"]
    name = _rule_name(rule)
    positions = details.get("unexpected_index_list") or []
    unexpected_values = details.get("partial_unexpected_list") or []
    result = {
        "rule": rule,
        "observed": details.get("observed_value"),
        "examples": unexpected_values[:3],
        "rows": len(positions),
        "events": _sets_aside(rule),
        "outcome": "ok",
    }
    validation.results.append(result)
    if result["events"]:
        for position in positions:
            names = validation.bad_rows.get(position)
            validation.bad_rows[position] = f"{names}, {name}" if names else name
            result["outcome"] = "set aside"
        if "mostly" in rule["kwargs"] and len(positions) < SINGLE_ROWS:
            return
    if outcome["success"] or _is_without_value(outcome):
        return
    examples = json.dumps(result["examples"], default=str)
    text = f"expected {rule['kwargs']}, found {result['observed']}"
    if positions:
        text = f"{len(positions)} rows, such as {examples}"
    elif unexpected_values:  # distinct values, beside an observed value of None
        text = f"expected {rule['kwargs']}, found values such as {examples}"
    result["outcome"] = "warning" if _is_warning(rule) else "stopped"
    failures = validation.warnings if _is_warning(rule) else validation.rejections
    failures.append(f"{name}: {text}")
