"""What serving says of itself: where things are, and what all its processes counted."""

import asyncio
import os
from pathlib import Path

import psutil
from fastapi import APIRouter
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from starlette.responses import Response

from serving.edge import json_response
from stack.settings import Settings


def add_info(router: APIRouter, settings: Settings) -> None:
    @router.get("/", tags=["Server"], summary="What this is")
    async def about() -> Response:
        """Say what this is, and where to read on."""
        return json_response(
            {"name": "Gyre serving", "docs": "/docs", "console": f"{settings.console_address}/"}
        )

    @router.get("/metrics", response_class=PlainTextResponse, tags=["Server"], summary="Counts")
    async def metrics() -> Response:
        """Return what all workers counted, in Prometheus's text format."""
        text = await asyncio.to_thread(_counts)
        return Response(text, media_type=CONTENT_TYPE_LATEST)


def _counts() -> bytes:
    """Add up all processes, of ended ones what adds up, and not how things are there."""
    for file in Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).glob("gauge_live*.db"):
        pid = int(file.stem.rpartition("_")[2])
        if not psutil.pid_exists(pid):
            mark_process_dead(pid)  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
