"""`gyre promote`, `release`, `rollback` and `ledger`: what is in which role, and why."""

from __future__ import annotations

from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from cli.verbs import AsJson, Reason, say, who
from stack.errors import PromotionRefusedError, RegistryError, SettingsError
from stack.settings import load_settings
from stack.spec import load_spec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mlflow_server.ledger import Ledger, LedgerRow
    from mlflow_server.registry import Registry


def promote(
    model: str,
    version: str,
    reason: Reason,
    replaces: Annotated[
        str | None,
        typer.Option("--replaces", help="The version expected in the role now; `none` for none."),
    ] = None,
    role: Annotated[str, typer.Option(help="production, challenger or shadow")] = "production",
    percent: Annotated[
        int | None,
        typer.Option(min=1, max=100, help="How many of a hundred entities a challenger answers."),
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Put a version into a role: one ledger row, or a refusal that says who won.

    A challenger answers --percent of the entities, the same ones each time; a shadow scores
    every request and answers none. Both end by gyre release, and a challenger with production.
    """
    if role == "challenger" and percent is None:
        raise SettingsError("--percent: how many entities of a hundred? Such as --percent 10")
    from mlflow_server.promotion import UNSET  # noqa: PLC0415
    from mlflow_server.promotion import promote as put  # noqa: PLC0415

    expected = UNSET if replaces is None else None if replaces == "none" else replaces
    with _opened(model) as (registry, ledger):
        if wrong := registry.damage(model, version):
            raise PromotionRefusedError(f"{model}: version {version} is damaged: {wrong}")
        row = put(
            registry, ledger, model, version, who=who(), why=reason, replaces=expected, role=role,
            percent=100 if percent is None else percent,
        )  # fmt: skip
    say(_line(row), row.as_json(), as_json=as_json)


def release(
    model: str,
    reason: Reason,
    role: Annotated[str, typer.Option(help="challenger or shadow")],
    *,
    as_json: AsJson = False,
) -> None:
    """End a challenger or shadow: production answers everybody again, one ledger row says so."""
    from mlflow_server.promotion import release as end  # noqa: PLC0415

    with _opened(model) as (registry, ledger):
        row = end(registry, ledger, model, role, who=who(), why=reason)
    say(_line(row), row.as_json(), as_json=as_json)


def rollback(model: str, reason: Reason, *, as_json: AsJson = False) -> None:
    """Go back to the version that was in production before; again goes back further.

    A challenger ends with it: everybody is answered by the version that is gone back to.
    """
    from mlflow_server.promotion import rollback as go_back  # noqa: PLC0415

    with _opened(model) as (registry, ledger):
        row = go_back(registry, ledger, model, who=who(), why=reason)
    say(_line(row), row.as_json(), as_json=as_json)


def ledger(model: str, *, as_json: AsJson = False) -> None:
    """Every change of a role, oldest first: who, when, why, from, to."""
    from mlflow_server.promotion import reconcile  # noqa: PLC0415

    with _opened(model) as (registry, ledger):
        try:
            rows = reconcile(registry, ledger, model)
        except RegistryError as exc:
            typer.echo(f"changes outside Gyre may be missing: {exc}", err=True)
            rows = ledger.rows(model)
    lines = [_line(row) for row in rows] or [f"{model}: nothing was ever promoted"]
    say("\n".join(lines), [row.as_json() for row in rows], as_json=as_json)


@contextmanager
def _opened(model: str) -> Iterator[tuple[Registry, Ledger]]:
    from mlflow_server.ledger import Ledger  # noqa: PLC0415
    from mlflow_server.registry import Registry  # noqa: PLC0415

    load_spec(model)  # a name that is no model gets the list of those there are
    settings = load_settings()
    with closing(Ledger(settings)) as ledger:
        yield Registry(settings), ledger


def _line(row: LedgerRow) -> str:
    change = f"{row.from_version or 'none'} → {row.to_version or 'none'}"
    change += "" if row.applied_at else "  not applied"
    share = f" {row.percent} %" if row.role == "challenger" and row.to_version else ""
    role = f"{row.time:%Y-%m-%d %H:%M:%S}Z  {row.role}{share}"
    return f"{row.sequence:>3}  {role}  {change}  by {row.who}: {row.why}"
