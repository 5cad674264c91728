"""A worker's log and outbox without the rest: `python outbox_worker.py HOME`, which tests kill.

A line of stdin is the id and the entity of a request; the id comes back once its row is written.
"""

import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

from core.settings import load_settings
from serving.prediction_log.append_log import AppendLog
from serving.prediction_log.outbox import Outbox
from tests.support.monitoring.log_lines import answer

ROUND_SECONDS = 0.02
FILE_SECONDS = 0.3
settings = load_settings(home=Path(sys.argv[1]))
outbox = Outbox(settings)
log = AppendLog(settings.home / "serving" / "log", "predictions", outbox.folder)
log.open()


def send():
    while True:
        outbox.send()
        time.sleep(ROUND_SECONDS)


def begin_files():
    while True:
        time.sleep(FILE_SECONDS)
        log.open()


for work in (send, begin_files):
    threading.Thread(target=work, daemon=True).start()
for request in sys.stdin:
    request_id, entity = request.split()
    row = answer(request_id, datetime.now(UTC), entity=entity)
    assert log.write([row])
    sys.stdout.write(f"{request_id}\n")
    sys.stdout.flush()
