"""A container of serving beside the MLflow and the Redis of a rig."""

from contextlib import contextmanager

import httpx
import numpy as np
import pandas as pd
from xgboost import XGBClassifier

from mlflow_server.model.pyfunc import ModelFile
from tests.conftest import answers, unused_port, wait_until
from tests.containers.conftest import container
from tests.serving.conftest import contract
from tests.support.tools.images import CLONE_ID, run

NAME = f"gyre-replica-{CLONE_ID}"
TOKEN = "Bearer secret"
DAYS = "days_since_last_order"


class Replica:
    """What a container is started with, and where it answers. home: its volume."""

    def __init__(self, image, rig, folder):
        self.image = image
        self.home = folder / "home"
        self.port = unused_port()
        self.home.mkdir()
        tokens = folder / "tokens"
        tokens.write_text("test:secret\n")
        run("chown", "1000:1000", self.home, tokens)
        self.options = [
            "--env=GYRE_HOST=0.0.0.0",
            f"--env=GYRE_SERVING_PORT={self.port}",
            "--env=GYRE_SERVING_TOKENS_FILE=/run/secrets/tokens",
            f"--env=GYRE_MLFLOW_URL={rig.settings.mlflow_address}",
            f"--env=GYRE_REDIS_URL={rig.settings.redis_address}",
            f"--volume={self.home}:/var/lib/gyre",
            f"--volume={tokens}:/run/secrets/tokens:ro",
        ]

    @contextmanager
    def running(self):
        url = f"http://127.0.0.1:{self.port}"
        headers = {"authorization": TOKEN}
        with (
            container(NAME, self.image, *self.options),
            httpx.Client(base_url=url, timeout=60, headers=headers) as client,
        ):
            wait_until("live", lambda: answers(f"{url}/health/live"))
            yield client


def promote_native(rig):
    """Promote a version that XGBoost alone can score; return its number."""
    frame = pd.DataFrame({DAYS: np.arange(100)})
    fitted = XGBClassifier(n_estimators=1).fit(frame, frame[DAYS] > 50)
    file = ModelFile.native(fitted, (), 2)
    inputs = {"features": {DAYS: "int64"}, "defaults": {DAYS: 12}, "nullable": ()}
    version = rig.register(0, model=file, loader=file.loader, **inputs).version
    rig.promote(version)
    return version


def promote_read_by_feast(rig):
    """Promote a version whose features only Feast's own reader looks up; return its number."""
    only_feast = {"views": (), "functions": (), "unsupported": "written for pandas"}
    lookup = contract().lookup.model_copy(update=only_feast)
    version = rig.register(0, lookup=lookup).version
    rig.promote(version)
    return version
