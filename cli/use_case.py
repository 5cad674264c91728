"""`gyre new` and `gyre check`: the three files of a use case, and problems in them."""

import json
import keyword
import logging
import re
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from cli.terminal import progress, show, table
from cli.verbs import log_to_stderr
from core.errors import SettingsError
from core.files import append_secrets
from core.project import ENV_FILE, PROJECT
from core.settings import Settings, checked_zone, load_settings
from core.spec import MODEL_NAME, MODELS, ModelSpec, load_spec

if TYPE_CHECKING:
    from cli.new.adopted import AdoptedModel

TEMPLATES = Path(__file__).parent / "templates"
FILES = {
    "model.toml": "models/{}.toml",
    "dataset.py": "feature_repo/datasets/{}.py",
    "expectations.json": "feature_repo/expectations/{}.json",
}
"""Template → its place in the project."""
ADOPTED = "adopted.toml.jinja"
"""The template of a model that was trained elsewhere."""
LONGEST_NAME = 30
"""Characters of a name: lines of the files stay within 100."""
OLD = timedelta(days=30)
"""Age of the newest row from which on the training is proposed as of that row."""
SOURCE_HELP = "Files, a folder of them, a glob, or a database's address#table: rows of the source."
MODEL_HELP = "A model that was trained elsewhere: its signature gives the features."
EXAMPLE_ROWS = {
    "event_id": [1, 2],
    "entity_id": [1, 1],
    "event_ts": [datetime(2026, 1, day, tzinfo=UTC) for day in (1, 31)],
    "amount": [1.0, 2.0],
}
"""Rows of a use case whose source is not there yet."""
LabelKind = Literal["silence", "event"]
"""The kind of label: silence of an entity, or an outcome of each event."""
NEXT_STEPS = """next:
  gyre check {name}
  (eval "$(gyre env)"; cd {project}/feature_repo && feast apply)
  gyre ingest {name}
  gyre train {name}{as_of}
  gyre up  # where a stack runs: its DAGs, routes and monitor"""


def new(
    name: str,
    source: Annotated[str | None, typer.Option("--from", help=SOURCE_HELP)] = None,
    key: Annotated[
        list[str] | None, typer.Option(help="Column that tells rows apart; repeatable.")
    ] = None,
    entity: Annotated[
        str | None, typer.Option(help="Column of the entity's key.")
    ] = None,
    time: Annotated[
        str | None, typer.Option(help="Column that says when it happened.")
    ] = None,
    time_zone: Annotated[
        str | None,
        typer.Option(
            parser=checked_zone,
            metavar="ZONE",
            help="Zone of times that name none, such as Europe/Berlin.",
        ),
    ] = None,
    label: Annotated[
        LabelKind | None,
        typer.Option(
            help="An entity has no event for a while, or each event has an outcome."
        ),
    ] = None,
    outcome: Annotated[
        str | None, typer.Option(help="Column that --label event or --model learns.")
    ] = None,
    days: Annotated[
        int, typer.Option(min=1, help="Days that --label silence covers.")
    ] = 30,
    model: Annotated[str | None, typer.Option(help=MODEL_HELP)] = None,
    service: Annotated[
        str | None,
        typer.Option(
            help="With --model: Feast's service that has its inputs. Default: requests bring all."
        ),
    ] = None,
) -> None:
    """Write the three files of a use case that work as they are; edit them to yours.

    They fit the rows of --from; a terminal asks for missing options.
    Without --from a row has event_id and entity_id (int64), event_ts (UTC) and amount (float64).
    With --model it is one file, the spec of that model; --from is then the table with its labels.
    """
    log_to_stderr()
    settings = load_settings()
    if service and not model:
        raise SettingsError("--service: expected --model beside it")
    if model:
        from cli.new.adopted import AdoptedModel  # noqa: PLC0415  (heavy)

        if source is None:
            raise SettingsError(
                "--model: expected --from beside it, the table of labels"
            )
        adopted = AdoptedModel(
            source=model,
            table=_address_in_project(source),
            service=service,
            entity=entity,
            time=time,
            outcome=outcome,
        )
        _new_adopted(settings, name, adopted)
        return
    places = _new_files(name)
    import pyarrow as pa  # noqa: PLC0415  (heavy)

    from cli.new.columns import ask, choose, describe, in_types  # noqa: PLC0415  (heavy)
    from core.connectors.reading import read  # noqa: PLC0415

    if source is None:
        rows = pa.table(EXAMPLE_ROWS)
        columns = describe(rows, ["event_id"], "entity_id", "event_ts", days=days)
    else:
        source = _full_address(source)
        with progress(f"new {name}"):
            rows = in_types(read(source), time_zone)
        kind = label or ask("--label", "kind of label", get_args(LabelKind))
        if outcome and kind != "event":
            raise SettingsError("--outcome: expected --label event beside it")
        columns = describe(
            rows,
            key=[choose(rows, "--key", column) for column in key or [""]],
            entity=choose(rows, "--entity", entity),
            time=choose(rows, "--time", time),
            outcome=choose(rows, "--outcome", outcome) if kind == "event" else None,
            days=days,
        )
    _require_entity_type(columns["entity"], is_number=columns["is_number"])
    write_use_case(PROJECT, name, columns)
    typer.echo("\n".join(f"wrote {place}" for place in places))
    _name_source(settings.home / ENV_FILE, name, source, time_zone)
    next_steps = _next_steps(name, source, columns["last"])
    typer.echo("\n".join([*_summary(columns), next_steps]))


def _require_entity_type(entity: str, *, is_number: bool) -> None:
    """Refuse an entity that another dataset has with another type.

    Raises:
        SettingsError: See `entity_problem`.

    """
    from feature_repo.datasets import (  # noqa: PLC0415  (heavy)
        entity_problem,
        load_datasets,
    )

    datasets, _ = load_datasets()
    problem = entity_problem(entity, "int64" if is_number else "string", datasets)
    if problem:
        raise SettingsError(f"--entity: {problem}; nothing was written")


def _new_adopted(settings: Settings, name: str, model: "AdoptedModel") -> None:
    """Write the spec of a model that was trained elsewhere."""
    _check_name(name)
    place = FILES["model.toml"].format(name)
    if (PROJECT / place).exists():
        raise SettingsError(f"{place}: there already, nothing was written")
    with progress(f"new {name}"):
        from cli.new.adopted import describe_adopted  # noqa: PLC0415  (heavy)

        variables = describe_adopted(settings, model)
    _write(PROJECT / place, ADOPTED, {**variables, "name": name})
    next_steps = f"gyre check {name}\n  gyre adopt {name} {shlex.quote(model.source)}"
    typer.echo(f"wrote {place}\nnext:\n  {next_steps}")


def _address_in_project(table: str) -> str:
    """Return an address, or the path of files: of those in the project as it lies there."""
    address = _full_address(table)
    return address.removeprefix(f"{PROJECT}/")


def _next_steps(name: str, source: str | None, last: datetime) -> str:
    """Return the commands that follow; a training of old rows is as of the newest one."""
    as_of = ""
    if source and datetime.now(UTC) - last > OLD:
        as_of = f" --as-of {last:%Y-%m-%dT%H:%MZ}  # the newest row"
    return NEXT_STEPS.format(name=name, project=shlex.quote(str(PROJECT)), as_of=as_of)


def _full_address(source: str) -> str:
    """Return an address, or the absolute path of files."""
    from core.connectors.addresses import is_url  # noqa: PLC0415

    if is_url(source):
        return source
    path = Path(source).absolute()  # a link stays one
    return str(path.resolve() if ".." in path.parts else path)


def _name_source(
    file: Path, name: str, source: str | None, time_zone: str | None
) -> None:
    """Write the settings of the source, or print how to."""
    variable = f"GYRE_SOURCES__{name.upper()}"
    if source:
        variables = {variable: source}  # it may hold a password
        if time_zone:
            variables[f"GYRE_TIME_ZONES__{name.upper()}"] = time_zone
        append_secrets(file, variables)
        typer.echo(f"wrote {', '.join(variables)} to {file}")
    else:  # Airflow's tasks read the file as well
        typer.echo(
            f"first: echo '{variable}=…' >> {shlex.quote(str(file))}  # files, or address#table"
        )


def _summary(columns: Mapping[str, Any]) -> list[str]:
    """Return lines on the roles that the files give to the columns."""
    label = f"an entity has no row within {columns['horizon']} days"
    if columns["outcome"]:
        limit = columns["limit"]
        condition = "is true" if limit is None else f"is above its mean, {limit:.6g}"
        label = f"{columns['outcome']} {condition}; a row for each event"
    lines = [
        f"key: {', '.join(columns['key'])}",
        f"entity: {columns['entity']}",
        f"time: {columns['time']}",
        f"label {columns['label']}: {label}",
        f"added up: {', '.join(columns['amounts']) or 'none'}",
    ]
    if columns["codes"]:
        lines.append(
            f"text, as 007 is not 7 and int64 has 18 digits: {', '.join(columns['codes'])}"
        )
    return lines


def _new_files(name: str) -> list[str]:
    """Return the paths of the files of use case `name`, none of which exists."""
    _check_name(name)
    places = [place.format(name) for place in FILES.values()]
    existing = [place for place in places if (PROJECT / place).exists()]
    if existing:
        raise SettingsError(
            f"{', '.join(existing)}: there already, nothing was written"
        )
    from feature_repo.datasets import dataset_of  # noqa: PLC0415  (heavy)

    owner = dataset_of(f"{name}_features")
    if owner:
        raise SettingsError(
            f"{name!r}: {owner.name} has a view {name}_features; take another name"
        )
    return places


def _check_name(name: str) -> None:
    is_name = (
        re.fullmatch(MODEL_NAME, name)
        and "__" not in name
        and not keyword.iskeyword(name)
    )
    if not is_name or len(name) > LONGEST_NAME:
        raise SettingsError(
            f"{name!r}: expected up to {LONGEST_NAME} small letters, digits and single _, "
            "such as web_visits"
        )


def write_use_case(
    folder: Path, name: str, columns: Mapping[str, Any], shipped: str = ""
) -> None:
    """Write the three files of a use case.

    Args:
        folder: Folder of the project.
        name: Name of the use case.
        columns: Variables of the templates, from `describe`.
        shipped: A file of the project that stands in for a source; empty if there is none.

    """
    title = name.replace("_", " ").capitalize()
    variables = {**columns, "name": name, "title": title, "shipped": shipped}
    for template, place in FILES.items():
        _write(folder / place.format(name), f"{template}.jinja", variables)


def _write(path: Path, template: str, variables: Mapping[str, Any]) -> None:
    """Write a file from a template."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # noqa: PLC0415

    environment = Environment(  # noqa: S701  (no HTML)
        loader=FileSystemLoader(TEMPLATES),
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    # JSON would write an emoji as surrogates, which Python does not read.
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    rendered = environment.get_template(template)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(rendered.render(variables), "utf-8")


def check(
    model: Annotated[
        str | None, typer.Argument(help="A file of models/; all if absent.")
    ] = None,
    *,
    schema: Annotated[
        bool, typer.Option("--schema", help="The JSON Schema of a spec.")
    ] = False,
) -> None:
    """Compare a model's three files with each other, Feast and sample rows; needs no stack.

    First it shows each tool of the installation: its address, who logs in, its version or what is
    wrong. A line for each finding follows; exit code 1 if there is one, or if a tool of a team is
    missing.
    """
    if schema:
        typer.echo(json.dumps(ModelSpec.model_json_schema(), indent=2))
        return
    log_to_stderr()
    logging.getLogger("feature_engine").setLevel(logging.ERROR)
    missing = _show_tools()
    names = [model] if model else sorted(path.stem for path in MODELS.glob("*.toml"))
    counts = [_check(name) for name in names]
    raise typer.Exit(1 if missing or any(counts) else 0)


def _show_tools() -> int:
    """Print each tool: address, login, and version or problem; return how many are missing."""
    settings = load_settings()
    with progress("check: tools"):
        from stack.tools import MISSING, find_tools  # noqa: PLC0415  (heavy)

        tools = find_tools(settings)
    show(table(("tool", "address", "login", "found"), tools))
    return sum(tool.name == MISSING for tool in tools)


def _check(name: str) -> int:
    """Print the findings on a model; return their number."""
    try:
        spec = load_spec(name)
    except SettingsError as exc:
        findings = str(exc).splitlines()
        rows = "its other files: not checked"
    else:
        settings = load_settings()
        with progress(f"check {name}"):
            from training.check import check as check_files  # noqa: PLC0415  (heavy)

            findings, rows = check_files(settings, spec, datetime.now(tz=UTC))
    conclusion = f"findings: {len(findings)}" if findings else "ok"
    typer.echo("\n".join([*findings, f"{name}: {conclusion}; {rows}"]))
    return len(findings)
