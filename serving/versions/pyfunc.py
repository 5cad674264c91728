"""The process of one version that is not ONNX: it scores with the model that MLflow's pyfunc loads."""

import hashlib
import os
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


def answer_worker(
    worker: Connection, file: Path, digest: str, options: Mapping[str, Any]
) -> None:
    """Answer a worker until it is gone: scores for each dict of columns, or the text of an error.

    Args:
        worker: Connection to the worker.
        file: File of the model.
        digest: SHA-256 of `file`, as registered. The worker compares it at the first start alone.
        options: Options of `mlflow_server.model.pyfunc.ModelFile`.

    """
    # This process ends with its worker, and not by a signal to a group of processes.
    os.setsid()
    # More threads take longer for one row.
    os.environ.update(OMP_NUM_THREADS="1", LOKY_MAX_CPU_COUNT="1")
    # 220 MB, which a worker does without.
    from mlflow_server.model.pyfunc import ModelFile  # noqa: PLC0415

    model = ModelFile(content=file.read_bytes(), **options)
    if hashlib.sha256(model.content).hexdigest() != digest:
        raise SystemExit(f"{file}: its sha256 is not {digest}, which was registered")
    while True:
        try:
            columns = worker.recv()
        except EOFError:
            return
        try:
            worker.send(model.run((), columns)[0])
        except Exception as exc:  # noqa: BLE001  (whatever a library or a user's step raises)
            worker.send(" ".join(f"{type(exc).__name__}: {exc}".split()))
