"""First choices of MLflow's UI in a browser that opens it for the first time.

By default it opens on chat models, with a chat panel and a box about telemetry in front of the runs.
The UI keeps these choices in the browser's local storage; MLflow's server has no option for them.
"""

import json
from http import HTTPStatus

from flask import Response, request

FIRST_CHOICES = {
    "mlflow.workflowType_v1": "machine_learning",
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": True,
    "mlflow.telemetry.info.alert.dismissed_v1": True,
}
SCRIPT = f"""<script>
for (const [name, choice] of Object.entries({json.dumps(FIRST_CHOICES)})) {{
  if (localStorage.getItem(name) === null) localStorage.setItem(name, JSON.stringify(choice));
}}
</script>"""


def preset_choices(response: Response) -> Response:
    """Put the script into MLflow's page before its own; choices of a person stay."""
    if request.endpoint == "serve" and response.status_code == HTTPStatus.OK:
        response.direct_passthrough = False  # it is sent from the file otherwise
        page = response.get_data(as_text=True)
        response.set_data(page.replace("<head>", f"<head>{SCRIPT}", 1))
    return response
