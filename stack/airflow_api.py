"""Airflow's REST API: trigger a run, follow it task by task, say what went wrong."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Self

import httpx

from stack.environment import LOGIN, load_secrets
from stack.errors import StackError

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from stack.settings import Settings

FINAL = {"success", "failed", "skipped", "upstream_failed", "removed"}
NOTE_LIMIT, PATIENCE = 1000, 60.0


class AirflowApi:
    """One login, one request at a time. Every failure is a StackError with one clear line."""

    def __init__(self, settings: Settings, timeout: float = 30.0) -> None:
        self._http = httpx.Client(base_url=settings.airflow_address, timeout=timeout)
        self._login = {"username": LOGIN, "password": load_secrets(settings)["password"]}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def trigger(self, dag: str, conf: dict[str, Any]) -> str:
        """Start a run; wait for a DAG that is not parsed yet. Return its id."""
        body = {"logical_date": None, "conf": conf}
        return str(self._patiently(f"/dags/{dag}/dagRuns", body, {404})["dag_run_id"])

    def backfill(self, dag: str, begin: datetime, end: datetime) -> int:
        """Have Airflow run `dag` for each moment of its schedule from `begin` to `end`, in turn.

        Waits for a DAG that is not parsed yet, and for a turn at Airflow's SQLite: where the
        scheduler came between, Airflow takes it all back and answers 503. Returns the backfill's
        id.
        """
        body = {"dag_id": dag, "from_date": begin.isoformat(), "to_date": end.isoformat()}
        return int(self._patiently("/backfills", body | {"max_active_runs": 1}, {404, 503})["id"])

    def cancel_backfill(self, number: int) -> None:
        """Run nothing more of it; one that is over stays as it is."""
        answer = self._send("PUT", f"/backfills/{number}/cancel")
        if answer.status_code != httpx.codes.CONFLICT:
            self._checked(answer)

    def run(self, dag: str, run: str) -> dict[str, Any]:
        return self._checked(self._send("GET", f"/dags/{dag}/dagRuns/{run}"))

    def tasks(self, dag: str, run: str) -> list[dict[str, Any]]:
        """Return the run's task instances as Airflow has them, in the order they ended."""
        found = self._checked(self._send("GET", f"/dags/{dag}/dagRuns/{run}/taskInstances"))
        return sorted(found["task_instances"], key=lambda row: row["end_date"] or "9")

    def last_runs(self, dag: str, count: int = 1, **query: str) -> list[dict[str, Any]]:
        """Return the newest runs' rows as Airflow has them, newest first."""
        wanted = {"limit": count, "order_by": "-run_after", **query}
        rows = self._checked(self._send("GET", f"/dags/{dag}/dagRuns", params=wanted))
        return list[dict[str, Any]](rows["dag_runs"])

    def follow(
        self, dag: str, run: str, say: Callable[[str], None], limit: float = 600
    ) -> dict[str, Any]:
        """Wait for the end, saying each task's state and seconds as it finishes; return the run.

        Raises:
            StackError: a task failed (with its error), waits for a person, or `limit` s passed.

        """
        until, told = time.monotonic() + limit, set[str]()
        while True:
            now = self.run(dag, run)
            rows = self.tasks(dag, run)
            for row in rows:
                if row["state"] in FINAL and row["task_id"] not in told:
                    told.add(row["task_id"])
                    say(f"    {row['task_id']}: {row['state']}, {row['duration'] or 0:.1f} s")
            if now["state"] == "success":
                return now
            if asks := [row["task_id"] for row in rows if row["state"] == "awaiting_input"]:
                page = f"{self._http.base_url}/dags/{dag}/runs/{run}/tasks/{asks[0]}"
                raise StackError(f"{dag} waits for your answer: {page}/required_actions")
            if now["state"] == "failed":
                raise StackError(f"{dag} failed: {self.error(dag, run, rows)}")
            if time.monotonic() > until:
                raise StackError(f"{dag}: run {run} is still {now['state']} after {limit:.0f} s")
            time.sleep(0.5)

    def error(self, dag: str, run: str, rows: list[dict[str, Any]]) -> str:
        """Return which tasks failed, and the errors of their logs."""
        lines, runs = [], f"/dags/{dag}/dagRuns/{run}/taskInstances"
        for task, number in (
            (r["task_id"], r["try_number"]) for r in rows if r["state"] == "failed"
        ):
            path = f"{runs}/{task}/logs/{number}"
            log = self._checked(self._send("GET", path, params={"full_content": "true"}))
            lines.append(f"task {task}: {error_of(log['content'])}")
        return "; ".join(lines) or "no task of it failed; see the run in Airflow"

    def note(self, dag: str, run: str, text: str) -> None:
        """Put a note on the run, for whoever looks at it in Airflow."""
        body = {"note": text[:NOTE_LIMIT]}
        self._checked(self._send("PATCH", f"/dags/{dag}/dagRuns/{run}", json=body))

    def emit(self, asset: str, key: str, extra: dict[str, Any]) -> None:
        """Tell of the Asset named `asset`; what listens to it starts, once per partition key."""
        found = self._checked(self._send("GET", "/assets", params={"limit": 1000}))["assets"]
        number = next((row["id"] for row in found if row["name"] == asset), None)
        if number is None:
            raise StackError(f"Airflow knows no asset {asset}")
        body = {"asset_id": number, "partition_key": key, "extra": extra}
        self._checked(self._send("POST", "/assets/events", json=body))

    def pool(self, name: str, slots: int) -> None:
        """Make the pool unless it is there."""
        body = {"name": name, "slots": slots, "include_deferred": False}
        answer = self._send("POST", "/pools", json=body)
        if answer.status_code != httpx.codes.CONFLICT:
            self._checked(answer)

    def _patiently(self, path: str, body: dict[str, Any], later: set[int]) -> dict[str, Any]:
        """Post it, again while the answer's status is one of `later`, up to PATIENCE seconds."""
        until = time.monotonic() + PATIENCE
        while True:
            answer = self._send("POST", path, json=body)
            if answer.status_code not in later or time.monotonic() > until:
                return self._checked(answer)
            time.sleep(0.5)

    def _send(self, method: str, path: str, **more: Any) -> httpx.Response:
        try:
            if "Authorization" not in self._http.headers:
                token = self._checked(self._http.post("/auth/token", json=self._login))
                self._http.headers["Authorization"] = f"Bearer {token['access_token']}"
            return self._http.request(method, f"/api/v2{path}", **more)
        except httpx.HTTPError as exc:
            raise StackError(f"Airflow at {self._http.base_url} does not answer: {exc}") from exc

    @staticmethod
    def _checked(answer: httpx.Response) -> dict[str, Any]:
        if answer.is_success:
            return dict[str, Any](answer.json())
        line = f"{answer.request.method} {answer.request.url.path}: {answer.status_code}"
        raise StackError(f"Airflow refused {line} {answer.text[:300]}")


def error_of(entries: list[dict[str, Any]]) -> str:
    """Return the last exception of a task's log, or its last error line."""
    for entry in reversed(entries):
        for detail in entry.get("error_detail") or []:
            return f"{detail.get('exc_type')}: {detail.get('exc_value')}"
    lines = [str(entry.get("event")) for entry in entries if entry.get("level") == "error"]
    return lines[-1] if lines else "its log has no error"
