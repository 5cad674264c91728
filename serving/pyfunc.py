"""`python -m serving.pyfunc FILE SHA256 HOW`: scores with what MLflow's pyfunc loads of the file.

A worker starts one per version (`serving.pyfunc_process`). Standard input is a socket: a line of
JSON columns comes in, a line of scores goes out, or a text that says what is wrong. When the worker
is gone there are no more lines: the process ends.
"""

import hashlib
import json
import socket
import sys
from pathlib import Path

from mlflow_server.pyfunc import ModelFile


def main(file: str, digest: str, how: str) -> None:
    model = ModelFile(Path(file).read_bytes(), **json.loads(how))
    # A worker looked at the first start.
    if hashlib.sha256(model.content).hexdigest() != digest:
        sys.exit(f"{file}: its sha256 is not {digest}, which was registered")
    with socket.socket(fileno=0) as worker, worker.makefile("rw") as lines:
        for line in lines:
            try:
                answer = model.run((), json.loads(line))[0].tolist()
            except Exception as exc:  # noqa: BLE001  (whatever a library or a user's step raises)
                answer = " ".join(f"{type(exc).__name__}: {exc}".split())
            lines.write(json.dumps(answer) + "\n")
            lines.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
