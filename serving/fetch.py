"""`python -m serving.fetch`: bring the versions in a role to this machine, checked and tried.

A short-lived process that a worker starts: what goes wrong with a version's files ends no worker.
One runs at a time. It prints the versions that it refused, and why: `{MODEL: {VERSION: REASON}}`.
"""

from __future__ import annotations

import fcntl
import json
import logging
import shutil
import sys
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import httpx

from mlflow_server.served_model import CONTRACT_FILE, DIGEST_TAG, ONNX_FILE
from serving.errors import ModelRefusedError
from serving.local_copies import ORIGIN_FILE, LocalCopies, Origin
from serving.model import open_version
from serving.registered import MOST_MODELS, SEARCH, registered_models
from stack.settings import load_settings
from stack.spec import load_specs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from serving.registered import RegisteredModel
    from stack.settings import Settings
    from stack.spec import ModelSpec

PATIENCE_SECONDS = 10.0
LONGEST_REASON = 500
PROXY = "mlflow-artifacts:"
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
FILES = {ONNX_FILE: ONNX_FILE, CONTRACT_FILE: f"extra_files/{CONTRACT_FILE}"}
"""Served files, and where they lie below a version's artifact folder (MLflow's own layout)."""
logger = logging.getLogger("serving.fetch")


def main() -> None:
    settings = load_settings()
    refused: dict[str, dict[str, str]] = {}
    with one_at_a_time(settings), _client(settings) as client:
        models = registered_models(_get(client, SEARCH, max_results=MOST_MODELS).json())
        for spec in load_specs():
            if spec.name in models:
                refused[spec.name] = fetch_model(settings, client, spec, models[spec.name])
    with suppress(BrokenPipeError):  # the worker that asked is gone; its successor sees the copies
        sys.stdout.write(json.dumps(refused))
        sys.stdout.flush()


@contextmanager
def one_at_a_time(settings: Settings) -> Iterator[None]:
    """Wait for the lock of all fetches of this installation; SIGKILL releases it."""
    folder = settings.home / "serving"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "fetch.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def fetch_model(
    settings: Settings, client: httpx.Client, spec: ModelSpec, model: RegisteredModel
) -> dict[str, str]:
    """Have a checked copy of each version in a role; return why which ones are refused."""
    copies = LocalCopies(settings, spec.name)
    wanted = set(model.versions.values())
    copies.keep_only(wanted)
    refused = {}
    for version in sorted(wanted):
        origin = copies.origin(version)
        if origin and origin.created == model.created:
            continue
        try:
            _fetch_version(client, spec, copies, version, model.created)
        except httpx.TransportError:
            raise  # MLflow is away: that says nothing of the version
        except Exception as exc:  # noqa: BLE001  (whatever it is, the version is not served)
            refused[version] = " ".join(f"{type(exc).__name__}: {exc}".split())[:LONGEST_REASON]
            _alert(settings, spec.name, version, refused[version], copies.newest())
    return refused


def _fetch_version(
    client: httpx.Client, spec: ModelSpec, copies: LocalCopies, version: str, created: int
) -> None:
    asked = {"name": spec.name, "version": version}
    found = _get(client, "/api/2.0/mlflow/model-versions/get", **asked).json()["model_version"]
    tags = {tag["key"]: tag.get("value", "") for tag in found.get("tags", [])}
    digests = {tag: digest for tag, digest in tags.items() if tag.startswith(DIGEST_TAG)}
    uri = _get(client, "/api/2.0/mlflow/model-versions/get-download-uri", **asked).json()
    part = copies.folder / f"{version}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        _download(client, uri["artifact_uri"], part)
        open_version(part, digests, spec)
        origin = Origin(created=created, digests=digests)
        (part / ORIGIN_FILE).write_text(origin.model_dump_json())
        copies.remove(version)  # of a model of the same name that was deleted since
        part.rename(copies.path(version))
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)  # a part of it may fill the disk
        raise


def _download(client: httpx.Client, uri: str, folder: Path) -> None:
    """Put the served files of the logged model at `uri` into `folder`, unchecked."""
    if not uri.startswith(PROXY):
        raise ModelRefusedError(
            f"its files are at {uri}: expected {PROXY}/…, served by MLflow's artifact proxy"
        )
    root = PurePosixPath(httpx.URL(uri).path.lstrip("/"))
    for name, place in FILES.items():
        with client.stream("GET", f"{ARTIFACTS}/{root / place}") as answer:
            if answer.is_error:
                answer.read()
                said = " ".join(answer.text.split())[:200]
                raise ModelRefusedError(f"{name}: MLflow answered {answer.status_code}: {said}")
            with (folder / name).open("wb") as file:
                for chunk in answer.iter_bytes():
                    file.write(chunk)


def _alert(
    settings: Settings, model: str, version: str, reason: str, newest: Sequence[str]
) -> None:
    from mlflow_server.alerts import alert  # noqa: PLC0415  (SQLAlchemy and Apprise)
    from mlflow_server.records import Records  # noqa: PLC0415

    cause = f"version {version} is refused"
    answers = f"version {newest[0]} answers; " if newest else ""
    now = datetime.now(UTC)
    try:
        with closing(Records(settings)) as records:
            alert(settings, records, model, cause, f"{answers}{cause}: {reason}", now)
    except Exception:  # the version is refused, whether an alert goes out or not
        logger.exception("no alert that %s of %s", cause, model)


def _client(settings: Settings) -> httpx.Client:
    return httpx.Client(base_url=settings.mlflow_address, timeout=PATIENCE_SECONDS, trust_env=False)


def _get(client: httpx.Client, path: str, **asked: Any) -> httpx.Response:
    answer = client.get(path, params=asked)
    answer.raise_for_status()
    return answer


if __name__ == "__main__":
    try:
        main()
    except httpx.HTTPError as exc:
        sys.exit(f"MLflow does not answer: {exc}")
