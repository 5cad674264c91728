"""Ends the workers that an earlier scheduler of Airflow left behind, then becomes the scheduler.

Workers of a killed scheduler live on and finish their tasks, which would then run a second time.
"""

import os
from pathlib import Path

from stack.supervisor import end, members, title


def end_leftover_workers(home: Path) -> None:
    workers = ("airflow worker --", "airflow task")
    end(
        [process for process in members(home) if title(process).startswith(workers)],
        3.0,
    )


if __name__ == "__main__":
    end_leftover_workers(Path(os.environ["GYRE_HOME"]))
    # Logs are local files; Airflow's server of logs would listen on every interface, on a fixed port.
    os.execvp("airflow", ["airflow", "scheduler", "--skip-serve-logs"])  # noqa: S606  (no shell)
