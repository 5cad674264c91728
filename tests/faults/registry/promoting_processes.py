"""A program that promotes from processes of its own, which may be killed on the way.

A job has settings, model, version, replaces, and dies ("before" or "after" the alias is moved, or
null). Its answer is "won", or why it was refused.
"""

import os
import signal

from core.errors import PromotionRefusedError
from core.settings import Settings
from mlflow_server.api.registry import Registry
from mlflow_server.promotion.ledger import Ledger
from mlflow_server.promotion.promote import promote
from tests.faults.jobs import serve

READY_SECONDS = 600


class Deadly(Registry):
    """Ends its process by SIGKILL around the first alias that is moved."""

    dies: str

    def set_alias(self, model, role, version):
        if self.dies == "after":
            super().set_alias(model, role, version)
        os.kill(os.getpid(), signal.SIGKILL)


def attempt(job, begin):
    settings = Settings.model_validate(job["settings"])
    registry = Registry(settings)
    if job["dies"]:
        registry = Deadly(settings)
        registry.dies = job["dies"]
    ledger = Ledger(settings)
    version = job["version"]
    reasons = {"who": f"process {version}", "why": "race", "replaces": job["replaces"]}
    begin.wait(READY_SECONDS)
    try:
        promote(registry, ledger, job["model"], version, **reasons)
    except PromotionRefusedError as exc:
        return str(exc)
    return "won"


if __name__ == "__main__":
    serve(attempt)
