"""Follows MLflow's registry in a worker: which versions answer, and in which role.

What has no copy here yet is fetched by a child process (`serving.fetch`); what has one is loaded in
a thread, and swapped in whole. Anything wrong keeps the version that answers.
"""

import asyncio
import json
import logging
import random
import sys
from subprocess import PIPE

import httpx

from core.settings import Settings
from core.spec import MODELS, broken_specs, load_specs
from serving.model import SEARCH, registered_models
from serving.repository import ModelRepository

POLL_SECONDS = 2.0
ANSWER_SECONDS = 1.0  # of MLflow, to a poll
FETCH_SECONDS = (
    300.0  # of a child, waiting for that of another worker included; then it is killed
)
logger = logging.getLogger(__name__)


class RegistryWatcher:
    def __init__(self, settings: Settings, repository: ModelRepository) -> None:
        self.problem: str | None = "not asked yet"
        self._repository = repository
        self._client = httpx.AsyncClient(
            base_url=settings.mlflow_address, timeout=ANSWER_SECONDS, trust_env=False
        )
        self._fetch: asyncio.Task[None] | None = None
        self._spec_files: dict[str, int] = {}

    async def run(self) -> None:
        """Poll until cancelled; at once when a fetch ends, as its versions are here then."""
        while True:
            wait = POLL_SECONDS * random.uniform(0.9, 1.1)  # noqa: S311  (not all workers at once)
            if self._fetch is None or self._fetch.done():
                await asyncio.sleep(wait)
            else:
                await asyncio.wait([self._fetch], timeout=wait)
            await self.poll()

    async def poll(self) -> None:
        try:
            await self._read_specs()
            await self._assign()
        except Exception:  # start-up never fails for a model's sake
            logger.exception("a poll of the registry failed")

    async def _read_specs(self) -> None:
        """Serve the specs of models/ as they are now; a broken one is named and left out."""
        spec_files = {
            path.name: path.stat().st_mtime_ns for path in MODELS.glob("*.toml")
        }
        if spec_files == self._spec_files:
            return
        specs = await asyncio.to_thread(load_specs)
        for problem in await asyncio.to_thread(broken_specs):
            logger.error("a model is not served: %s", problem)
        for removed in self._repository.update(specs):
            removed.close()
        self._spec_files = spec_files

    async def _assign(self) -> None:
        models = [*self._repository.holders.values()]
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                answer = await self._client.get(SEARCH)
            registered = registered_models(answer.raise_for_status().json())
            self.problem = None
        except (httpx.HTTPError, TimeoutError, ValueError, KeyError) as exc:
            reason = f"{type(exc).__name__}: {exc}".rstrip(": ")
            self.problem = f"MLflow does not answer (is it up?): {reason}"
            for model in models:
                await model.start_without_registry()
            return
        missing = [
            await model.assign(registered.get(model.spec.name)) for model in models
        ]
        if any(missing) and (self._fetch is None or self._fetch.done()):
            self._fetch = asyncio.create_task(self._fetch_versions())

    async def _fetch_versions(self) -> None:
        """Have the child process fetch what is missing; note which versions it refused."""
        command = (sys.executable, "-m", "serving.fetch")
        child = await asyncio.create_subprocess_exec(*command, stdout=PIPE)
        try:
            printed, _ = await asyncio.wait_for(child.communicate(), FETCH_SECONDS)
            refused = json.loads(printed)
            for name, model in self._repository.holders.items():
                model.refuse(refused.get(name, {}))
        except (TimeoutError, ValueError) as exc:  # the next one may end well
            logger.warning("a fetch failed (exit code %s): %r", child.returncode, exc)
            await asyncio.sleep(POLL_SECONDS)
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()

    async def close(self) -> None:
        if self._fetch is not None:
            self._fetch.cancel()
            await asyncio.wait([self._fetch])
        await self._client.aclose()
