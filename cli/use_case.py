"""`gyre new` and `gyre spec`: the three files of a use case, and what its spec says."""

from __future__ import annotations

import json
import keyword
import re
from pathlib import Path
from typing import Annotated

import typer

from stack.errors import SettingsError
from stack.preflight import ENV_FILE
from stack.settings import PROJECT, load_settings
from stack.spec import NAME, ModelSpec, load_spec

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
        "  (cd feature_repo && feast apply)\n"
        f"  gyre ingest {name}\n"
        f"  gyre train {name}\n"
        "  gyre up  # where a stack runs: its DAGs, routes and monitor"
    )


def spec(
    model: Annotated[str | None, typer.Argument(help="Check models/MODEL.toml.")] = None,
    *,
    schema: Annotated[bool, typer.Option("--schema", help="The JSON Schema of a spec.")] = False,
) -> None:
    """Check a model's file and print it with every default; or print what one may hold."""
    if schema == (model is not None):
        raise SettingsError("expected a model, or --schema")
    found = load_spec(model).model_dump(mode="json") if model else ModelSpec.model_json_schema()
    typer.echo(json.dumps(found, indent=2))
