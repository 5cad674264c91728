"""A whole stack, started and ended by the command."""

import json
import subprocess

import httpx
import psutil

from core.project import PROJECT
from tests.conftest import BIN
from tests.support.tools.clone import run, stack_environment

MODEL = "customer_churn_model"
APART = {"up", "down", "backup", "restore"}
"""Commands that start, end or stop processes run in processes of their own."""


class Stack:
    """A stack of its own, driven through the commands of the README."""

    database = None

    def __init__(self, settings):
        self.settings = settings
        self.environment = stack_environment(settings)

    def run(self, command, code=0):
        """Return what a command of Gyre prints, errors last."""
        is_apart = command.split()[0] in APART
        program = BIN / "gyre" if is_apart else "gyre"
        return run(f"{program} {command}", PROJECT, self.environment, code, 1500)

    def ledger(self):
        return json.loads(self.run(f"ledger {MODEL} --json"))

    def production(self):
        return self.ledger()[-1]["to"]

    def predict(self):
        url = f"{self.settings.serving_address}/predict"
        return httpx.post(url, json={"customer_id": 4}, timeout=60)

    def processes(self):
        """Return files of the processes whose environment names this stack's folder."""
        command = f"grep -ls {self.settings.home} /proc/*/environ"
        return subprocess.getoutput(command)

    def supervisor(self):
        file = self.settings.home / "run" / "supervisord.pid"
        return psutil.Process(int(file.read_text()))

    def programs(self):
        """Return what the supervisor started; Airflow's tasks come and go below them."""
        return {process.pid for process in self.supervisor().children()}
