"""What people, probes and Prometheus read."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import HTMLResponse, Response

from serving.edge import json_response
from serving.page import status_page

if TYPE_CHECKING:
    from fastapi import FastAPI

    from serving.health import Health
    from serving.metrics import Metrics
    from stack.settings import Settings


def add_pages(app: FastAPI, settings: Settings, health: Health, metrics: Metrics) -> None:
    @app.get("/health/live")
    async def live() -> Response:
        return json_response({"live": True})

    @app.get("/health/ready")
    async def ready() -> Response:
        is_ready, found = health.ready()
        return json_response(found, 200 if is_ready else 503)

    @app.get("/metrics")
    async def prometheus() -> Response:
        for holder in health.holders:
            watermark = holder.features.watermark
            age = (datetime.now(UTC) - watermark).total_seconds() if watermark else float("nan")
            metrics.watermark_age.labels(holder.spec.name).set(age)
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", response_class=HTMLResponse)
    def page() -> Response:
        return HTMLResponse(status_page(settings, health, metrics))
