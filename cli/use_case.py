"""`gyre new` and `gyre check`: the three files of a use case, and what is wrong with them."""

from __future__ import annotations

import json
import keyword
import logging
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from cli.verbs import log_to_stderr
from stack.errors import SettingsError
from stack.preflight import ENV_FILE
from stack.settings import PROJECT, load_settings
from stack.spec import MODELS, NAME, ModelSpec, load_spec

TEMPLATES = Path(__file__).parent / "templates"
FILES = {
    "model.toml": "models/{}.toml",
    "dataset.py": "feature_repo/datasets/{}.py",
    "expectations.json": "feature_repo/expectations/{}.json",
}
"""Template → its place in the project."""
LONGEST = 30
"""Characters of a name: lines of the files stay within 100."""


def new(name: str) -> None:
    """Write the three files of a use case that work as they are; edit them to yours.

    The source has the columns event_id and entity_id (int64), event_ts (UTC) and amount (float64).
    """
    bad = not re.fullmatch(NAME, name) or "__" in name or keyword.iskeyword(name)
    if bad or len(name) > LONGEST:
        wanted = f"up to {LONGEST} small letters, digits and single _, such as web_visits"
        raise SettingsError(f"{name!r}: expected {wanted}")
    places = {PROJECT / place.format(name): template for template, place in FILES.items()}
    if there := [str(path.relative_to(PROJECT)) for path in places if path.exists()]:
        raise SettingsError(f"{', '.join(there)}: there already, nothing was written")
    from feature_repo.datasets import dataset_of  # noqa: PLC0415  (heavy)

    if owner := dataset_of(f"{name}_features"):
        raise SettingsError(f"{name!r}: {owner.name} has a view {name}_features; take another name")
    from jinja2 import StrictUndefined, Template  # noqa: PLC0415

    title = name.replace("_", " ").capitalize()
    for path, template in places.items():
        text = (TEMPLATES / f"{template}.jinja").read_text("utf-8")
        made = Template(text, keep_trailing_newline=True, undefined=StrictUndefined)
        path.write_text(made.render(name=name, title=title))
        typer.echo(f"wrote {path.relative_to(PROJECT)}")
    file = load_settings().home / ENV_FILE  # which Airflow's tasks read as well
    typer.echo(
        "next:\n"
        f"  echo 'GYRE_SOURCES__{name.upper()}=…' >> {file}  # files, or an Ibis address#table\n"
        f"  gyre check {name}\n"
        '  (eval "$(gyre env)"; cd feature_repo && feast apply)\n'
        f"  gyre ingest {name}\n"
        f"  gyre train {name}\n"
        "  gyre up  # where a stack runs: its DAGs, routes and monitor"
    )


def check(
    model: Annotated[str | None, typer.Argument(help="A file of models/; all if absent.")] = None,
    *,
    schema: Annotated[bool, typer.Option("--schema", help="The JSON Schema of a spec.")] = False,
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
    found = [_check(name) for name in names]
    raise typer.Exit(1 if any(found) else 0)


def _check(name: str) -> int:
    """Print what is found of a model; return how many lines."""
    try:
        spec = load_spec(name)
    except SettingsError as exc:
        findings, rows = str(exc).splitlines(), "its other files: not checked"
    else:
        from training.check import check as check_files  # noqa: PLC0415  (heavy)

        findings, rows = check_files(load_settings(), spec, datetime.now(tz=UTC))
    said = f"findings: {len(findings)}" if findings else "ok"
    typer.echo("\n".join([*findings, f"{name}: {said}; {rows}"]))
    return len(findings)
