"""Programs that are ready once an address answers."""

from collections.abc import Callable

import httpx

from core.settings import Page, Settings


def answers(
    page: Page, path: str, component: str = ""
) -> Callable[[Settings], str | None]:
    """Return a function that tells why a program is not ready; it returns None once it is.

    Args:
        page: The program, whose address answers with a 2xx status once it is ready.
        path: Path below the address.
        component: Name in the answer of a component of Airflow, which must be healthy there.

    """

    def problem(settings: Settings) -> str | None:
        url = getattr(settings, f"{page}_address") + path
        try:
            answer = httpx.get(url, timeout=3).raise_for_status()
            state = answer.json()[component]["status"] if component else "healthy"
        except (httpx.HTTPError, ValueError, KeyError) as exc:
            return f"{url}: {type(exc).__name__} {exc}"
        return None if state == "healthy" else f"{component} is {state}"

    return problem
