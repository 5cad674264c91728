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

from core.settings import Settings, load_settings
from core.spec import ModelSpec, load_specs
from mlflow_server.served_model import DIGEST_TAG, served_files
from mlflow_server.version_tags import unpacked
from serving import model
from serving.errors import ModelRefusedError
from serving.model import LocalCopies, RegisteredModel

PATIENCE_SECONDS = 10.0
LONGEST_REASON = 500
PROXY = "mlflow-artifacts:"
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
VERSIONS = "/api/2.0/mlflow/model-versions"
logger = logging.getLogger("serving.fetch")


def main() -> None:
    settings = load_settings()
    refused: dict[str, dict[str, str]] = {}
    address = settings.mlflow_address
    with (
        FileLock(settings.home / "serving" / "fetch.lock"),  # SIGKILL releases it
        httpx.Client(
            base_url=address, timeout=PATIENCE_SECONDS, trust_env=False
        ) as client,
    ):
        registered = model.registered_models(_get(client, model.SEARCH))
        for spec in load_specs():
            if found := registered.get(spec.name):
                refused[spec.name] = _fetch_model(settings, client, spec, found)
    sys.stdout.write(json.dumps(refused))


def _fetch_model(
    settings: Settings, client: httpx.Client, spec: ModelSpec, found: RegisteredModel
) -> dict[str, str]:
    """Have a checked copy of each version in a role; return why which ones are refused."""
    copies = LocalCopies(settings, spec.name)
    # Production first: a worker that finds no copy of it answers by another one meanwhile.
    wanted = dict.fromkeys(found.versions.values())
    copies.keep_only({*wanted})
    refused = {}
    for version in wanted:
        origin = copies.origin(version)
        if origin and origin.created == found.created:
            continue
        try:
            _fetch_version(client, spec, copies, version, found.created)
        except httpx.TransportError:
            raise  # MLflow is away: that says nothing of the version
        except Exception as exc:  # noqa: BLE001  (whatever it is, the version is not served)
            refused[version] = " ".join(f"{type(exc).__name__}: {exc}".split())[
                :LONGEST_REASON
            ]
            _alert(settings, copies, spec.name, version, refused[version])
    return refused


def _fetch_version(
    client: httpx.Client,
    spec: ModelSpec,
    copies: LocalCopies,
    version: str,
    created: int,
) -> None:
    asked = {"name": spec.name, "version": version}
    tags = _get(client, f"{VERSIONS}/get", asked)["model_version"].get("tags", [])
    named = unpacked({tag["key"]: tag["value"] for tag in tags})
    digests = {
        name: value for name, value in named.items() if name.startswith(DIGEST_TAG)
    }
    uri = _get(client, f"{VERSIONS}/get-download-uri", asked)["artifact_uri"]
    copies.folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=copies.folder) as temporary:
        part = Path(temporary, version)
        part.mkdir()
        _download(client, uri, part, served_files(digests))
        model.close(model.open_version(part, digests, spec, copies.online_store)[1])
        origin = model.Origin(created=created, digests=digests)
        (part / model.ORIGIN_FILE).write_text(origin.model_dump_json())
        copies.remove(version)  # of a model of the same name that was deleted since
        part.rename(copies.path(version))


def _download(
    client: httpx.Client, uri: str, folder: Path, files: dict[str, str]
) -> None:
    """Put the served files of the logged model at `uri` into `folder`, unchecked."""
    if not uri.startswith(PROXY):
        text = f"expected {PROXY}/…, served by MLflow's artifact proxy"
        raise ModelRefusedError(f"its files are at {uri}: {text}")
    root = PurePosixPath(httpx.URL(uri).path.lstrip("/"))
    for name, place in files.items():
        answer = client.get(f"{ARTIFACTS}/{root / place}")
        if answer.is_error:
            said = " ".join(answer.text.split())[:200]
            raise ModelRefusedError(
                f"{name}: MLflow answered {answer.status_code}: {said}"
            )
        (folder / name).write_bytes(answer.content)


def _alert(
    settings: Settings, copies: LocalCopies, name: str, version: str, reason: str
) -> None:
    from mlflow_server.alerts import alert  # noqa: PLC0415  (SQLAlchemy and Apprise)
    from mlflow_server.records import Records  # noqa: PLC0415

    cause = f"version {version} is refused"
    answers = "".join(f"version {newest} answers; " for newest in copies.newest()[:1])
    try:
        with closing(Records(settings)) as records:
            said = f"{answers}{cause}: {reason}"
            alert(settings, records, name, cause, said, datetime.now(UTC))
    except Exception:  # the version is refused, whether an alert goes out or not
        logger.exception("no alert that %s of %s", cause, name)


def _get(client: httpx.Client, path: str, asked: dict[str, str] | None = None) -> Any:
    return client.get(path, params=asked).raise_for_status().json()


if __name__ == "__main__":
    try:
        main()
    except httpx.HTTPError as exc:
        sys.exit(f"MLflow does not answer: {exc}")
