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


def outer_environment():
    """The environment of a shell that belongs to no stack."""
    path = f"{commands_folder()}:{BIN}:{os.environ['PATH']}"
    hindering = ("GYRE_", "PROMETHEUS_")
    outer = {k: v for k, v in os.environ.items() if not k.startswith(hindering)}
    return outer | {"PATH": path}


def finished(command, folder, environment, code=0, timeout=900):
    """Return the finished process of a shell's command, and require its exit code."""
    done = subprocess.run(
        ["bash", "-euc", command], cwd=folder, env=environment, capture_output=True, text=True,
        check=False, timeout=timeout,
    )  # fmt: skip
    output = f"{done.stdout[-2000:]}{done.stderr[-4000:]}"
    assert done.returncode == code, f"{command}\n{output}"
    return done


def run(*arguments):
    """Return what a command of the shell prints, errors last; arguments are of `finished`."""
    done = finished(*arguments)
    return done.stdout + done.stderr


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
        outer = outer_environment()
        paths = {"PATH": outer["PATH"], "PYTHONPATH": str(folder)}
        self.environment = outer | child_environment(settings) | paths

    def run(self, command, code=0, timeout=900, **more):
        environment = self.environment | more
        return run(command, self.folder, environment, code, timeout)


def few_orders(file):
    """Leave a fifteenth of the customers in a file of the shipped orders."""
    pq.write_table(pq.read_table(file, filters=pc.field("customer_id") < 1500), file)


def fewer_trees(file):
    """Leave a tenth of the trees in a spec."""
    text = file.read_text()
    for name in ("n_estimators", "max_iter"):
        text = text.replace(f"{name} = 100,", f"{name} = 10,")
    file.write_text(text)
