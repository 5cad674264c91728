"""What every package stands on: settings, model specs, tables, errors, timestamps.

Imported ahead of every tool, so that none of them reports to its makers what it is used for.
"""

import os

UNREPORTED = {
    "DO_NOT_TRACK": "1",
    "FEAST_USAGE": "False",
    "GX_ANALYTICS_ENABLED": "False",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "ORT_DISABLE_TELEMETRY": "1",  # else each session sends graph, hashes and command line
}
"""Each tool reads its own at import; Airflow's is in its configuration (environment.py)."""
for _name, _value in UNREPORTED.items():
    os.environ.setdefault(_name, _value)
