"""`gyre predict` and `models`; versions: how they are made, evaluated, promoted."""

from __future__ import annotations

import json
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.terminal import progress, table
from cli.verbs import AsJson, AsOf, Name, Reason, begin, log_to_stderr, say, signal, who
from core.errors import PromotionRefusedError, RegistryError, SettingsError, StackError
from core.settings import load_settings
from core.spec import load_spec, load_specs
from mlflow_server.roles import CHALLENGER, PRODUCTION, ROLES, SHADOW

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

    from mlflow_server.api.registry import Registry
    from mlflow_server.promotion.ledger import Ledger, LedgerRow

REPLACES_HELP = "The version expected in the role now; `none` for none."
SOURCE_HELP = (
    "runs:/RUN/model or models:/NAME/7 of MLflow, or a folder that MLflow saved."
)
ROLLOUT_HELP = (
    "Begin a rollout: the version is the shadow, and the DAG rollout_MODEL moves it on."
)
FROM_HELP = (
    "A table with the rows to score: keys, request data, and event_timestamp if a row has a time. "
    "It is named as the source of a label."
)
PERCENT_HELP = "How many of a hundred entities a challenger answers."


def predict(
    model: Name = None,
    entity: Annotated[
        list[str] | None,
        typer.Option(
            help="KEY=VALUE: a column of the key, or request data; repeatable. Numbers, true and "
            "false are read as JSON; in a shell the text 4 is 'KEY=\"4\"'."
        ),
    ] = None,
    source: Annotated[
        typer.FileText | None,
        typer.Option("--from", help="A JSON file with a list of requests; - is stdin."),
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Ask serving for a prediction of MODEL, or of the default model."""
    import httpx  # noqa: PLC0415  (0.2 s)

    from stack.serving_client import ask_serving  # noqa: PLC0415

    settings = load_settings()
    path = f"/models/{model}/predict/batch" if model else "/predict/batch"
    try:
        rows = json.load(source) if source else [dict(map(_column, entity or ()))]
        answer = ask_serving(settings, path, rows)
    except ValueError as exc:
        raise SettingsError(
            f"expected --entity KEY=VALUE, or --from with a JSON file; found: {exc}"
        ) from exc
    except httpx.HTTPError as exc:
        raise StackError(
            f"serving does not answer at {settings.serving_address}: {exc}; see: gyre status"
        ) from exc
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        raise SettingsError(
            "serving refuses the token (401): name its file in GYRE_SERVING_TOKENS_FILE"
        )
    if answer.is_error:
        raise StackError(f"serving answers {answer.status_code}: {answer.text}")
    predictions = answer.json()
    say(predictions, predictions, as_json=as_json)


def _column(assignment: str) -> tuple[str, Any]:
    """Return name and value of KEY=VALUE; a value that is no JSON is a text.

    Raises:
        ValueError: It has no `=`.

    """
    name, separator, text = assignment.partition("=")
    if not separator:
        raise ValueError(assignment)
    try:
        return name, json.loads(text)
    except json.JSONDecodeError:
        return name, text


def list_models(*, as_json: AsJson = False) -> None:
    """List the models: versions by role, last promotion, newest verdict, what is predicted."""
    from mlflow_server.promotion.rules import current, last_applied  # noqa: PLC0415
    from monitoring.decisions.store import newest_decisions  # noqa: PLC0415

    settings = load_settings()
    models = []
    for spec in load_specs():
        rows = _ledger_rows(spec.name)
        promotion = last_applied(rows, PRODUCTION)
        decisions = newest_decisions(settings, spec.name, 1)
        models.append(
            {
                "model": spec.name,
                **{role: current(rows, role) for role in ROLES},
                "since": promotion and promotion.time,
                "verdict": f"version {decisions[0].version}: {decisions[0].verdict}"
                if decisions
                else None,
                "predicts": spec.description
                or f"{spec.label_name} of {', '.join(spec.entity_key)}",
            }
        )
    say(models, models, as_json=as_json)


def train(
    model: str,
    as_of: AsOf = None,
    reason: Annotated[str, typer.Option(help="Why; in run and ledger.")] = "by hand",
    *,
    force: Annotated[
        bool, typer.Option("--force", help="Also with nothing new to learn.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train, evaluate, gate, register and promote; or say why not.

    A refused challenger and nothing new to learn are expected outcomes: exit code 0.
    """
    settings, spec, time = begin(model, as_of)
    key = f"shell-{uuid.uuid4().hex[:12]}"
    with progress(f"train {model}"):
        from stack.airflow_api import promotion_asset  # noqa: PLC0415  (heavy)
        from training.chain import train as run  # noqa: PLC0415

        report = run(
            settings, spec, time, key=key, reason=reason, who=who(), force=force
        )
    if report.version and not spec.promotion.approval:
        signal(settings, promotion_asset(spec))
    say(f"{model}: {report.outcome}", report, as_json=as_json)


def adopt(
    model: str,
    source: Annotated[str, typer.Argument(help=SOURCE_HELP)],
    as_of: AsOf = None,
    reason: Annotated[str, typer.Option(help="Why; in run and ledger.")] = "by hand",
    *,
    as_json: AsJson = False,
) -> None:
    """Make a version of a model that was trained elsewhere: convert, evaluate, gate, promote.

    The spec of MODEL names its features and its labels; it needs no estimators.
    """
    settings, spec, time = begin(model, as_of)
    key = f"adopt-{uuid.uuid4().hex[:12]}"
    with progress(f"adopt {model}"):
        from stack.airflow_api import promotion_asset  # noqa: PLC0415  (heavy)
        from training.adopt import adopt as run  # noqa: PLC0415

        report = run(settings, spec, source, time, key=key, reason=reason, who=who())
    if report.version and not spec.promotion.approval:
        signal(settings, promotion_asset(spec))
    say(f"{model}: {report.outcome}", report, as_json=as_json)


def evaluation(
    model: str,
    version: Annotated[
        str | None, typer.Argument(help="The version of the newest run if absent.")
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Print a training's metrics beside the champion's, and its gates, in Markdown."""
    settings, spec, _ = begin(model, None)
    from training.summary import summary  # noqa: PLC0415  (heavy)

    report = summary(settings, spec, version)
    say(report.markdown(), report, as_json=as_json)


def reproduce(model: str, version: str, *, as_json: AsJson = False) -> None:
    """Build a version again elsewhere from its lineage; exit code 1 unless all is the same.

    Rows and spec are taken from its run. Code, a lock file or a feature definition that
    changed is named.
    """
    log_to_stderr()
    settings = load_settings()
    with progress(f"reproduce {model}"):
        from training.reproduce import reproduce as build_again  # noqa: PLC0415  (heavy)

        report = build_again(settings, model, version)
    say(report.summary(), report.as_json(), as_json=as_json)
    raise typer.Exit(0 if report.reproduced else 1)


def score(
    model: str,
    as_of: AsOf = None,
    source: Annotated[str | None, typer.Option("--from", help=FROM_HELP)] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Score the population, or other rows, with the version in production.

    A second run of a day replaces the first. Scores are a partition of GYRE_HOME/data/scores, a
    Delta table, and also go where the spec says; score_MODEL does it nightly in Airflow.
    """
    settings, spec, time = begin(model, as_of)
    with progress(f"score {model}"):
        from training.batch import score_population  # noqa: PLC0415  (heavy)

        report = score_population(settings, spec, time, source)
    say(report.summary(), report, as_json=as_json)


def promote(
    model: str,
    version: str,
    reason: Reason,
    replaces: Annotated[str | None, typer.Option(help=REPLACES_HELP)] = None,
    role: Annotated[
        str, typer.Option(help="production, challenger or shadow")
    ] = "production",
    percent: Annotated[
        int | None, typer.Option(min=1, max=100, help=PERCENT_HELP)
    ] = None,
    *,
    rollout: Annotated[bool, typer.Option("--rollout", help=ROLLOUT_HELP)] = False,
    as_json: AsJson = False,
) -> None:
    """Put a version into a role: one ledger row, or a refusal that says who won.

    A challenger answers --percent of the entities, the same ones each time; a shadow scores
    every request and answers none. Both end by gyre release, and a challenger with production.
    """
    if rollout:
        if role == CHALLENGER:
            raise SettingsError("--rollout: it begins with a shadow: leave out --role")
        role = SHADOW
    if role == CHALLENGER and percent is None:
        raise SettingsError(
            "--percent: expected how many entities of a hundred, such as --percent 10"
        )
    from mlflow_server.promotion import promote  # noqa: PLC0415

    expected = None if replaces == "none" else replaces or promote.UNSET
    with _opened(model) as (registry, ledger):
        damage = registry.damage(model, version)
        if damage:
            raise PromotionRefusedError(
                f"{model}: version {version} is damaged: {damage}"
            )
        row = promote.promote(
            registry,
            ledger,
            model,
            version,
            who=who(),
            why=reason,
            role=role,
            replaces=expected,
            percent=percent or 100,
            action="rollout" if rollout else "promote",
        )
    if role == "production":
        signal(load_settings(), f"promoted/{model}")
    say(ledger_table(row), row.as_json(), as_json=as_json)


def release(
    model: str,
    reason: Reason,
    role: Annotated[str, typer.Option(help="challenger or shadow")],
    *,
    as_json: AsJson = False,
) -> None:
    """End a challenger or shadow: production answers everybody again, one ledger row says so."""
    from mlflow_server.promotion import promote  # noqa: PLC0415

    with _opened(model) as (registry, ledger):
        row = promote.release(registry, ledger, model, role, who=who(), why=reason)
    say(ledger_table(row), row.as_json(), as_json=as_json)


def rollback(model: str, reason: Reason, *, as_json: AsJson = False) -> None:
    """Go back to the version that was in production before; a second call goes back further.

    It also ends a challenger: the restored version answers every entity.
    """
    from mlflow_server.promotion import promote  # noqa: PLC0415

    with _opened(model) as (registry, ledger):
        row = promote.rollback(registry, ledger, model, who=who(), why=reason)
    signal(load_settings(), f"promoted/{model}")
    say(ledger_table(row), row.as_json(), as_json=as_json)


def ledger(model: str, *, as_json: AsJson = False) -> None:
    """List every change of a role, the oldest first: who, when, why, from, to."""
    rows = _ledger_rows(model)
    text = ledger_table(*rows) if rows else f"{model}: no version was ever promoted"
    say(text, [row.as_json() for row in rows], as_json=as_json)


def _ledger_rows(model: str) -> list[LedgerRow]:
    from mlflow_server.promotion.promote import reconcile  # noqa: PLC0415

    with _opened(model) as (registry, ledger):
        try:
            return reconcile(registry, ledger, model)
        except RegistryError as exc:
            typer.echo(f"changes outside Gyre may be missing: {exc}", err=True)
            return ledger.rows(model)


@contextmanager
def _opened(model: str) -> Iterator[tuple[Registry, Ledger]]:
    from mlflow_server.api.registry import Registry  # noqa: PLC0415
    from mlflow_server.promotion.ledger import Ledger  # noqa: PLC0415

    load_spec(model)  # its error for an unknown name lists the models
    settings = load_settings()
    with Ledger(settings) as ledger:
        yield Registry(settings), ledger


def ledger_table(*rows: LedgerRow) -> Table:
    """Return the ledger's rows as `gyre ledger` shows them."""
    lines = []
    for row in rows:
        share = f" {row.percent} %" if row.role == CHALLENGER and row.to_version else ""
        change = f"{row.from_version or 'none'} → {row.to_version or 'none'}"
        if not row.applied_at:
            change += ", not applied"
        lines.append(
            (
                row.sequence,
                row.time,
                row.action,
                f"{row.role}{share}",
                change,
                row.who,
                row.why,
            )
        )
    return table(("", "time", "action", "role", "change", "by", "why"), lines)
