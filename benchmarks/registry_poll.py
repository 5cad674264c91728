"""What a poll of MLflow's registry costs serving, with and without a login.

    python -m benchmarks.registry_poll

Seconds of processor of the process that polls, as serving's workers do every 2 s, on MLflow behind
nginx. Each figure is the least of several rounds, taken in turn, as other programs disturb it.
"""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.support.measure import promised, title
from mlflow_server.api.login import PASSWORD, TLS_VARIABLES, TOKEN, USERNAME
from mlflow_server.api.registry import Registry
from tests.conftest import mlflow_server, new_settings
from tests.support.tools.team_mlflow import USER, nginx_before

POLLS = 50
ROUNDS = 20
CREDENTIALS = "[mlflow]\nmlflow_tracking_username = {}\nmlflow_tracking_password = {}\n"


def milliseconds(registry: Registry) -> float:
    registry.models()
    began = time.process_time()
    for _ in range(POLLS):
        registry.models()
    return (time.process_time() - began) / POLLS * 1000


def main() -> None:
    title("a poll of MLflow's registry: milliseconds of processor")
    for name in (USERNAME, PASSWORD, TOKEN, *TLS_VARIABLES):
        os.environ.pop(name, None)
    with tempfile.TemporaryDirectory() as name, ExitStack() as opened:
        folder = Path(name)
        os.environ["HOME"] = name
        settings = new_settings(folder / "home")
        opened.enter_context(mlflow_server(settings))
        secure = opened.enter_context(nginx_before(settings.mlflow_port, folder))
        os.environ["MLFLOW_TRACKING_SERVER_CERT_PATH"] = str(folder / "ca.pem")
        addresses = {"HTTP": settings.mlflow_address, "TLS": secure}
        file = folder / ".mlflow" / "credentials"
        file.parent.mkdir()
        costs: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            for kind, address in addresses.items():
                registry = Registry(settings.model_copy(update={"mlflow_url": address}))
                file.unlink(missing_ok=True)
                costs.setdefault(kind, []).append(milliseconds(registry))
                file.write_text(CREDENTIALS.format(USER[0], "100%%"))
                costs.setdefault(f"{kind} and login", []).append(milliseconds(registry))
        least = {kind: min(values) for kind, values in costs.items()}
        for kind, value in least.items():
            print(f"{kind:16}{value:8.2f} ms")
        for kind in addresses:
            ratio = least[f"{kind} and login"] / least[kind]
            promised(f"with a login to without, {kind}", ratio, 1.2, "x")


if __name__ == "__main__":
    main()
