"""MLflow's Python client with time limits, and its errors as RegistryError."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from core.errors import RegistryError
from core.settings import Settings
from core.user_code import in_one_line
from mlflow_server.api.login import read_login

# MLflow reads these variables at each call, the first at import. A request is never repeated:
# a second "create version", after a lost answer, would make two versions.
LIMITS = {
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
for _name, _value in LIMITS.items():
    os.environ.setdefault(_name, _value)

from mlflow import MlflowClient  # noqa: E402  (after what it reads at import)
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.utils import plugins  # noqa: E402

# At the first request MLflow loads every plugin that adds headers. Feast's imports the whole of
# Feast (seconds, 45 MB): this patch of MLflow's plugin loader leaves it out.
_entry_points = plugins.get_entry_points
plugins.get_entry_points = lambda group: [
    e for e in _entry_points(group) if e.name != "feast"
]
import_module("mlflow.tracking.request_header.registry")
plugins.get_entry_points = _entry_points

ERROR_LENGTH = 300


def mlflow_client(settings: Settings) -> MlflowClient:
    """Return MLflow's own client of the installation's server, which reads its login itself."""
    address = settings.mlflow_address
    return MlflowClient(tracking_uri=address, registry_uri=address)


@contextmanager
def translated(action: str) -> Iterator[None]:
    """Raise any error of MLflow as RegistryError, in one line: `action` failed, and why.

    It can stand above a method, too. A RegistryError of a method below passes unchanged.
    """
    try:
        yield
    except (MlflowException, OSError) as exc:  # requests' errors are OSErrors
        if isinstance(exc, MlflowException):
            problem = read_login().refusal(exc.get_http_status_code(), action)
            if problem:
                raise RegistryError(problem) from exc
        unreachable = isinstance(exc, OSError) or "API request to" in str(exc)
        reason = "MLflow does not answer (is it up?): " if unreachable else ""
        line = " ".join(str(exc).split())[:ERROR_LENGTH]
        raise RegistryError(f"{action}: {reason}{line}") from exc
    except Exception as exc:
        # Of boto3, by which MLflow's client reaches S3 without the artifact proxy.
        if not type(exc).__module__.startswith("boto"):
            raise
        raise RegistryError(f"{action}: {in_one_line(exc)}") from exc
