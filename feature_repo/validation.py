"""Great Expectations: do rows hold to the suite of their dataset?

The suite is GX's own JSON in `expectations/<dataset>.json`. Its rules are of three kinds:

- A rule of single rows sets each row aside that breaks it, whether an ingest or an event brings
  the row. With `mostly`, a delivery of an ingest stops where a larger share of its rows breaks the
  rule. Without, it stops at the first.
- A rule over many rows judges deliveries of an ingest alone.
- A rule of severity `warning` is reported. It stops nothing and sets nothing aside.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import pyarrow as pa
from upath import UPath

from core.errors import BatchRejectedError, DataError
from core.files import reached, replace_folder
from core.settings import PROJECT
from feature_repo.definition import Dataset

EXPECTATIONS = PROJECT / "feature_repo" / "expectations"
SINGLE_ROWS = 20
"""Fewer rows than these never stop a delivery by a rule with `mostly`, whatever their share."""
PARAMETERS = {"as_of", "fresh_from"}
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
"""GX's rules that a row keeps or breaks by itself, whatever rows are beside it."""
NULLABLE_TYPES: dict[str, Any] = {
    "int64": pd.Int64Dtype(),
    "double": pd.Float64Dtype(),
    "bool": pd.BooleanDtype(),
}
"""pandas' types that keep the nulls of an Arrow column; the suites name these."""


@dataclass(frozen=True)
class Validation:
    """What a suite says of rows.

    rejections: rules that failed as a whole, in words; a delivery must stop.
    warnings: rules of severity `warning` that failed as a whole.
    bad_rows: position of each row to set aside → the names of the rules that it broke.
    report: GX's own results.
    """

    rejections: list[str]
    warnings: list[str]
    bad_rows: dict[int, str]
    report: dict[str, Any]

    def good(self, rows: pa.Table) -> pa.Table:
        """Return those of the validated rows that are not set aside."""
        is_good = [position not in self.bad_rows for position in range(rows.num_rows)]
        return rows.filter(pa.array(is_good, pa.bool_()))


class DatasetRules:
    """The suite of a dataset, open in Great Expectations: a batch takes 0.1 s.

    Args:
        dataset: Whose suite it is.
        for_events: Open only the rules that events pass.

    Raises:
        DataError: The suite cannot be read, or GX cannot build a rule of it.

    """

    def __init__(self, dataset: Dataset, *, for_events: bool = False) -> None:
        import great_expectations as gx  # noqa: PLC0415  (5 s; only where rows are validated)
        from great_expectations.core.run_identifier import RunIdentifier  # noqa: PLC0415

        problems = suite_problems(dataset)
        if problems:
            raise DataError(f"nothing was changed: {'; '.join(problems)}")
        rules = suite_rules(dataset)
        if for_events:
            rules = [rule for rule in rules if _sets_aside(rule)]
        self._dataset = dataset
        self.never_null = {rule["kwargs"]["column"] for rule in rules if rule["type"] == NOT_NULL}
        """Columns in which a null breaks a rule."""
        logging.getLogger("great_expectations").propagate = False  # it logs its start
        self._context: Any = gx.get_context(mode="ephemeral")
        self._context.variables.progress_bars = {"globally": False}
        source = self._context.data_sources.add_pandas("rows")
        asset = source.add_dataframe_asset(dataset.name)
        suite = gx.ExpectationSuite(dataset.source_name, rules)
        definition = gx.ValidationDefinition(
            name=dataset.name,
            data=asset.add_batch_definition_whole_dataframe("batch"),
            suite=self._context.suites.add(suite),
        )
        self._definition = self._context.validation_definitions.add(definition)
        # The context keeps the results of each run: those of one identifier replace each other.
        self._run_id = RunIdentifier(run_name="newest")

    def validate(self, rows: pa.Table, as_of: datetime) -> Validation:
        """Hold rows against the rules.

        Args:
            rows: With the columns of the dataset.
            as_of: The newest event time that a row may have.

        Raises:
            BatchRejectedError: GX cannot evaluate a rule, such as one of an unknown column.

        """
        frame = rows.to_pandas(types_mapper=lambda kind: NULLABLE_TYPES.get(str(kind)))
        parameters = {"as_of": as_of, "fresh_from": as_of - self._dataset.silence}
        results = self._definition.run(
            batch_parameters={"dataframe": frame},
            expectation_parameters=parameters,
            result_format="COMPLETE",
            run_id=self._run_id,
        )
        validation = Validation([], [], {}, results.to_json_dict())
        for outcome in validation.report["results"]:
            _add_outcome(validation, outcome)
        return validation

    def write_docs(self, folder: UPath) -> None:
        """Put GX's Data Docs of the last rows in place of what `folder` holds."""
        with TemporaryDirectory(prefix="gyre-data-docs-") as pages:
            backend = {"class_name": "TupleFilesystemStoreBackend", "base_directory": pages}
            site = {
                "class_name": "SiteBuilder",
                "show_how_to_buttons": False,
                "store_backend": backend,
            }
            self._context.add_data_docs_site("docs", site)
            self._context.build_data_docs(site_names=["docs"])
            with reached(f"{folder}"):
                replace_folder(folder, Path(pages))


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
    """Return a line for each rule that GX cannot build; GX itself would leave it out.

    Raises:
        DataError: See `suite_rules`.

    """
    problems = []
    for number, rule in enumerate(suite_rules(dataset), 1):
        problem = _rule_problem(rule)
        if problem:
            problems.append(f"{suite_file(dataset)}: rule {number}: {problem}")
    return problems


def delivery_rules(dataset: Dataset) -> list[str]:
    """Return the names of the rules that judge deliveries alone: events do not pass them."""
    return [_rule_name(rule) for rule in suite_rules(dataset) if not _sets_aside(rule)]


def _is_warning(rule: Mapping[str, Any]) -> bool:
    return rule.get("severity") == "warning"


def _sets_aside(rule: Mapping[str, Any]) -> bool:
    """Whether a row that breaks the rule goes to quarantine."""
    return rule["type"].startswith(ROW_RULES) and not _is_warning(rule)


def _rule_name(rule: Mapping[str, Any]) -> str:
    return f"{rule['type']}({rule['kwargs'].get('column', 'table')})"


def _rule_problem(rule: Any) -> str:
    """Return why GX cannot build a rule; empty if it can."""
    from great_expectations.expectations import expectation_configuration  # noqa: PLC0415

    try:
        expectation_configuration.ExpectationConfiguration(**rule).to_domain_obj()
        arguments = rule["kwargs"].values()
        parameters = {value.get("$PARAMETER") for value in arguments if isinstance(value, dict)}
        unknown_parameters = parameters - PARAMETERS - {None}
    except Exception as exc:  # noqa: BLE001  (TypeError, pydantic's, GX's own)
        text = " ".join(str(exc).split())
        return f"{type(exc).__name__}: {text}, found {json.dumps(rule)}"
    if unknown_parameters:
        return f"expected a parameter of {sorted(PARAMETERS)}, found {unknown_parameters}"
    return ""


def _add_outcome(validation: Validation, outcome: dict[str, Any]) -> None:
    """Add what GX says of one rule to a validation."""
    rule = outcome["expectation_config"]
    details = outcome["result"]
    name = _rule_name(rule)
    error = _error_text(outcome["exception_info"])
    if error:
        file = f"expectations/{validation.report['suite_name']}.json"
        raise BatchRejectedError(f"nothing was changed: {file}: {name}: {error}")
    positions = details.get("unexpected_index_list") or []
    is_tolerated = "mostly" in rule["kwargs"] and 0 < len(positions) < SINGLE_ROWS
    if _sets_aside(rule):
        for position in positions:
            names = validation.bad_rows.get(position)
            validation.bad_rows[position] = f"{names}, {name}" if names else name
        if is_tolerated:
            return
    if not outcome["success"]:
        failures = validation.warnings if _is_warning(rule) else validation.rejections
        text = f"expected {rule['kwargs']}, found {details.get('observed_value')}"
        if positions:
            examples = json.dumps(details["partial_unexpected_list"][:3], default=str)
            text = f"{len(positions)} rows, such as {examples}"
        failures.append(f"{name}: {text}")


def _error_text(info: Mapping[str, Any]) -> str:
    """Return the first line of what kept GX from evaluating a rule; empty if nothing did."""
    # GX nests an exception below the metric that raised it.
    for part in (info, *info.values()):
        if isinstance(part, dict) and part.get("exception_message"):
            return str(part["exception_message"]).splitlines()[0]
    return ""
