"""Airflow's REST API: start a run, follow it task by task, name the error of one that failed."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Self

import httpx

from core.errors import StackError
from core.settings import Settings
from core.spec import ModelSpec
from core.text_limits import AIRFLOW_NOTE, cut
from stack.environment import LOGIN, load_secrets

FINAL = {"success", "failed", "skipped", "upstream_failed", "removed"}
ENDED = ("success", "failed")
"""States of a run that has ended."""
LINKS = " · "
"""Text before the links of a note. They are in its first line, as Airflow shows that alone."""
REFUSALS = (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)
"""Answers to a login that is wrong, or is not allowed what was asked for."""
PARSE_SECONDS = 300.0
"""Time for Airflow to read the file of a new DAG."""
WRITE_POOL = "tables"
"""The pool of one slot, which `gyre up` makes: one task at a time writes Delta tables."""


def promotion_asset(spec: ModelSpec) -> str:
    """Name the Asset that a training emits: `rollout/MODEL` for a canary, else `promoted/MODEL`."""
    kind = "rollout" if spec.rollout.policy == "canary" else "promoted"
    return f"{kind}/{spec.name}"


class AirflowTimeoutError(StackError):
    """Airflow has not answered a request in time."""


class AirflowApi:
    """Airflow's API with one login. A request that fails raises a StackError of one line.

    The login of a team's Airflow is in the settings; that of Gyre's own is a secret of the stack.

    Args:
        settings: Settings of the stack.
        timeout: Seconds that one request may take.
        patience: Seconds in which a request without an answer is sent again.

    """

    def __init__(
        self, settings: Settings, timeout: float = 30.0, patience: float = 0.0
    ) -> None:
        self._patience = patience
        self._http = httpx.Client(
            base_url=settings.airflow_address,
            timeout=timeout,
        )
        self._user = settings.airflow_user or LOGIN
        self._password: str | None = None
        if settings.airflow_password:
            self._password = settings.airflow_password.get_secret_value()
        elif not settings.airflow_token:
            self._password = load_secrets(settings)["password"]
        if settings.airflow_token:
            self._take_token(settings.airflow_token.get_secret_value())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def trigger(self, dag: str, conf: dict[str, Any]) -> str:
        """Start one run and return its id; wait for a DAG that Airflow has not read yet."""
        run = f"manual__{datetime.now(UTC).isoformat()}"
        body = {"dag_run_id": run, "logical_date": None, "conf": conf}
        until = time.monotonic() + PARSE_SECONDS
        while True:
            answer = self._send("POST", f"/dags/{dag}/dagRuns", json=body)
            if answer.status_code == httpx.codes.CONFLICT:  # the first answer was lost
                return run
            if answer.status_code != httpx.codes.NOT_FOUND or time.monotonic() > until:
                return str(self._checked(answer)["dag_run_id"])
            time.sleep(0.5)

    def version(self) -> str:
        """Return Airflow's version, once it has taken the login."""
        return str(self._get("/version")["version"])

    def run(self, dag: str, run: str) -> dict[str, Any]:
        return self._get(f"/dags/{dag}/dagRuns/{run}")

    def tasks(self, dag: str, run: str) -> list[dict[str, Any]]:
        """Return a run's task instances as Airflow has them, in the order of their ends."""
        rows = self._get(f"/dags/{dag}/dagRuns/{run}/taskInstances")["task_instances"]
        return sorted(rows, key=lambda row: row["end_date"] or "9")

    def last_runs(self, dag: str, count: int = 1, **query: str) -> list[dict[str, Any]]:
        """Return the newest runs of a DAG as Airflow has them, the newest first.

        A DAG that Airflow has not read yet has none.
        """
        parameters = {"limit": count, "order_by": "-run_after", **query}
        answer = self._send("GET", f"/dags/{dag}/dagRuns", params=parameters)
        if answer.status_code == httpx.codes.NOT_FOUND:
            return []
        return list[dict[str, Any]](self._checked(answer)["dag_runs"])

    def ended_runs(self, since: datetime) -> dict[str, dict[str, int]]:
        """Count runs of Gyre's DAGs that have ended since a moment (aware UTC), by DAG and state."""
        counts: dict[str, dict[str, int]] = {}
        for dag in self._dags():
            counts[dag] = {}
            for state in ENDED:
                page = self._get(
                    f"/dags/{dag}/dagRuns",
                    state=state,
                    end_date_gte=since.isoformat(),
                    limit=1,
                )
                counts[dag][state] = int(page["total_entries"])
        return counts

    def _dags(self) -> list[str]:
        """Return the names of Gyre's DAGs, read page by page."""
        names: list[str] = []
        while True:
            page = self._get("/dags", tags="gyre", offset=len(names))
            names += [dag["dag_id"] for dag in page["dags"]]
            if len(names) >= page["total_entries"]:
                return names

    def follow(
        self, dag: str, run: str, say: Callable[[str], None], limit: float = 3600
    ) -> dict[str, Any]:
        """Wait for the end of a run and say the state and seconds of each task on the way.

        An Airflow that is too busy to answer in time is asked again.

        Args:
            dag: Name of the DAG.
            run: Id of the run.
            say: Takes a line for each task that has ended.
            limit: Seconds to wait at most.

        Returns:
            The run as Airflow has it, without the links of its note.

        Raises:
            StackError: A task failed (its error is in the message) or waits for a person, or the
                limit passed.

        """
        until = time.monotonic() + limit
        reported = set[str]()
        while True:
            try:
                row = self.run(dag, run)
                tasks = self.tasks(dag, run)
            except AirflowTimeoutError:
                if time.monotonic() > until:
                    raise
                continue
            for task in tasks:
                name = task["task_id"]
                state = task["state"]
                if state in FINAL and name not in reported:
                    reported.add(name)
                    say(f"    {name}: {state}, {task['duration'] or 0:.1f} s")
                if state == "awaiting_input":
                    raise StackError(
                        f"{dag} waits for your answer: {self._http.base_url}/dags/{dag}"
                        f"/runs/{run}/tasks/{name}/required_actions"
                    )
            if row["state"] == "success":
                note = (row["note"] or "").partition(f"{LINKS}[")[0]
                return row | {"note": note or None}
            if row["state"] == "failed":
                raise StackError(f"{dag} failed: {self._error(dag, run, tasks)}")
            if time.monotonic() > until:
                raise StackError(
                    f"{dag}: run {run} is still {row['state']} after {limit:.0f} s"
                )
            time.sleep(0.5)

    def _error(self, dag: str, run: str, tasks: list[dict[str, Any]]) -> str:
        lines = []
        for task in tasks:
            if task["state"] == "failed":
                logs = f"/dags/{dag}/dagRuns/{run}/taskInstances/{task['task_id']}/logs"
                log = self._get(f"{logs}/{task['try_number']}", full_content="true")
                lines.append(f"task {task['task_id']}: {error_of(log['content'])}")
        return "; ".join(lines) or "no task of it failed; see the run in Airflow"

    def note(self, dag: str, run: str, text: str, links: str = "") -> None:
        """Put a note on a run, which Airflow's pages show; `links` are its end."""
        end = f"{LINKS}{links}" if links else ""
        body = {"note": cut(text, AIRFLOW_NOTE - len(end)) + end}
        self._checked(self._send("PATCH", f"/dags/{dag}/dagRuns/{run}", json=body))

    def emit(self, asset: str) -> None:
        """Emit an Asset by its name: a DAG that it schedules starts, now or after its active run."""
        page = self._get("/assets", name_pattern=asset)
        ids = [row["id"] for row in page["assets"] if row["name"] == asset]
        if not ids:
            raise StackError(f"Airflow knows no asset {asset}")
        self._checked(self._send("POST", "/assets/events", json={"asset_id": ids[0]}))

    def pool(self, name: str, slots: int) -> None:
        """Make a pool unless it is there."""
        body = {"name": name, "slots": slots, "include_deferred": False}
        answer = self._send("POST", "/pools", json=body)
        if answer.status_code != httpx.codes.CONFLICT:
            self._checked(answer)

    def _get(self, path: str, **query: str | int) -> dict[str, Any]:
        return self._checked(self._send("GET", path, params=query))

    def _send(self, method: str, path: str, **more: Any) -> httpx.Response:
        until = time.monotonic() + self._patience
        while True:
            try:
                is_new = "Authorization" not in self._http.headers
                if is_new:
                    self._log_in()
                answer = self._http.request(method, f"/api/v2{path}", **more)
                has_expired = answer.status_code == httpx.codes.UNAUTHORIZED
                if not has_expired or is_new or not self._password:
                    return answer
                self._log_in()
                return self._http.request(method, f"/api/v2{path}", **more)
            except httpx.HTTPError as exc:
                if time.monotonic() > until:
                    is_timeout = isinstance(exc, httpx.TimeoutException)
                    error = AirflowTimeoutError if is_timeout else StackError
                    raise error(
                        f"Airflow at {self._http.base_url} does not answer: {exc}"
                    ) from exc
            time.sleep(0.5)

    def _log_in(self) -> None:
        """Ask for a token with user and password."""
        login = {"username": self._user, "password": self._password}
        answer = self._http.post("/auth/token", json=login)
        if answer.is_client_error:
            raise self._refusal(answer)  # its text may repeat the password
        self._take_token(self._checked(answer)["access_token"])

    def _take_token(self, token: str) -> None:
        self._http.headers["Authorization"] = f"Bearer {token}"

    def _refusal(self, answer: httpx.Response) -> StackError:
        login = f"user {self._user}" if self._password else "the token"
        return StackError(
            f"Airflow at {self._http.base_url} refused {login} ({answer.status_code}): set "
            "GYRE_AIRFLOW_USER and GYRE_AIRFLOW_PASSWORD, or GYRE_AIRFLOW_TOKEN, of a user who "
            "may start and change runs"
        )

    def _checked(self, answer: httpx.Response) -> dict[str, Any]:
        if answer.is_success:
            return dict[str, Any](answer.json())
        if answer.status_code in REFUSALS:
            raise self._refusal(answer)
        request = answer.request
        raise StackError(
            f"Airflow refused {request.method} {request.url.path}: "
            f"{answer.status_code} {answer.text[:300]}"
        )


def error_of(entries: list[dict[str, Any]]) -> str:
    """Return the last exception of a task's log, or its last error line."""
    for entry in reversed(entries):
        for detail in entry.get("error_detail") or []:
            return f"{detail.get('exc_type')}: {detail.get('exc_value')}"
    lines = [
        str(entry.get("event")) for entry in entries if entry.get("level") == "error"
    ]
    return lines[-1] if lines else "its log has no error"
