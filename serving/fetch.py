"""`python -m serving.fetch`: bring the versions in a role to this machine, checked and tried.

A short-lived process that a worker starts: what goes wrong with a version's files ends no worker.
One runs at a time. It prints the versions that it refused, and why: `{MODEL: {VERSION: REASON}}`.
"""

import json
import logging
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from filelock import FileLock

from mlflow_server.served_model import CONTRACT_FILE, DIGEST_TAG, ONNX_FILE
from serving.errors import ModelRefusedError
from serving.local_copies import ORIGIN_FILE, LocalCopies, Origin
from serving.model import open_version
from serving.registered import SEARCH, RegisteredModel, registered_models
from stack.settings import Settings, load_settings
from stack.spec import ModelSpec, load_specs

PATIENCE_SECONDS = 10.0
LONGEST_REASON = 500
PROXY = "mlflow-artifacts:"
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
VERSIONS = "/api/2.0/mlflow/model-versions"
FILES = {ONNX_FILE: ONNX_FILE, CONTRACT_FILE: f"extra_files/{CONTRACT_FILE}"}
"""Served files, and where they lie below a version's artifact folder (MLflow's own layout)."""
logger = logging.getLogger("serving.fetch")


def main() -> None:
    settings = load_settings()
    refused: dict[str, dict[str, str]] = {}
    address = settings.mlflow_address
    with (
        FileLock(settings.home / "serving" / "fetch.lock"),  # SIGKILL releases it
        httpx.Client(base_url=address, timeout=PATIENCE_SECONDS, trust_env=False) as client,
    ):
        models = registered_models(_get(client, SEARCH))
        for spec in load_specs():
            if spec.name in models:
                refused[spec.name] = _fetch_model(settings, client, spec, models[spec.name])
    sys.stdout.write(json.dumps(refused))


def _fetch_model(
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
            _alert(settings, copies, spec.name, version, refused[version])
    return refused


def _fetch_version(
    client: httpx.Client, spec: ModelSpec, copies: LocalCopies, version: str, created: int
) -> None:
    asked = {"name": spec.name, "version": version}
    tags = _get(client, f"{VERSIONS}/get", asked)["model_version"].get("tags", [])
    digests = {tag["key"]: tag["value"] for tag in tags if tag["key"].startswith(DIGEST_TAG)}
    uri = _get(client, f"{VERSIONS}/get-download-uri", asked)["artifact_uri"]
    copies.folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=copies.folder) as temporary:
        part = Path(temporary, version)
        part.mkdir()
        _download(client, uri, part)
        open_version(part, digests, spec)
        origin = Origin(created=created, digests=digests)
        (part / ORIGIN_FILE).write_text(origin.model_dump_json())
        copies.remove(version)  # of a model of the same name that was deleted since
        part.rename(copies.path(version))


def _download(client: httpx.Client, uri: str, folder: Path) -> None:
    """Put the served files of the logged model at `uri` into `folder`, unchecked."""
    if not uri.startswith(PROXY):
        raise ModelRefusedError(
            f"its files are at {uri}: expected {PROXY}/…, served by MLflow's artifact proxy"
        )
    root = PurePosixPath(httpx.URL(uri).path.lstrip("/"))
    for name, place in FILES.items():
        answer = client.get(f"{ARTIFACTS}/{root / place}")
        if answer.is_error:
            said = " ".join(answer.text.split())[:200]
            raise ModelRefusedError(f"{name}: MLflow answered {answer.status_code}: {said}")
        (folder / name).write_bytes(answer.content)


def _alert(settings: Settings, copies: LocalCopies, model: str, version: str, reason: str) -> None:
    from mlflow_server.alerts import alert  # noqa: PLC0415  (SQLAlchemy and Apprise)
    from mlflow_server.records import Records  # noqa: PLC0415

    cause = f"version {version} is refused"
    answers = "".join(f"version {newest} answers; " for newest in copies.newest()[:1])
    try:
        with closing(Records(settings)) as records:
            said = f"{answers}{cause}: {reason}"
            alert(settings, records, model, cause, said, datetime.now(UTC))
    except Exception:  # the version is refused, whether an alert goes out or not
        logger.exception("no alert that %s of %s", cause, model)


def _get(client: httpx.Client, path: str, asked: dict[str, str] | None = None) -> Any:
    return client.get(path, params=asked).raise_for_status().json()


if __name__ == "__main__":
    try:
        main()
    except httpx.HTTPError as exc:
        sys.exit(f"MLflow does not answer: {exc}")
