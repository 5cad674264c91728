"""A small disk, which a test fills."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """Mount a disk at a folder, and unmount it at the end; the test is skipped without root."""
    if os.getuid():
        pytest.skip("only root may mount a disk")
    size = f"size={megabytes}m"
    mount = ["mount", "-t", "tmpfs", "-o", size, "gyre", str(folder)]
    subprocess.run(mount, check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Take all its room by a file, which makes room again once it is deleted."""
    path = disk / "full"
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    return path
