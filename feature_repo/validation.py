"""Great Expectations: is a batch what the dataset's suite says?

The suite is GX's own JSON in `expectations/<dataset>.json`. A rule with `mostly` sets single rows
aside; a rule that fails as a whole rejects the batch, or only warns if its severity says so. Fewer
than `SINGLE_ROWS` failing rows are set aside whatever their share.
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

from core.errors import DataError
from core.files import reached, replace_folder
from core.settings import PROJECT
from feature_repo.definition import Dataset

EXPECTATIONS = PROJECT / "feature_repo" / "expectations"
SINGLE_ROWS = 20
SITE = "docs"
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
"""Of GX's rules those that a row keeps or breaks by itself, whatever rows are beside it."""
# Arrow's integers keep their nulls only in the nullable types; the suites name these.
NULLABLE: dict[str, Any] = {
    "int32": pd.Int32Dtype(),
    "int64": pd.Int64Dtype(),
    "float": pd.Float32Dtype(),
    "double": pd.Float64Dtype(),
    "bool": pd.BooleanDtype(),
}


@dataclass(frozen=True)
class Finding:
    """One rule that did not hold. rows: positions of the failing rows, if it speaks of rows."""

    rule: str
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

    def bad_rows(self, *, every: bool = False) -> dict[int, str]:
        """Position of each row that fails alone → the rules it broke.

        every: rows of rules that fail as a whole too.
        """
        rules: dict[int, list[str]] = {}
        for finding in self.findings:
            for row in finding.rows if finding.passed or every else ():
                rules.setdefault(row, []).append(finding.rule)
        return {row: ", ".join(broken) for row, broken in sorted(rules.items())}


def validate(
    dataset: Dataset, rows: pa.Table, as_of: datetime, docs: UPath | None = None
) -> Validation:
    """Hold `rows` against the dataset's suite; with `docs`, show it there as GX's Data Docs.

    Raises:
        DataError: the suite cannot be read, or has rules that Great Expectations cannot build.

    """
    fresh_from = (as_of - dataset.silence).isoformat()
    parameters = {"as_of": as_of.isoformat(), "fresh_from": fresh_from}
    return check(dataset.name, _sound_suite(dataset), rows, parameters, docs)


class RowRules:
    """The rules of a dataset's suite that speak of single rows, kept open: 0.08 s a batch.

    Raises:
        DataError: see `validate`.

    """

    def __init__(self, dataset: Dataset) -> None:
        rules = _sound_suite(dataset)
        wanted = [rule for rule in rules["expectations"] if rule["type"].startswith(ROW_RULES)]
        _, self._suite, self._batch = _open(dataset.name, rules | {"expectations": wanted}, {})
        self.never_null = {r["kwargs"]["column"] for r in wanted if r["type"] == NOT_NULL}
        """Columns in which a null is set aside."""

    def broken(self, rows: pa.Table, as_of: datetime) -> dict[int, str]:
        """Position of each row that fails → the rules it broke."""
        batch = self._batch.get_batch(batch_parameters={"dataframe": _frame(rows)})
        parameters = dict.fromkeys(PARAMETERS, as_of.isoformat())
        result = batch.validate(
            self._suite, result_format="COMPLETE", expectation_parameters=parameters
        )
        return _validation(result, {}).bad_rows(every=True)


def check(
    name: str,
    rules: Mapping[str, Any],
    rows: pa.Table,
    parameters: Mapping[str, str],
    docs: UPath | None = None,
) -> Validation:
    """Hold `rows` against a suite (GX's own JSON) by a checkpoint `name`.

    docs: folder of all Data Docs; those of the newest checkpoint `name` are kept in docs/name.
    """
    import great_expectations as gx  # noqa: PLC0415  (5 s; only where something is validated)
    from great_expectations.checkpoint import UpdateDataDocsAction  # noqa: PLC0415

    with TemporaryDirectory(prefix="gyre-data-docs-") as folder:
        pages = Path(folder)
        context, suite, batch = _open(name, rules, {SITE: _site(pages)} if docs else {})
        definition = gx.ValidationDefinition(name=name, data=batch, suite=suite)
        checkpoint = gx.Checkpoint(
            name=name,
            validation_definitions=[context.validation_definitions.add(definition)],
            actions=[UpdateDataDocsAction(name=SITE, site_names=[SITE])] if docs else [],
            result_format="COMPLETE",
        )
        done = context.checkpoints.add(checkpoint).run(
            batch_parameters={"dataframe": _frame(rows)}, expectation_parameters=dict(parameters)
        )
        if docs:
            with reached(f"{docs / name}"):
                replace_folder(docs / name, pages)
    (result,) = done.run_results.values()
    return _validation(result, {"suite": name, "rows": rows.num_rows})


def suite(name: str) -> dict[str, Any]:
    """Read `expectations/<name>.json`.

    Raises:
        DataError: it is not there or no suite.

    """
    file = f"expectations/{name}.json"
    try:
        rules: dict[str, Any] = json.loads((EXPECTATIONS / f"{name}.json").read_text())
    except (OSError, ValueError) as exc:
        raise DataError(f"{file}: cannot be read as a GX suite: {exc}") from exc
    if "expectations" not in rules:
        raise DataError(f"{file}: expected a list of rules under expectations")
    return rules


def suite_problems(name: str) -> list[str]:
    """One line for each rule that Great Expectations cannot build, and would leave out."""
    try:
        rules = suite(name)["expectations"]
    except DataError as exc:
        return [str(exc)]
    problems = {f"rule {number}": _problem(rule) for number, rule in enumerate(rules, 1)}
    return [f"expectations/{name}.json: {rule}: {text}" for rule, text in problems.items() if text]


def _sound_suite(dataset: Dataset) -> dict[str, Any]:
    if problems := suite_problems(dataset.name):
        raise DataError(f"{dataset.name}: nothing was changed: {'; '.join(problems)}")
    return suite(dataset.name)


def _problem(rule: Any) -> str:
    """Why a rule cannot be built; empty if it can."""
    from great_expectations.expectations import expectation_configuration  # noqa: PLC0415

    try:
        expectation_configuration.ExpectationConfiguration(**rule).to_domain_obj()
        values = [value for value in rule["kwargs"].values() if isinstance(value, dict)]
        if unknown := {value.get("$PARAMETER") for value in values} - PARAMETERS - {None}:
            return f"expected a parameter of {sorted(PARAMETERS)}, found {unknown}"
    except Exception as exc:  # noqa: BLE001  (TypeError, pydantic's, GX's own)
        return f"{type(exc).__name__}: {' '.join(str(exc).split())}, found {json.dumps(rule)}"
    return ""


def _open(name: str, rules: Mapping[str, Any], sites: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """Open Great Expectations in memory: its context, a suite, the definition of a batch."""
    import great_expectations as gx  # noqa: PLC0415
    from great_expectations.data_context.types import base  # noqa: PLC0415

    logging.getLogger("great_expectations").setLevel(logging.WARNING)  # it says where it is
    config = base.DataContextConfig(
        store_backend_defaults=base.InMemoryStoreBackendDefaults(),
        data_docs_sites=dict(sites),
        progress_bars=base.ProgressBarsConfig(globally=False),
    )
    context = gx.get_context(mode="ephemeral", project_config=config)
    asset = context.data_sources.add_pandas("rows").add_dataframe_asset(name)
    batch = asset.add_batch_definition_whole_dataframe("batch")
    return context, context.suites.add(gx.ExpectationSuite(**rules)), batch


def _frame(rows: pa.Table) -> pd.DataFrame:
    frame: pd.DataFrame = rows.to_pandas(types_mapper=lambda kind: NULLABLE.get(str(kind)))
    return frame


def _site(folder: Path) -> dict[str, Any]:
    """Configuration of Data Docs in `folder`."""
    return {
        "class_name": "SiteBuilder",
        "show_how_to_buttons": False,
        "store_backend": {
            "class_name": "TupleFilesystemStoreBackend",
            "base_directory": str(folder),
        },
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
    }


def _validation(result: Any, head: dict[str, Any]) -> Validation:
    """Findings of GX's result; its report begins with `head`."""
    outcomes = [outcome.to_json_dict() for outcome in result.results]
    findings = (_finding(outcome) for outcome in outcomes)
    broken = tuple(finding for finding in findings if not finding.passed or finding.rows)
    return Validation(broken, head | {"results": outcomes})


def _finding(outcome: dict[str, Any]) -> Finding:
    config, result, raised = outcome["expectation_config"], outcome["result"], _raised(outcome)
    kwargs = config["kwargs"]
    rows = tuple(result.get("unexpected_index_list") or ())
    rule = f"{config['type']}({kwargs.get('column', 'table')})"
    if rows:
        told = f"{len(rows)} rows, such as {result.get('partial_unexpected_list', [])[:3]}"
    else:
        expected = {k: v for k, v in kwargs.items() if k not in {"column", "batch_id"}}
        found = result.get("observed_value", raised or "nothing to compare")
        told = f"expected {expected}, found {found}"
    return Finding(
        rule=rule,
        severity="critical" if raised else str(config.get("severity", "critical")),
        passed=bool(outcome["success"]) or ("mostly" in kwargs and 0 < len(rows) < SINGLE_ROWS),
        message=f"{rule}: {told}",
        rows=rows,
    )


def _raised(outcome: dict[str, Any]) -> str:
    """What GX says where it could not look: no such column, or values it cannot compare."""
    info = outcome.get("exception_info") or {}
    said = [info, *(value for value in info.values() if isinstance(value, dict))]
    texts = [str(each["exception_message"]) for each in said if each.get("exception_message")]
    return texts[0].splitlines()[0] if texts else ""
