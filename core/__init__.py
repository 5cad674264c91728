"""The basis of every package: settings, model specs, tables, errors, timestamps.

Every package imports it before any tool: the variables below keep each tool from sending its
makers a report of its use.
"""

import os

UNREPORTED = {
    "DO_NOT_TRACK": "1",
    "FEAST_USAGE": "False",
    "GX_ANALYTICS_ENABLED": "False",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "ORT_DISABLE_TELEMETRY": "1",  # else each session sends graph, hashes and command line
}
"""Each tool reads its variable at import. Airflow's is in its configuration (stack/environment.py)."""
for _name, _value in UNREPORTED.items():
    os.environ.setdefault(_name, _value)

# No proxy of this machine stands between the stack's own programs.
_direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
for _host in ("127.0.0.1", "localhost", "::1"):
    if _host not in _direct.split(","):
        _direct = f"{_direct},{_host}".lstrip(",")
os.environ.update(NO_PROXY=_direct, no_proxy=_direct)
