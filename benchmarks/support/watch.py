"""Watches a process from outside: memory with that of all that it starts, and what DuckDB spills."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.support.measure import peak_mb
from core.project import PROJECT

SECONDS_BETWEEN = 1
LIMIT_MB = 6_000
"""Peak resident memory of a process, without those that it starts; beyond it, it is ended."""
MB = 1024 * 1024


class Watch:
    """The peaks of a process while it runs.

    Args:
        process: The process.
        folder: Where DuckDB's temporary files lie.

    Attributes:
        pss_mb: Of the process and of all that it started, at one time.
        java_mb: Peak resident memory of a JVM that it started.
        spilled_mb: Size of DuckDB's temporary files at one time.

    """

    def __init__(self, process: psutil.Process, folder: Path) -> None:
        self._process = process
        self._folder = folder
        self.pss_mb = 0.0
        self.java_mb = 0.0
        self.spilled_mb = 0.0

    def look(self) -> None:
        """Look once."""
        self.pss_mb = max(self.pss_mb, self._pss_mb())
        self.spilled_mb = max(self.spilled_mb, self._temporary_mb())

    def _pss_mb(self) -> float:
        total = 0.0
        for process in [self._process, *self._process.children(recursive=True)]:
            try:
                total += process.memory_full_info().pss / MB
                if process.name() == "java":
                    self.java_mb = max(self.java_mb, peak_mb(process.pid))
            except (psutil.Error, FileNotFoundError):
                continue  # it has ended
        return total

    def _temporary_mb(self) -> float:
        total = 0.0
        for file in self._folder.rglob("duckdb_temp*"):
            try:
                total += file.stat().st_blocks * 512 / MB
            except FileNotFoundError:
                continue  # DuckDB has deleted it
        return total


def watched(
    benchmark: str, peer: str, *arguments: object, folder: Path
) -> dict[str, Any] | None:
    """Measure a peer in a process of its own, as `measure.child` does, and watch it.

    Args:
        benchmark: Name of the module.
        peer: Name of the peer.
        *arguments: Of the peer.
        folder: Where DuckDB's temporary files lie.

    Returns:
        What the peer returns, and the attributes of `Watch`; None if it passed LIMIT_MB.

    Raises:
        SystemExit: The peer failed.

    """
    command = [sys.executable, "-W", "ignore", "-m", f"benchmarks.{benchmark}", peer]
    command += map(str, arguments)
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, cwd=PROJECT, stdout=output, stderr=errors)
        watch = Watch(psutil.Process(process.pid), folder)
        while process.poll() is None:
            time.sleep(SECONDS_BETWEEN)
            try:
                watch.look()
                is_beyond = peak_mb(process.pid) > LIMIT_MB
            except (psutil.NoSuchProcess, FileNotFoundError):
                continue
            if is_beyond:
                process.kill()
                process.wait()
                return None
        if process.returncode:
            errors.seek(0)
            reason = f"exit status {process.returncode}: {errors.read().decode()}"
            raise SystemExit(f"{command}: {reason}")
        output.seek(0)
        values = dict[str, Any](json.loads(output.read().splitlines()[-1]))
    peaks = {
        "pss_mb": watch.pss_mb,
        "java_mb": watch.java_mb,
        "spilled_mb": watch.spilled_mb,
    }
    return values | peaks | {"load": os.getloadavg()[0]}
