"""Great Expectations: is a batch what the dataset's suite says?

The suite is GX's own JSON in `expectations/<dataset>.json`. A rule with `mostly` sets single rows
aside; a rule that fails as a whole rejects the batch, or only warns if its severity says so. Fewer
than `SINGLE_ROWS` failing rows are set aside whatever their share: one bad order among three due
in a quiet hour is a bad order, not a bad batch.
"""

from __future__ import annotations

import json
import logging
import shutil
from contextlib import nullcontext
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from stack.errors import DataError
from stack.storage import one_writer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    import pyarrow as pa

    from feature_repo.definition import Dataset

EXPECTATIONS = Path(__file__).parent / "expectations"
SINGLE_ROWS = 20
SITE = "docs"
PARAMETERS = ("as_of", "fresh_from")
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

    def bad_rows(self, *, every: bool = False) -> dict[int, str]:
        """Position of each row that fails alone → the rules it broke.

        every: rows of rules that fail as a whole too.
        """
        rules: dict[int, list[str]] = {}
        for finding in self.findings:
            for row in finding.rows if finding.passed or every else ():
                rules.setdefault(row, []).append(f"{finding.rule}({finding.column})")
        return {row: ", ".join(broken) for row, broken in sorted(rules.items())}


def validate(
    dataset: Dataset, rows: pa.Table, as_of: datetime, docs: Path | None = None
) -> Validation:
    """Hold `rows` against the dataset's suite; with `docs`, show it there as GX's Data Docs.

    Raises:
        DataError: the suite cannot be read, or has rules that Great Expectations cannot build.

    """
    if problems := suite_problems(dataset.name):
        raise DataError(f"{dataset.name}: nothing was changed: {'; '.join(problems)}")
    silent = (as_of - dataset.silence).isoformat()
    parameters = {"as_of": as_of.isoformat(), "fresh_from": silent}
    return check(dataset.name, suite(dataset.name), rows, parameters, docs)


class RowRules:
    """The rules of a dataset's suite that speak of single rows, kept open: 0.08 s a batch.

    Raises:
        DataError: the suite cannot be read, or has rules that Great Expectations cannot build.

    """

    def __init__(self, dataset: Dataset) -> None:
        import great_expectations as gx  # noqa: PLC0415  (5 s; only where something is validated)

        if problems := suite_problems(dataset.name):
            raise DataError(f"{dataset.name}: {'; '.join(problems)}")
        rules = suite(dataset.name)
        rules["expectations"] = [
            rule for rule in rules["expectations"] if rule["type"].startswith(ROW_RULES)
        ]
        context = _context()
        self._suite = context.suites.add(gx.ExpectationSuite(**rules))
        self._batch = _batch_definition(context, dataset.name)
        self.never_null = {
            rule["kwargs"]["column"] for rule in rules["expectations"] if rule["type"] == NOT_NULL
        }
        """Columns in which a null is set aside."""

    def broken(self, rows: pa.Table, as_of: datetime) -> dict[int, str]:
        """Position of each row that fails → the rules it broke."""
        batch = self._batch.get_batch(batch_parameters={"dataframe": _frame(rows)})
        parameters = {"as_of": as_of.isoformat(), "fresh_from": as_of.isoformat()}
        result = batch.validate(
            self._suite, result_format="COMPLETE", expectation_parameters=parameters
        )
        outcomes = [outcome.to_json_dict() for outcome in result.results]
        findings = tuple(_finding(outcome) for outcome in outcomes)
        return Validation(findings, {}).bad_rows(every=True)


def check(
    name: str,
    rules: Mapping[str, Any],
    rows: pa.Table,
    parameters: Mapping[str, str],
    docs: Path | None = None,
) -> Validation:
    """Hold `rows` against a suite (GX's own JSON) by a checkpoint `name`.

    docs: folder of all Data Docs; those of the newest checkpoint `name` are kept in docs/name.
    """
    import great_expectations as gx  # noqa: PLC0415  (5 s; only where something is validated)
    from great_expectations.checkpoint import UpdateDataDocsAction  # noqa: PLC0415

    made = None if docs is None else docs / f"{name}.part"
    context = _context({} if made is None else {SITE: _site(made)})
    batch = _batch_definition(context, name)
    definition = gx.ValidationDefinition(
        name=name, data=batch, suite=context.suites.add(gx.ExpectationSuite(**rules))
    )
    checkpoint = gx.Checkpoint(
        name=name,
        validation_definitions=[context.validation_definitions.add(definition)],
        actions=[] if made is None else [UpdateDataDocsAction(name=SITE, site_names=[SITE])],
        result_format="COMPLETE",
    )
    frame = _frame(rows)
    # Two trainings of one model write the same pages.
    with nullcontext() if made is None else one_writer(made):
        done = context.checkpoints.add(checkpoint).run(
            batch_parameters={"dataframe": frame}, expectation_parameters=dict(parameters)
        )
        if made is not None:
            shutil.rmtree(made.with_suffix(""), ignore_errors=True)
            made.rename(made.with_suffix(""))
    (result,) = done.run_results.values()
    outcomes = [outcome.to_json_dict() for outcome in result.results]
    findings = tuple(_finding(outcome) for outcome in outcomes)
    return Validation(
        findings=tuple(f for f in findings if not f.passed or f.rows),
        report={"suite": name, "rows": rows.num_rows, "results": outcomes},
    )


def _context(sites: Mapping[str, Any] | None = None) -> Any:
    """Open Great Expectations in memory; sites: its Data Docs."""
    import great_expectations as gx  # noqa: PLC0415
    from great_expectations.data_context.types import base  # noqa: PLC0415

    logging.getLogger("great_expectations").setLevel(logging.WARNING)  # it says where it is
    return gx.get_context(
        mode="ephemeral",
        project_config=base.DataContextConfig(
            store_backend_defaults=base.InMemoryStoreBackendDefaults(),
            data_docs_sites=dict(sites or {}),
            progress_bars=base.ProgressBarsConfig(globally=False),
        ),
    )


def _batch_definition(context: Any, name: str) -> Any:
    asset = context.data_sources.add_pandas("rows").add_dataframe_asset(name)
    return asset.add_batch_definition_whole_dataframe("batch")


def _frame(rows: pa.Table) -> pd.DataFrame:
    frame: pd.DataFrame = rows.to_pandas(types_mapper=lambda kind: NULLABLE.get(str(kind)))
    return frame


def _site(folder: Path) -> dict[str, Any]:
    """Configuration of Data Docs in `folder`, which a killed run may have left behind."""
    shutil.rmtree(folder, ignore_errors=True)
    place = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder)}
    return {
        "class_name": "SiteBuilder",
        "show_how_to_buttons": False,
        "store_backend": place,
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
    }


def suite(name: str) -> dict[str, Any]:
    """Read `expectations/<name>.json`.

    Raises:
        DataError: it is not there or no suite.

    """
    path = EXPECTATIONS / f"{name}.json"
    try:
        rules: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as exc:
        raise DataError(f"expectations/{path.name}: cannot be read as a GX suite: {exc}") from exc
    return rules


def suite_problems(name: str) -> list[str]:
    """One line for each rule that Great Expectations cannot build, and would leave out."""
    try:
        rules = suite(name)["expectations"]
    except DataError as exc:
        return [str(exc)]
    except (KeyError, TypeError):
        return [f"expectations/{name}.json: expected a list of rules under expectations"]
    problems = {f"rule {number}": _problem(rule) for number, rule in enumerate(rules, 1)}
    return [f"expectations/{name}.json: {rule}: {text}" for rule, text in problems.items() if text]


def _problem(rule: Any) -> str:
    """Why a rule cannot be built; empty if it can."""
    from great_expectations.expectations import expectation_configuration, registry  # noqa: PLC0415

    types = registry.list_registered_expectation_implementations()
    try:
        kind = rule["type"]
        names = [(kind, types)]
        if kind in types:
            fields = registry.get_expectation_impl(kind).__fields__
            names = [(key, fields) for key in rule["kwargs"]]
            values = [value for value in rule["kwargs"].values() if isinstance(value, dict)]
            names += [(each["$PARAMETER"], PARAMETERS) for each in values if "$PARAMETER" in each]
        for name, known in names:
            if name not in known:
                near = get_close_matches(str(name), known, n=1) or sorted(known)
                return f"{kind}: expected {' or '.join(near)}, found {name!r}"
        expectation_configuration.ExpectationConfiguration(**rule).to_domain_obj()
    except Exception as exc:  # noqa: BLE001  (KeyError, TypeError, pydantic's, GX's own)
        return f"{type(exc).__name__}: {' '.join(str(exc).split())}, found {json.dumps(rule)}"
    return ""


def _finding(outcome: dict[str, Any]) -> Finding:
    config, result = outcome["expectation_config"], outcome["result"]
    rule, kwargs = config["type"], config["kwargs"]
    column = kwargs.get("column")
    rows = tuple(result.get("unexpected_index_list") or ())
    return Finding(
        rule=rule,
        column=column,
        severity="critical" if _raised(outcome) else str(config.get("severity", "critical")),
        passed=bool(outcome["success"]) or ("mostly" in kwargs and 0 < len(rows) < SINGLE_ROWS),
        message=f"{rule}({column or 'table'}): {_found(outcome, rows)}",
        rows=rows,
    )


def _found(outcome: dict[str, Any], rows: tuple[int, ...]) -> str:
    result, config = outcome["result"], outcome["expectation_config"]["kwargs"]
    expected = {k: v for k, v in config.items() if k not in {"column", "batch_id"}}
    if rows:
        return f"{len(rows)} rows, such as {result.get('partial_unexpected_list', [])[:3]}"
    found = result.get("observed_value", _raised(outcome) or "nothing to compare")
    return f"expected {expected}, found {found}"


def _raised(outcome: dict[str, Any]) -> str:
    """What GX says where it could not look: no such column, or values it cannot compare."""
    info = outcome.get("exception_info") or {}
    said = [info, *(value for value in info.values() if isinstance(value, dict))]
    texts = [str(each["exception_message"]) for each in said if each.get("exception_message")]
    return texts[0].splitlines()[0] if texts else ""
