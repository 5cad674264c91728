"""A worker follows MLflow's registry: which versions answer, and in which role.

A version that has no copy here is fetched by a child process (`serving.versions.fetch`). One that
has a copy is loaded in a thread and swapped in whole. If anything fails, the version that
answers stays.
"""

import asyncio
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import psutil

from core.errors import RegistryError
from core.settings import Settings
from core.spec import MODELS, broken_specs, load_specs
from mlflow_server.api.registry import Registry
from serving.repository import ModelRepository
from serving.versions.copies import LocalCopies, Origin, read_origin
from serving.versions.loaded import LoadedVersions

POLL_SECONDS = 2.0
POLL_DEADLINE_SECONDS = 1.0
"""Deadline of MLflow's answer to a poll."""
NO_ANSWER = f"MLflow does not answer (is it up?) within {POLL_DEADLINE_SECONDS:g} s"
FETCH_SECONDS = 300.0
"""Deadline of a child process, including its wait for another worker's child."""
FETCH_PAUSE_SECONDS = 10.0
"""Pause after a fetch that failed."""
CRASHES = {
    signal.SIGABRT,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGSEGV,
}
"""Signals that end a child process whose file crashes its reader."""
logger = logging.getLogger(__name__)


class RegistryWatcher:
    """Polls MLflow for all models.

    Attributes:
        problem: Why MLflow does not answer.
        server_start: When the process that starts the workers was started, aware UTC.

    """

    def __init__(self, settings: Settings, repository: ModelRepository) -> None:
        self.problem: str | None = "not asked yet"
        server = multiprocessing.parent_process()
        process = psutil.Process(server.pid if server is not None else None)
        self.server_start = datetime.fromtimestamp(process.create_time(), UTC)
        self._registry = Registry(settings)
        self._repository = repository
        self._fetch: asyncio.Task[None] | None = None
        self._spec_files: dict[str, int] = {}

    async def run(self) -> None:
        """Poll until cancelled; at once when a fetch ends, as its version is here then."""
        while True:
            if self._fetch is None or self._fetch.done():
                await asyncio.sleep(POLL_SECONDS)
            else:
                await asyncio.wait([self._fetch], timeout=POLL_SECONDS)
            await self.poll()

    async def poll(self) -> None:
        """Follow the specs and the registry as they are now. Never raises."""
        try:
            await self._read_specs()
            await self._follow()
        except Exception:  # start-up never fails for a model's sake
            logger.exception("a poll of the registry failed")

    async def close(self) -> None:
        """End the child process."""
        if self._fetch is not None:
            self._fetch.cancel()
            await asyncio.wait([self._fetch])

    async def _read_specs(self) -> None:
        """Serve the specs of models/ as they are now, and log broken ones."""
        spec_files = {
            path.name: path.stat().st_mtime_ns for path in MODELS.glob("*.toml")
        }
        if spec_files == self._spec_files:
            return
        specs = await asyncio.to_thread(load_specs)
        for problem in await asyncio.to_thread(broken_specs):
            logger.error("no spec: %s", problem)
        names = {Path(name).stem for name in spec_files}
        self._repository.update(specs, unread=names - {spec.name for spec in specs})
        self._spec_files = spec_files

    async def _follow(self) -> None:
        try:
            async with asyncio.timeout(POLL_DEADLINE_SECONDS):
                registered = await asyncio.to_thread(self._registry.models)
            self.problem = None
            for name, model in self._repository.models.items():
                versions = model.versions
                missing = await versions.follow(registered.get(name))
                if missing and (self._fetch is None or self._fetch.done()):
                    await self._fetch_due(versions, registered[name].created, missing)
        except (RegistryError, TimeoutError) as exc:
            self.problem = str(exc) or NO_ANSWER
            for model in self._repository:
                await model.versions.start_without_registry()

    async def _fetch_due(
        self, versions: LoadedVersions, created: int, missing: Sequence[str]
    ) -> None:
        """Begin to fetch the first missing version whose refusal, if any, is over."""
        for version in missing:
            origin = await asyncio.to_thread(
                read_origin, self._registry, versions.spec.name, version, created
            )
            refusal = versions.copies.refusal(version)
            now = datetime.now(UTC)
            if refusal is None or refusal.is_due(origin, self.server_start, now):
                fetch = self._fetch_version(versions.copies, version, origin)
                self._fetch = asyncio.create_task(fetch)
                return

    async def _fetch_version(
        self, copies: LocalCopies, version: str, origin: Origin
    ) -> None:
        """Have the child process fetch a version; it is refused if that crashes."""
        environment = dict(os.environ)
        # The child must count nothing: its files would stay.
        environment.pop("PROMETHEUS_MULTIPROC_DIR", None)
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "serving.versions.fetch",
            copies.folder.name,
            version,
            env=environment,
        )
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(child.wait(), FETCH_SECONDS)
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        exit_code = child.returncode or 0
        if -exit_code in CRASHES:
            name = signal.Signals(-exit_code).name
            reason = f"the process that tried it crashed ({name})"
            await asyncio.to_thread(copies.refuse, version, origin, reason)
        elif exit_code != 0:
            logger.warning("a fetch failed (exit code %s), see above", exit_code)
            await asyncio.sleep(FETCH_PAUSE_SECONDS)
