"""`gyre new` and `gyre check`: the three files of a use case, and what is wrong with them."""

import json
import keyword
import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.terminal import working
from cli.verbs import log_to_stderr
from core.errors import SettingsError
from core.settings import ENV_FILE, PROJECT, load_settings
from core.spec import MODELS, NAME, ModelSpec, load_spec

TEMPLATES = Path(__file__).parent / "templates"
FILES = {
    "model.toml": "models/{}.toml",
    "dataset.py": "feature_repo/datasets/{}.py",
    "expectations.json": "feature_repo/expectations/{}.json",
}
"""Template → its place in the project."""
LONGEST = 30
"""Characters of a name: lines of the files stay within 100."""
FROM_HELP = (
    "Files, a folder of them, a glob, or an Ibis address#table: rows of the source."
)
ROWS = {
    "event_id": [1, 2],
    "entity_id": [1, 1],
    "event_ts": [datetime(2026, 1, day, tzinfo=UTC) for day in (1, 31)],
    "amount": [1.0, 2.0],
}
"""What a source has that nobody named."""
NEXT = """next:
  gyre check {name}
  (eval "$(gyre env)"; cd {project}/feature_repo && feast apply)
  gyre ingest {name}
  gyre train {name}{as_of}
  gyre up  # where a stack runs: its DAGs, routes and monitor"""


def new(
    name: str,
    source: Annotated[str | None, typer.Option("--from", help=FROM_HELP)] = None,
    key: Annotated[
        list[str] | None, typer.Option(help="Column that tells rows apart.")
    ] = None,
    entity: Annotated[
        str | None, typer.Option(help="Column that says whose a row is.")
    ] = None,
    time: Annotated[
        str | None, typer.Option(help="Column that says when it happened.")
    ] = None,
) -> None:
    """Write the three files of a use case that work as they are; edit them to yours.

    They are for the rows of --from. Key, entity and time are guessed and printed, or as you say.
    Without --from a row has event_id and entity_id (int64), event_ts (UTC) and amount (float64).
    """
    settings, places = load_settings(), _new_files(name)
    import pyarrow as pa  # noqa: PLC0415  (heavy, as what follows)

    from cli.columns import describe  # noqa: PLC0415
    from feature_repo.source import read  # noqa: PLC0415

    if source and "://" not in source:
        source = str(Path(source).resolve())
    found = describe(
        read(source) if source else pa.table(ROWS), key or (), entity, time
    )
    write_use_case(PROJECT, name, found)
    typer.echo("\n".join(f"wrote {place}" for place in places))
    file, variable = settings.home / ENV_FILE, f"GYRE_SOURCES__{name.upper()}"
    if source:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(0o600)  # an address may hold a password
        with file.open("a") as lines:
            lines.write(f"\n{variable}={source}\n")
        roles = f"key {', '.join(found['key'])}, entity {found['entity']}, time {found['time']}"
        typer.echo(
            f"wrote {variable} to {file}\n"
            f"taken for: {roles} (else say --key, --entity, --time)\n"
            f"added up: {', '.join(found['amounts']) or 'no column'}"
        )
    else:  # Airflow's tasks read the file as well
        typer.echo(
            f"first: echo '{variable}=…' >> {file}  # files, or an Ibis address#table"
        )
    is_old = source and datetime.now(UTC) - found["last"] > timedelta(days=30)
    as_of = (
        f" --as-of {found['last']:%Y-%m-%dT%H:%MZ}  # the newest row" if is_old else ""
    )
    typer.echo(NEXT.format(name=name, project=PROJECT, as_of=as_of))


def _new_files(name: str) -> list[str]:
    """Return the files of use case `name`, of which none is there yet."""
    is_name = (
        re.fullmatch(NAME, name) and "__" not in name and not keyword.iskeyword(name)
    )
    if not is_name or len(name) > LONGEST:
        expected = (
            f"up to {LONGEST} small letters, digits and single _, such as web_visits"
        )
        raise SettingsError(f"{name!r}: expected {expected}")
    places = [place.format(name) for place in FILES.values()]
    if existing := [place for place in places if (PROJECT / place).exists()]:
        raise SettingsError(
            f"{', '.join(existing)}: there already, nothing was written"
        )
    from feature_repo.datasets import dataset_of  # noqa: PLC0415  (heavy)

    if owner := dataset_of(f"{name}_features"):
        raise SettingsError(
            f"{name!r}: {owner.name} has a view {name}_features; take another name"
        )
    return places


def write_use_case(
    folder: Path, name: str, columns: Mapping[str, Any], shipped: str = ""
) -> None:
    """Write the three files of use case `name` below `folder`.

    columns: see `describe`. shipped: the file in the project that stands in for a source.
    """
    from jinja2 import StrictUndefined, Template  # noqa: PLC0415

    title = name.replace("_", " ").capitalize()
    for template, place in FILES.items():
        text = (TEMPLATES / f"{template}.jinja").read_text("utf-8")
        rendered = Template(text, keep_trailing_newline=True, undefined=StrictUndefined)
        path = folder / place.format(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            rendered.render(columns, name=name, title=title, shipped=shipped), "utf-8"
        )


def check(
    model: Annotated[
        str | None, typer.Argument(help="A file of models/; all if absent.")
    ] = None,
    *,
    schema: Annotated[
        bool, typer.Option("--schema", help="The JSON Schema of a spec.")
    ] = False,
) -> None:
    """Hold a model's three files against each other, Feast and a sample of rows; needs no stack.

    A line for each finding; exit code 1 if there is one.
    """
    if schema:
        typer.echo(json.dumps(ModelSpec.model_json_schema(), indent=2))
        return
    log_to_stderr()
    logging.getLogger("feature_repo").setLevel(logging.ERROR)
    names = [model] if model else sorted(path.stem for path in MODELS.glob("*.toml"))
    counts = [_check(name) for name in names]
    raise typer.Exit(1 if any(counts) else 0)


def _check(name: str) -> int:
    """Print the findings on a model; return how many there are."""
    try:
        spec = load_spec(name)
    except SettingsError as exc:
        findings, rows = str(exc).splitlines(), "its other files: not checked"
    else:
        with working(settings := load_settings(), f"check {name}"):
            from training.check import check as check_files  # noqa: PLC0415  (heavy)

            findings, rows = check_files(settings, spec, datetime.now(tz=UTC))
    conclusion = f"findings: {len(findings)}" if findings else "ok"
    typer.echo("\n".join([*findings, f"{name}: {conclusion}; {rows}"]))
    return len(findings)
