"""A repository of Helm on loopback that has Airflow's chart, or a stand-in for it.

The chart is in no registry of packages. AIRFLOW_CHART names an archive of it:
`helm pull apache-airflow/airflow --version 1.22.0`.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.project import CLONE
from tests.conftest import answers, running, unused_port, wait_until
from tests.support.kubernetes.programs import kubectl_and_helm

STAND_IN = CLONE / "tests" / "kubernetes" / "stand-ins" / "airflow"


@contextmanager
def chart_repository(folder: Path) -> Iterator[str]:
    """Serve the chart; the address of the repository is for `helm repo add`."""
    helm = str(kubectl_and_helm() / "helm")
    if chart := os.environ.get("AIRFLOW_CHART"):
        shutil.copy(chart, folder)
    else:
        command = [helm, "package", str(STAND_IN), f"--destination={folder}"]
        subprocess.run(command, check=True, capture_output=True)
    subprocess.run([helm, "repo", "index", str(folder)], check=True)
    port = unused_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "http.server", str(port)]
    command += ["--bind=127.0.0.1", f"--directory={folder}"]
    with running(command, folder.with_suffix(".log")):
        wait_until("the charts", lambda: answers(f"{address}/index.yaml"), 30)
        yield address
