"""`python -m docs.screenshots [NAME …]`: pictures of a running stack, in docs/pictures.

The stack is that of the shell: `eval "$(gyre env)"`, best after `gyre demo --keep`, which has
promotions, drift and reports. Each page is taken on a wide screen and on a phone.
`--fault NAME` takes what a reader sees first of the start page once a fault was planted.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
from PIL import Image

from core.project import CLONE
from core.settings import load_settings
from core.spec import load_specs
from docs.browser import HIGHEST, PHONE, browser
from mlflow_server.api.pages import Pages
from mlflow_server.api.registry import Registry
from stack.airflow_api import AirflowApi
from stack.environment import LOGIN, load_secrets

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from core.settings import Settings

PICTURES = CLONE / "docs" / "pictures"
WIDTHS = {"wide": 1280, "phone": PHONE}
TOP = 700
"""Pixels of a page that are shown of a fault."""
LARGEST = 150_000
"""Bytes of a picture; it gets fewer colours until it is no larger."""
COLOURS = (256, 128, 64, 32, 16)


def pages(settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield the name of each picture and the address of its page."""
    spec = load_specs()[0]
    console, airflow = settings.link("console"), settings.link("airflow")
    yield "console-start", f"{console}/"
    yield "console-model", f"{console}/status/{spec.name}"
    yield "console-data", f"{console}/data/{spec.dataset}"
    yield "serving-docs", f"{settings.link('serving')}/docs"
    mlflow = Pages(settings)
    version = Registry(settings).production(spec.name)
    models = f"{settings.link('mlflow')}/#/models/{spec.name}/versions/{version}"
    yield "mlflow-version", models
    yield "mlflow-experiment", mlflow.experiment(spec.experiment)
    reports = mlflow.pages(spec.name, spec.experiment).reports
    if reports:
        yield "evidently-report", f"{console}/report/{spec.name}/{max(reports)}"
    yield "model-card", f"{console}/card/{spec.name}/{version}"
    yield "data-docs", f"{console}/validation/{spec.dataset}"
    with AirflowApi(settings) as api:
        dag = f"train_{spec.name}"
        (run,) = api.last_runs(dag)
        yield "airflow-dags", f"{airflow}/dags"
        yield "airflow-run", f"{airflow}/dags/{dag}/runs/{run['dag_run_id']}"


def pictures(
    settings: Settings, names: Collection[str], fault: str | None
) -> Iterator[tuple[str, str, str, int]]:
    """Yield the name of each chosen picture, its address, device and height."""
    if fault:
        yield f"console-start-{fault}", f"{settings.link('console')}/", "wide", TOP
        return
    for name, address in pages(settings):
        if not names or name in names:
            yield from ((name, address, device, HIGHEST) for device in WIDTHS)


def airflow_token(settings: Settings) -> str:
    login = {"username": LOGIN, "password": load_secrets(settings)["password"]}
    answer = httpx.post(f"{settings.airflow_address}/auth/token", json=login)
    return str(answer.raise_for_status().json()["access_token"])


def small(picture: bytes, height: int = HIGHEST) -> bytes:
    """Return the picture's top with a palette, at most LARGEST where 16 colours make it so."""
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image = image.crop((0, 0, image.width, min(height, image.height)))
    packed = b""
    for colours in COLOURS:
        file = io.BytesIO()
        # The median cut, which is Pillow's default, mixes the few pixels of a state into a brown.
        image.quantize(
            colours, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
        ).save(file, "PNG", optimize=True)
        packed = file.getvalue()
        if len(packed) <= LARGEST:
            break
    return packed


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m docs.screenshots", description=__doc__
    )
    parser.add_argument("names", nargs="*", help="such as console-start; all if absent")
    parser.add_argument(
        "--fault", help="its name: the top of the start page as it is with it"
    )
    parser.add_argument(
        "--dark", action="store_true", help="as in the dark mode of a system"
    )
    parser.add_argument(
        "--to", type=Path, default=PICTURES, help="folder, default %(default)s"
    )
    chosen = parser.parse_args()
    settings = load_settings()
    chosen.to.mkdir(parents=True, exist_ok=True)
    with browser() as chromium:
        token, airflow = airflow_token(settings), settings.link("airflow")
        chromium.do("Network.setCookie", name="_token", value=token, url=airflow)
        for name, address, device, height in pictures(
            settings, chosen.names, chosen.fault
        ):
            chromium.open(address, WIDTHS[device], dark=chosen.dark)
            path = chosen.to / f"{name}-{device}.png"
            path.write_bytes(small(chromium.picture(), height))
            sys.stdout.write(f"{path}: {path.stat().st_size // 1000} kB, {address}\n")


if __name__ == "__main__":
    main()
