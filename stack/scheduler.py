"""Airflow's scheduler, after ending the workers that an earlier one left behind.

A killed scheduler's workers live on and finish their tasks, which then run a second time.
"""

import os
import sys
from pathlib import Path

from stack.ending import end_leftover_workers


def main() -> None:
    end_leftover_workers(Path(os.environ["GYRE_HOME"]))
    airflow = str(Path(sys.executable).parent / "airflow")
    # Logs are local files; the server for them would listen on every interface, on one fixed port.
    os.execv(airflow, [airflow, "scheduler", "--skip-serve-logs"])  # noqa: S606  (no shell is wanted)


if __name__ == "__main__":
    main()
