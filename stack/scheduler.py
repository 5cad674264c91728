"""Airflow's scheduler, after ending the workers that an earlier one left behind.

A killed scheduler's workers live on and finish their tasks, which then run a second time.
"""

import os
from pathlib import Path

from stack.processes import end, members, title


def end_leftover_workers(home: Path) -> None:
    workers = ("airflow worker --", "airflow task")
    end(
        [process for process in members(home) if title(process).startswith(workers)],
        3.0,
    )


if __name__ == "__main__":
    end_leftover_workers(Path(os.environ["GYRE_HOME"]))
    # Logs are local files; the server for them would listen on every interface, on one fixed port.
    os.execvp("airflow", ["airflow", "scheduler", "--skip-serve-logs"])  # noqa: S606  (no shell)
