"""The project as git has it, in a folder of its own, to be edited and run."""

from __future__ import annotations

import os
import shutil
import subprocess

import pyarrow.compute as pc
import pyarrow.parquet as pq

from core.settings import PROJECT
from stack.environment import child_environment
from tests.conftest import BIN
from tests.preloaded import commands_folder


class Copy:
    """The project as git has it, in a folder of its own; the packages are this environment's."""

    def __init__(self, folder, settings):
        self.folder, self.settings = folder, settings
        git = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(
            git, cwd=PROJECT, capture_output=True, check=True
        ).stdout
        for name in filter(None, listed.decode().split("\0")):
            if (PROJECT / name).exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(PROJECT / name, folder / name)
        own = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("GYRE_", "PROMETHEUS_"))
        }
        self.environment = own | child_environment(settings) | {
            "PYTHONPATH": str(folder),
            "PATH": f"{commands_folder()}:{BIN}:{os.environ['PATH']}",
        }  # fmt: skip
        self.before = self.content()

    def run(self, command, code=0, timeout=900, **more):
        done = subprocess.run(
            ["bash", "-euc", command], cwd=self.folder, env=self.environment | more,
            capture_output=True, text=True, check=False, timeout=timeout,
        )  # fmt: skip
        assert done.returncode == code, (
            f"{command}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        )
        return done.stdout + done.stderr

    def content(self):
        skipped = {".gyre", "__pycache__"}
        return {
            str(path.relative_to(self.folder)): path.read_bytes()
            for path in self.folder.rglob("*")
            if path.is_file()
            and not skipped & set(path.parts)
            and path.suffix != ".log"
        }


def few_orders(folder):
    """Leave an eighth of the customers of the shipped orders below `folder`."""
    file = folder / "data" / "cdnow_orders.parquet"
    pq.write_table(pq.read_table(file, filters=pc.field("customer_id") < 3000), file)
