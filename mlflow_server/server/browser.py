"""How MLflow's UI looks in a browser that opens it for the first time.

It would open on chat models, with a chat panel and a box about telemetry in front of the runs. It
keeps these choices in the browser's local storage; nothing on the server presets them.
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
    """Put the script into MLflow's page before its own; what somebody chose stays."""
    if request.endpoint == "serve" and response.status_code == HTTPStatus.OK:
        response.direct_passthrough = False  # it is sent from the file otherwise
        page = response.get_data(as_text=True)
        response.set_data(page.replace("<head>", f"<head>{SCRIPT}", 1))
    return response
